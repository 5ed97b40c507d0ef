"""An embedded Ray's folder: one for each, removed by the next start where its driver was killed.

The driver holds a lock in it. A process number alone says too little: a container that starts again
with its file system numbers its processes as before, and one that shares /tmp with another does not
see the other's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "retro_ml-"
LOCK = "driver.lock"


def make_folder() -> tuple[Path, int]:
    """A new folder, named after this process, and the lock's descriptor, to be closed at the end.

    Raises OSError.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_tmp()))
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # taken for an orphan before the lock was there
            continue
        with suppress(OSError):  # a file system without locks: nobody can take it for an orphan
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, lock
        os.close(lock)


def remove_orphans() -> None:
    """Removes folders whose driver is gone; others' folders are not ours to touch."""
    for folder in Path(_short_tmp()).glob(f"{PREFIX}*-*"):
        with suppress(OSError, ValueError):
            pid = int(folder.name.removeprefix(PREFIX).partition("-")[0])
            if folder.lstat().st_uid == os.getuid():
                _remove_orphan(folder, pid)


def _remove_orphan(folder: Path, pid: int) -> None:
    """Raises OSError where its driver lives."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # its driver is making it, or was killed at that
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _short_tmp() -> str:
    # Ray adds up to 62 bytes of its own below this folder; a socket's path has 107.
    tmp = tempfile.gettempdir()
    return tmp if len(os.fsencode(tmp)) <= 20 else "/tmp"
