"""Whose a run in storage is: an object that one driver writes at a time, and that others read.

Storage has no locks, so the claim is advisory: a driver writes its name, renews it every few
seconds, and sees at a renewal when another one has taken over. A claim whose driver is dead on this
machine is taken over at once; another machine's when it has not been renewed for half a minute. A
generation counts the drivers of a run, so that a staging place of long ago is known from a new one.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retro_ml.core.artifacts.mirror import Mirror
from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError
from retro_ml.core.artifacts.storage import replace_atomically
from retro_ml.core.engine.processes import describe_machine, read_started_ticks
from retro_ml.core.engine.run_lock import LEASE_S, RunLocked
from retro_ml.core.engine.sightings import find_first_seen_s
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.run_paths import CLAIM_NAME

RENEWAL_S = 10.0
"""Three renewals fit into a lease (this project's choice)."""
_POLL_S = 1.0
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Claim:
    """One driver's claim to a run."""

    generation: int
    nonce: str
    host: str
    machine: str
    """As `describe_machine` tells it."""
    pid: int
    started_ticks: int
    renewals: int = 0
    released: bool = False
    complete: bool = False
    """Everything that the driver made is in storage."""

    def __str__(self) -> str:
        return f"process {self.pid} on {as_line(self.host, longest=100)}"

    @classmethod
    def read(cls, content: bytes) -> Claim | None:
        """None for what is no claim."""
        try:
            claim = cls(**json.loads(content[:_MOST_BYTES]))
        except (ValueError, TypeError, RecursionError):
            return None
        whole = all(
            isinstance(value, type(getattr(_EXAMPLE, name)))
            for name, value in asdict(claim).items()
        )
        return claim if whole else None

    def write(self) -> bytes:
        """As `read` takes it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def save(self, path: Path) -> None:
        """The copy beside the run's files here. Raises ArtifactError."""
        replace_atomically(path, lambda file: file.write(self.write()))


_EXAMPLE = Claim(0, "", "", "", 0, 0)


def read_claim(run: RemoteFolder) -> Claim | None:
    """The claim in storage. Raises StorageError."""
    try:
        return Claim.read(run.get(CLAIM_NAME))
    except ObjectMissing:
        return None


def outlive(before: Claim | None, run: RemoteFolder, *, notice: Callable[[str], None]) -> None:
    """Returns when nobody holds the claim.

    Raises:
        RunLocked: its holder is alive.
        StorageError: storage does not answer.
    """
    if before is None or before.released:
        return
    if before.machine == describe_machine():
        if read_started_ticks(before.pid) == before.started_ticks and before.pid != os.getpid():
            raise RunLocked(str(before))
        return
    end_s = find_first_seen_s(run.uri, before) + LEASE_S
    if time.monotonic() < end_s:
        notice(f"waiting for {before}, which may be alive, {LEASE_S:g} s at most")
    while time.monotonic() < end_s:
        time.sleep(_POLL_S)
        now = read_claim(run)
        if now is None or now.released:
            return
        if now != before:
            raise RunLocked(str(now))


def look_at(run: RemoteFolder) -> float | None:
    """As `run_lock.look_at`. Raises StorageError."""
    claim = read_claim(run)
    if claim is None or claim.released or claim.machine == describe_machine():
        return None
    return find_first_seen_s(run.uri, claim) + LEASE_S


def is_held(path: Path) -> bool:
    """Whether a driver that sends to storage was at work when its claim was last written.

    Args:
        path: of a claim fetched from storage, with the time it was written there. One look can only
            go by the clocks, which is enough to show a run's state.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        claim = Claim.read(path.read_bytes())
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return claim is not None and not claim.released and age_s < LEASE_S + RENEWAL_S


class ClaimKeeper(Mirror):
    """Holds a claim and renews it.

    Args:
        run: the run's folder in storage.
        generation: of this driver.
    """

    level = logging.INFO  # whoever sends the files tells the user

    def __init__(self, run: RemoteFolder, *, generation: int) -> None:
        super().__init__(run, interval_s=RENEWAL_S)
        pid = os.getpid()
        self.claim = Claim(
            generation=generation,
            nonce=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=describe_machine(),
            pid=pid,
            started_ticks=read_started_ticks(pid) or 0,
        )
        self.taken_by: Claim | None = None
        """The driver that has taken over."""

    def check(self) -> None:
        """Raises StorageError where another driver has taken over."""
        if self.taken_by is not None:
            raise StorageError(
                f"{self.taken_by} has taken over {self.remote.uri}, so nothing more is sent there",
                final=True,
            )

    def release(self, *, complete: bool) -> None:
        """Lets go of the claim, after `close`. Raises StorageError."""
        self.check()
        self.claim = replace(self.claim, released=True, complete=complete)
        self.remote.put(CLAIM_NAME, self.claim.write())

    def _send(self) -> None:
        now = read_claim(self.remote)
        if now is not None and now.nonce != self.claim.nonce:
            self.taken_by = now
        self.check()
        self.claim = replace(self.claim, renewals=self.claim.renewals + 1)
        self.remote.put(CLAIM_NAME, self.claim.write())
