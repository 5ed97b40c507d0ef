"""Ends what an embedded Ray leaves behind when its driver is killed.

Ray's own processes may outlive a killed driver (2.60), and its folder stays for good. So a process
of its own, which imports nothing but Python's standard library, waits for the driver's death: it
reads a pipe that the driver alone holds open and that the system closes however the driver ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 5.0
"""How long Ray's processes may take to notice for themselves that the driver is dead."""
DONE = "done\n"


class Sweeper:
    """The driver's side.

    Args:
        folder: the embedded Ray's; removed if this process is killed before `dismiss`.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def note_processes(self) -> None:
        """Remembers all descendants of this process, to be ended if it is killed."""
        stats = _read_stats()
        members = {os.getpid()}
        grown = True
        while grown:
            children = {pid for pid, (parent, _) in stats.items() if parent in members}
            grown = not children <= members
            members |= children
        members -= {os.getpid(), self._process.pid}
        known = {pid: started for pid, (_, started) in stats.items() if pid in members}
        self._tell(json.dumps(known) + "\n")

    def dismiss(self) -> None:
        """There is nothing to sweep any more."""
        self._tell(DONE)
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:  # somebody killed it; the next start removes old folders too
            return


def main(folder: str) -> None:
    """The sweeper's side: waits, and sweeps unless it is dismissed."""
    known: dict[str, int] = {}
    for line in sys.stdin:
        if line == DONE:
            return
        known = json.loads(line)
    time.sleep(GRACE_S)
    stats = _read_stats()
    for name, started in known.items():
        pid = int(name)
        if pid in stats and stats[pid][1] == started:
            with suppress(ProcessLookupError):  # gone since it was looked for
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _read_stats() -> dict[int, tuple[int, int]]:
    """Of each process: its parent, and when it started in the system's ticks."""
    stats = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                # The name, in parentheses, may hold anything.
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        stats[int(name)] = int(fields[1]), int(fields[19])
    return stats


if __name__ == "__main__":
    main(sys.argv[1])
