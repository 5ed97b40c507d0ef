"""The processes of one program, its daemons included, and the memory that they take.

Ray starts daemons that outlive their parents' ids and workers that write their title over their own
environment. A program's processes are therefore those that carry its marker in their environment,
the descendants of these, and whatever was one of them before. Linux only: everything is read from
/proc.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "RETRO_ML_BENCHMARK"
"""The environment variable that marks a program's processes; its value is the program's own."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, also when its number has been given to another since."""

    pid: int
    started_ticks: int


class ProcessFamily:
    """The processes whose environment says `MARKER=value`, and their descendants."""

    def __init__(self, value: str) -> None:
        self._needle = f"{MARKER}={value}".encode()
        self._known: set[ProcessId] = set()
        self._unmarked: set[ProcessId] = set()

    def find(self) -> list[int]:
        """The ids of those that are alive (zombies are not)."""
        alive = {process: parent for process, parent in map(_read_stat, _all_pids()) if process}
        members = {process.pid for process in alive if process in self._known}
        members |= {process.pid for process in alive if self._is_marked(process)}
        grown = True
        while grown:
            children = {process.pid for process, parent in alive.items() if parent in members}
            grown = not children <= members
            members |= children
        self._known |= {process for process in alive if process.pid in members}
        return sorted(members)

    def measure(self) -> tuple[int, int]:
        """How many there are; the sum of their PSS in bytes: shared memory counts once."""
        members = self.find()
        return len(members), sum(read_pss_bytes(pid) for pid in members)

    def kill(self) -> None:
        """Ends every one of them at once, until none is left."""
        for _ in range(100):
            members = self.find()
            if not members:
                return
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _is_marked(self, process: ProcessId) -> bool:
        # Asked once of each: a process gets its marker with its first environment.
        if process in self._known or process in self._unmarked:
            return process in self._known
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            return False
        if self._needle in environ.split(b"\0"):
            return True
        self._unmarked.add(process)
        return False


def read_pss_bytes(pid: int) -> int:
    """The proportional set size of one process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_stat(pid: int) -> tuple[ProcessId | None, int]:
    """A process and its parent's id; None for what is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, 0
    # The name, in parentheses, may hold anything.
    state, parent, *rest = text.rpartition(")")[2].split()
    return (None if state == "Z" else ProcessId(pid, int(rest[17]))), int(parent)
