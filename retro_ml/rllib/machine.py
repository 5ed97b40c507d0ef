"""What the process at hand can compute with: precision and memory."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Processor flags that mean bfloat16 in hardware (x86: AVX512-BF16, AMX; Arm: FEAT_BF16)."""


def keep_freed_memory() -> None:
    """Lets glibc's malloc reuse large blocks instead of handing each one back to the kernel.

    An update frees and asks for the same tens of megabytes over and over; fetched from the kernel
    each time, every page of them costs a fault (a tenth of an update of 32). Without glibc nothing
    is done. The numbers are M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)
        mallopt(-3, 2**30)


def leave_compiler_out() -> None:
    """Keeps PyTorch's optimizers from importing its compiler, which nothing here uses.

    They are marked as not to be compiled by a wrapper whose first call imports torch._dynamo for
    it: two to three seconds at every start. It remembers its answer on the function it wraps
    (torch/_compile.py, 2.8 to 2.13); where a release does it otherwise, this changes nothing.
    """
    for member in vars(torch.optim.Optimizer).values():
        wrapped = getattr(member, "__wrapped__", None)
        if wrapped is not None:
            setattr(wrapped, "__dynamo_disable", wrapped)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`"auto"` becomes `"bf16"` where the device has it in hardware, else `"fp32"`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_has_bf16()
    return "bf16" if native else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return not BF16_CPU_FLAGS.isdisjoint(flags.split())
    return False
