"""What the figures were measured on: machine, system, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "ray", "stable-baselines3", "ale-py", "gymnasium", "numpy", "retro_ml")
# PyTorch is too large for the process that measures.
_ASK_BF16 = (
    "import torch; from retro_ml.rllib.machine import resolve_precision; "
    "print(resolve_precision('auto', torch.device('cpu')))"
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, bf16 in hardware, system."""
    answer = subprocess.run(
        [sys.executable, "-c", _ASK_BF16], capture_output=True, text=True, check=True
    )
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "bf16_in_hardware": answer.stdout.strip() == "bf16",
        "system": _system(),
    }


def describe_versions() -> dict[str, str | None]:
    """Of Python and of what does the work; None for what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def describe_commit(root: Path) -> str | None:
    """The commit of the checkout, "+ changes" where files differ; None without git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        # What this program writes does not count.
        changed = _git(
            root, "status", "--porcelain", "--", ".", ":!docs/benchmarks.md", ":!docs/data"
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} + changes" if changed else head


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()


def _system() -> str:
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel
