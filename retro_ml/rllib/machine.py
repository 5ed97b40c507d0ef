"""What the process at hand can compute with: precision, threads, GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Processor flags that mean bfloat16 in hardware (x86: AVX512-BF16, AMX; Arm: FEAT_BF16)."""


def count_cpus() -> int:
    """CPUs that this process may run on, at least 1."""
    return max(len(os.sched_getaffinity(0)), 1)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`"auto"` becomes `"bf16"` where the device has it in hardware, else `"fp32"`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_has_bf16()
    return "bf16" if native else "fp32"


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return not BF16_CPU_FLAGS.isdisjoint(flags.split())
    return False
