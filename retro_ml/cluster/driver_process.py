"""This process as Ray's driver: its variables, its signal handlers, Ray's errors in words."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray._private import utils

SET_BY_RAY = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")
"""Variables that ray.init leaves in this process's environment."""
SPIN_COUNT = "30000"
"""GOMP_SPINCOUNT of the trials' processes: for how long PyTorch's threads wait awake. 1.5 ms spans
the gaps between an update's operations (an update of 32 takes 26 ms instead of 31 with 1,000), and
ends soon after the update, when the emulator needs the cores."""


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables (None: takes away) for Ray and what it starts; puts back what was there."""
    before = {name: os.environ.get(name) for name in (*values, *SET_BY_RAY)}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM, which ray.init replaces twice.

    Once by one that just ends us: at no time may it be in place, since a signal can come while Ray
    starts. And below Python by Abseil's, which writes a stack to the screen, hands the signal on,
    and aborts the process three seconds later (2.60, RayLog::InstallFailureSignalHandler), in the
    middle of the last checkpoint.
    """
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    alarm_before = signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        _put_back_sigterm()
        if alarm_before == (0.0, 0.0):  # a signal that came in between has set it
            signal.alarm(0)


def _put_back_sigterm() -> None:
    """Python knows its handler still; set again, it is the system's too."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def worker_environment() -> dict[str, str]:
    """Variables that trials' processes want, here and on a cluster."""
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)}


def first_line(error: Exception) -> str:
    """What an exception of Ray's says, short enough for a message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
