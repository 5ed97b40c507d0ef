"""SIGINT and SIGTERM: the first asks the run to stop, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPING = b"retro-stopping"
"""15 bytes at most; docker/bin/end-node knows it."""


class StopSignals:
    """Handlers for the time of a `with` block; elsewhere than in the main thread it does nothing.

    `on_first` and `before_exit` run inside the signal handler: they may set flags and write to a
    file descriptor, but take no lock that the interrupted code could hold.
    """

    def __init__(self, *, on_first: Callable[[], None], before_exit: Callable[[], None]) -> None:
        self.signum: int | None = None
        self._on_first = on_first
        self._before_exit = before_exit
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            # None: a handler that was not set from Python cannot be set from Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._before_exit()
            os._exit(128 + signum)
        self.signum = signum
        _tell_others()
        self._on_first()


def _tell_others() -> None:
    """The process's name, as ps shows it, says that it has been asked.

    For whoever would ask too, e.g. a pod's preStop hook after Ray's jobs API: a second signal would
    end the process without its last checkpoint.
    """
    with suppress(OSError):  # a system without /proc
        Path("/proc/self/comm").write_bytes(STOPPING)
