"""Processes of this machine, told from those of others and from later ones of the same number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process of one machine, also when its number is given to another later."""

    pid: int
    started_ticks: int


def read_started_ticks(pid: int) -> int | None:
    """When a process of this machine started, in the system's ticks; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether it runs; for a process of this machine."""
    return read_started_ticks(process.pid) == process.started_ticks


def describe_machine() -> str:
    """Tells apart what process ids mean: one start of one machine, one container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
