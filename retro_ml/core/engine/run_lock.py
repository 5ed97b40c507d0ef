"""One driver per run: a lock on the run's folder, and who holds it.

The lock is an flock on `run.lock`, which the system takes back from a process however it dies, so
a dead holder on this machine is known at once. Where another machine wrote the file, its system
cannot be asked: the holder there changes a counter in the file every few seconds, and one whose
counter stands still for half a minute is taken for dead. No clocks are compared. A holder that was
taken for dead and is not finds the other's name at its next renewal, and ends its run.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retro_ml.core.engine.lock_renewal import renewer
from retro_ml.core.engine.processes import Process, describe_machine, is_alive, read_started_ticks
from retro_ml.core.engine.sightings import find_first_seen_s

LEASE_S = 30.0
"""How long another machine's counter may stand still before its holder counts as dead."""
_POLL_S = 0.5
_FILE_BYTES = 1024
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class RunLocked(Exception):
    """Another driver holds the run; the message says which."""


class LockLost(Exception):
    """Another driver has taken over; the message says which."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What the lock's file says of its holder."""

    host: str
    machine: str
    """As `describe_machine` tells it; in the files of earlier versions its boot alone."""
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
            machine=describe_machine(),
            nonce=secrets.token_hex(8),
            driver=Process(os.getpid(), read_started_ticks(os.getpid()) or 0),
        )
        self._locked = False
        """By flock."""
        self._writing = threading.Lock()
        self.error: LockLost | None = None
        """Set where another driver has taken over: from then on nothing of the run is ours."""

    def acquire(self, *, lease_s: float = LEASE_S, notice: Callable[[str], None]) -> None:
        """Takes the lock, over from a dead holder if need be.

        Args:
            lease_s: how long another machine's holder, and a dead driver's trainer, are waited for.
            notice: is told why it takes time.

        Raises:
            RunLocked: a holder is alive.
            OSError: the file cannot be made, or nothing can be started that renews it.
        """
        descriptor = self._lock_file()
        try:
            before = _read_lease(descriptor)
            if before is not None:
                self._outlive(before, descriptor, lease_s=lease_s, notice=notice)
            self._descriptor = descriptor
            self._write()
            if before is not None and not self._is_here(before):
                self._prove_own(descriptor)
        except BaseException:
            self._descriptor = None
            os.close(descriptor)
            raise
        try:
            renewer.add(self)
        except RuntimeError as error:  # a limit on processes
            self.release()
            raise OSError(errno.EAGAIN, str(error)) from error

    def note_trainer(self, pid: int) -> None:
        """Remembers the process that trains on this machine, for whoever takes over."""
        started_ticks = read_started_ticks(pid)
        if started_ticks is not None:
            self._change(trainer=Process(pid, started_ticks))

    def renew(self) -> None:
        """Shows that the holder is alive."""
        self._change(renewals=self._lease.renewals + 1)

    def release(self) -> None:
        """Gives the lock back; nothing of it remains. Does nothing where it is not held."""
        with self._writing:
            if self._descriptor is None:
                return
            with suppress(OSError):  # the folder is gone or read-only: the lock itself is freed
                # A folder that was renamed took the file along; another's may be in its place.
                is_there = os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
                if is_there and self._find_other() is None:
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        renewer.remove(self)

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
                if holder is not None and self._is_here(holder) and is_alive(holder.driver):
                    raise RunLocked(str(holder)) from None
                return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            # The holder before may have removed the file between opening and locking.
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == os.stat(self._path).st_ino:
                    self._locked = True
                    return descriptor
            os.close(descriptor)

    def _outlive(
        self, before: Lease, descriptor: int, *, lease_s: float, notice: Callable[[str], None]
    ) -> None:
        here, trainer = self._is_here(before), before.trainer
        if here and (trainer is None or not is_alive(trainer)):
            return
        what = f"the trainer of the dead {before}" if here else f"{before}, which may be alive"
        # A trainer here has no counter: it is asked for from now on.
        since_s = time.monotonic() if here else find_first_seen_s(str(self._path), before)
        end_s = since_s + lease_s
        if time.monotonic() < end_s:
            notice(f"waiting for {what}, {lease_s:g} s at most")
        while time.monotonic() < end_s:
            time.sleep(_POLL_S)
            if here and trainer is not None and not is_alive(trainer):
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

    def _is_here(self, lease: Lease) -> bool:
        """Whether its processes can be looked for, or are known dead by the lock that we got.

        An flock reaches across the containers of one machine. Without it only what has our own
        process ids can be asked for.
        """
        if self._locked:
            return _is_same_boot(lease.machine, self._lease.machine)
        return lease.machine == self._lease.machine

    def _change(self, **fields: Any) -> None:
        with self._writing:
            if self._descriptor is None or self.error is not None:
                return
            self._lease = replace(self._lease, **fields)
            # A disk that takes no more has its own message from whoever writes results.
            with suppress(OSError):
                other = self._find_other()
                if other is None:
                    self._write()
                else:
                    self.error = LockLost(
                        f"{other} has taken over {self._path.parent}, as if this process were "
                        "dead; nothing more is written there"
                    )

    def _find_other(self) -> Lease | None:
        """Another driver's lease in our file."""
        assert self._descriptor is not None
        holder = _read_lease(self._descriptor)
        return None if holder is None or holder.nonce == self._lease.nonce else holder

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
    found = _read_file(path)
    if found is None:
        return None
    lease, age_s = found
    here = lease.machine == describe_machine()
    alive = is_alive(lease.driver) if here else age_s < LEASE_S
    return str(lease) if alive else None


def look_at(path: Path) -> float | None:
    """When another machine's lease will have run out, if it does not move from now on.

    In seconds of time.monotonic; None where no other machine has one.
    """
    found = _read_file(path)
    if found is None:
        return None
    lease, _ = found
    since_s = find_first_seen_s(str(path), lease)
    return None if _is_same_boot(lease.machine, describe_machine()) else since_s + LEASE_S


def _is_same_boot(machine: str, other: str) -> bool:
    return machine.partition("/")[0] == other.partition("/")[0]


def _read_file(path: Path) -> tuple[Lease, float] | None:
    """The lease and its age in seconds, by the clocks; None where there is none."""
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
    return None if lease is None else (lease, age_s)


def _read_lease(descriptor: int) -> Lease | None:
    """None for a new file, and for one that is no lease: its writer died at its first write."""
    try:
        fields = json.loads(os.pread(descriptor, _FILE_BYTES, 0))
        if "boot_id" in fields:  # of an earlier version
            fields["machine"] = fields.pop("boot_id")
        fields["driver"] = Process(**fields["driver"])
        fields["trainer"] = Process(**fields["trainer"]) if fields["trainer"] else None
        lease = Lease(**fields)
        return lease if isinstance(lease.machine, str) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
