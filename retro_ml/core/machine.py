"""What this process may use of the machine: CPUs and memory."""

from __future__ import annotations

import os
from pathlib import Path


def count_cpus() -> int:
    """CPUs that this process may run on, at least 1."""
    return max(len(os.sched_getaffinity(0)), 1)


def count_free_memory() -> int:
    """Bytes that this process can still take, of the machine or of its container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, max(int(limit.read_text()) - int(used.read_text()), 0))
    return free
