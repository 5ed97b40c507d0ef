"""How files are written so that a kill at any instant leaves them readable.

Two ways, on local disk: a whole file replaced atomically, and a file of lines that only grows.
Writers of artifacts use nothing else, so that another kind of storage has one place to go.
"""

import errno
import glob
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another --output-dir",
    errno.EDQUOT: "free some of your quota, or choose another --output-dir",
    errno.EROFS: "choose an --output-dir that can be written",
    errno.EACCES: "make it writable, or choose another --output-dir",
    errno.EPERM: "make it writable, or choose another --output-dir",
}
_OWN = secrets.token_hex(4)
"""Tells this process from all others, also from those of other containers."""
_AT_REST_S = 3600.0
_TAIL_BLOCK_BYTES = 64 * 1024
_MAX_WAITING_BYTES = 64 * 1024


class ArtifactError(Exception):
    """A file of the run cannot be written; the message names the file and the reason."""

    @classmethod
    def from_os_error(cls, error: OSError, path: Path) -> "ArtifactError":
        """One line with file, reason and, where there is one, the remedy."""
        remedy = _REMEDIES.get(error.errno or 0)
        reason = error.strerror or str(error)
        return cls(f"cannot write {path}: {reason}" + (f"; {remedy}" if remedy else ""))


def replace_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False
) -> None:
    """Replace the file by what `write` puts into the open binary file it is given.

    A reader finds the old content or the new, never a part, even after a power failure. The
    temporary file is a sibling of fixed name, so one left by a kill is overwritten by the next
    call; two writers of one path at the same time need `shared`, where each has its own and the
    last one's content stays. Raises ArtifactError.
    """
    temporary = own_temporary_path(path) if shared else temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove_if_there(temporary)
        raise ArtifactError.from_os_error(error, path) from error
    except BaseException:
        _remove_if_there(temporary)
        raise


def rename_whole(source: Path, target: Path) -> None:
    """Give a file that is whole its name: even after a power failure it is that file, or none.

    Both lie in one folder. Raises OSError.
    """
    _sync(source, os.O_RDONLY)
    os.replace(source, target)
    _sync_folder(target.parent)


def temporary_path(path: Path) -> Path:
    """Where `replace_atomically` builds the file; a kill may leave it there."""
    return path.with_name(f".{path.name}.tmp")


def own_temporary_path(path: Path) -> Path:
    """As `temporary_path`, of this process alone; what killed ones left there is removed.

    That is what has been at rest for an hour.
    """
    _remove_left_behind(path)
    return path.with_name(f".{path.name}.{_OWN}.tmp")


class AppendFile:
    """A file of lines that only grows; lines are handed to the system whole.

    A killed process loses no line but those that were allowed to wait and that nothing followed;
    `sync` makes them outlive a power failure too. A last line torn by an earlier end is dropped
    when opening. Raises ArtifactError from every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._end_bytes = self._drop_torn_line()
        except OSError as error:
            raise ArtifactError.from_os_error(error, path) from error
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._synced = False

    @property
    def size_bytes(self) -> int:
        """Length of the file, whole lines all of it, those that wait included."""
        return self._end_bytes + self._waiting_bytes

    def append(self, line: bytes, *, may_wait: bool = False) -> None:
        """Add one line, its newline included, and hand it over with those that wait.

        With `may_wait` it stays in memory until a line that may not, `flush`, `sync`, `close`, or
        until 64 KiB wait.
        """
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if not may_wait or self._waiting_bytes >= _MAX_WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand the waiting lines to the system; all of them or, when that fails, none: they go."""
        if not self._waiting:
            return
        lines = b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._synced = False
        try:
            written_bytes = os.pwrite(self._descriptor, lines, self._end_bytes)
            while written_bytes < len(lines):
                position = self._end_bytes + written_bytes
                written_bytes += os.pwrite(self._descriptor, lines[written_bytes:], position)
        except OSError as error:
            # Where even this fails the part stays, as a torn line that the next opening drops.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end_bytes)
            raise ArtifactError.from_os_error(error, self._path) from error
        self._end_bytes += len(lines)

    def sync(self) -> None:
        """Hand over the lines that wait, and wait until all are on the disk."""
        self.flush()
        if self._synced:
            return
        try:
            os.fsync(self._descriptor)
            self._synced = True
        except OSError as error:
            raise ArtifactError.from_os_error(error, self._path) from error

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _drop_torn_line(self) -> int:
        end_bytes = _whole_lines_bytes(self._descriptor)
        if end_bytes < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, end_bytes)
        return end_bytes


def rewrite_lines(path: Path, change: Callable[[bytes], bytes | None]) -> None:
    """Replace the file atomically by what `change` makes of each whole line; None drops it.

    A torn last line is dropped unseen. Memory stays bounded. Raises ArtifactError.
    """

    def write(target: BinaryIO) -> None:
        with open(path, "rb") as source:
            for line in source:
                changed = change(line) if line.endswith(b"\n") else None
                if changed is not None:
                    target.write(changed)

    replace_atomically(path, write)


def _whole_lines_bytes(descriptor: int) -> int:
    """Length of an open file up to and including its last newline."""
    end_bytes = os.fstat(descriptor).st_size
    while end_bytes > 0:
        start_bytes = max(0, end_bytes - _TAIL_BLOCK_BYTES)
        newline = os.pread(descriptor, end_bytes - start_bytes, start_bytes).rfind(b"\n")
        if newline >= 0:
            return start_bytes + newline + 1
        end_bytes = start_bytes
    return 0


def _remove_left_behind(path: Path) -> None:
    with suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if time.time() - left.stat().st_mtime > _AT_REST_S:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_there(path: Path) -> None:
    # Where even this fails, the folder is gone or read-only: what led here is being reported.
    with suppress(OSError):
        path.unlink(missing_ok=True)
