"""One driver per run: a lock on the run's folder, and who holds it.

The lock is an flock on `run.lock`, which the system takes back from a process however it dies, so
a dead holder on this machine is known at once. Where another machine wrote the file, its system
cannot be asked: the holder there changes a counter in the file every few seconds, and one whose
counter stands still for half a minute is taken for dead. No clocks are compared.

A driver that was killed may leave its training process behind for a moment; whoever takes over
waits for its end, so that never two of them write checkpoints.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEASE_S = 30.0
"""How long another machine's counter may stand still before its holder counts as dead."""
RENEWAL_S = 5.0
_POLL_S = 0.5
_FILE_BYTES = 1024
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class RunLocked(Exception):
    """Another driver holds the run; the message says which."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of one machine, also when its number is given to another later."""

    pid: int
    started_ticks: int


@dataclass(frozen=True, slots=True)
class Lease:
    """What the lock's file says of its holder."""

    host: str
    boot_id: str
    """Tells machines apart, and one machine before and after a restart."""
    nonce: str
    driver: Process
    trainer: Process | None = None
    """The process that trains, where it runs on the same machine."""
    renewals: int = 0

    def __str__(self) -> str:
        return f"process {self.driver.pid} on {self.host}"


class RunLock:
    """The lock of one run's folder.

    Args:
        path: the lock's file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._lease = Lease(
            host=socket.gethostname(),
            boot_id=_read_boot_id(),
            nonce=secrets.token_hex(8),
            driver=Process(os.getpid(), read_started_ticks(os.getpid()) or 0),
        )
        self._writing = threading.Lock()
        self._released = threading.Event()
        self._renewer: threading.Thread | None = None

    def acquire(self, *, lease_s: float = LEASE_S, notice: Callable[[str], None]) -> None:
        """Takes the lock, over from a dead holder if need be.

        Args:
            lease_s: how long another machine's holder, and a dead driver's trainer, are waited for.
            notice: is told why it takes time.

        Raises:
            RunLocked: a holder is alive.
            OSError: the file cannot be made.
        """
        descriptor = self._lock_file()
        try:
            before = _read_lease(descriptor)
            if before is not None:
                self._outlive(before, descriptor, lease_s=lease_s, notice=notice)
            self._descriptor = descriptor
            self._write()
            if before is not None and before.boot_id != self._lease.boot_id:
                self._prove_own(descriptor)
        except BaseException:
            self._descriptor = None
            os.close(descriptor)
            raise
        self._renewer = threading.Thread(target=self._renew, name="run-lock", daemon=True)
        self._renewer.start()

    def note_trainer(self, pid: int) -> None:
        """Remembers the process that trains on this machine, for whoever takes over."""
        started_ticks = read_started_ticks(pid)
        if started_ticks is not None:
            self._change(trainer=Process(pid, started_ticks))

    def release(self) -> None:
        """Gives the lock back; nothing of it remains. Does nothing where it is not held."""
        with self._writing:
            if self._descriptor is None:
                return
            with suppress(OSError):  # the folder is gone or read-only: the lock itself is freed
                # A folder that was renamed took the file along; another's may be in its place.
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        self._released.set()
        if self._renewer is not None:
            self._renewer.join()

    def _lock_file(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _read_lease(descriptor)
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise RunLocked(str(holder or "another process")) from None
                if error.errno not in _UNSUPPORTED:
                    raise
                if holder is not None and self._is_alive_here(holder.driver, holder):
                    raise RunLocked(str(holder)) from None
                return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            # The holder before may have removed the file between opening and locking.
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == os.stat(self._path).st_ino:
                    return descriptor
            os.close(descriptor)

    def _outlive(
        self, before: Lease, descriptor: int, *, lease_s: float, notice: Callable[[str], None]
    ) -> None:
        here = before.boot_id == self._lease.boot_id
        trainer = before.trainer
        if here and (trainer is None or not self._is_alive_here(trainer, before)):
            return
        what = f"the trainer of the dead {before}" if here else f"{before}, which may be alive"
        notice(f"waiting for {what}, {lease_s:g} s at most")
        end_s = time.monotonic() + lease_s
        while time.monotonic() < end_s:
            time.sleep(_POLL_S)
            if here and trainer is not None and not self._is_alive_here(trainer, before):
                return
            now = _read_lease(descriptor)
            if not here and now is not None and now != before:
                raise RunLocked(str(now))
        if here and trainer is not None:
            raise RunLocked(f"process {trainer.pid} on {before.host}, which trains on")

    def _prove_own(self, descriptor: int) -> None:
        """Of two machines that take over at once, the one that wrote last goes on."""
        time.sleep(2 * _POLL_S)
        holder = _read_lease(descriptor)
        if holder is not None and holder.nonce != self._lease.nonce:
            raise RunLocked(str(holder))

    def _is_alive_here(self, process: Process, lease: Lease) -> bool:
        return (
            lease.boot_id == self._lease.boot_id
            and read_started_ticks(process.pid) == process.started_ticks
        )

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL_S):
            self._change(renewals=self._lease.renewals + 1)

    def _change(self, **fields: Any) -> None:
        with self._writing:
            if self._descriptor is None:
                return
            self._lease = Lease(**{**_shallow(self._lease), **fields})
            # A disk that takes no more has its own message from whoever writes results.
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        # One write of one length: a reader finds the old lease or the new.
        assert self._descriptor is not None
        text = json.dumps(asdict(self._lease)).ljust(_FILE_BYTES - 1) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)


def find_holder(path: Path) -> str | None:
    """Who holds a run's lock, in words; None where nobody alive does. The lock is left alone.

    A holder elsewhere, on another machine or in a container, counts as alive while it renews the
    file: a look at one moment can only go by the clocks, which is enough to show a run's state.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        lease = _read_lease(descriptor)
        age_s = time.time() - os.fstat(descriptor).st_mtime
    except OSError:  # a pipe or a folder bears the name
        return None
    finally:
        os.close(descriptor)
    if lease is None:
        return None
    if lease.boot_id == _read_boot_id() and lease.host == socket.gethostname():
        alive = read_started_ticks(lease.driver.pid) == lease.driver.started_ticks
    else:
        alive = age_s < LEASE_S
    return str(lease) if alive else None


def read_started_ticks(pid: int) -> int | None:
    """When a process of this machine started, in the system's ticks; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _shallow(lease: Lease) -> dict[str, Any]:
    return {name: getattr(lease, name) for name in Lease.__dataclass_fields__}


def _read_lease(descriptor: int) -> Lease | None:
    """None for a new file, and for one that is no lease: its writer died at its first write."""
    try:
        fields = json.loads(os.pread(descriptor, _FILE_BYTES, 0))
        fields["driver"] = Process(**fields["driver"])
        fields["trainer"] = Process(**fields["trainer"]) if fields["trainer"] else None
        return Lease(**fields)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
