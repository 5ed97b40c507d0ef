"""SIGINT and SIGTERM: the first asks the run to stop, a SIGINT after it ends the process at once.

A SIGTERM asks and no more: whoever ends a machine's work may send several (Kubernetes one by Ray's
jobs API and one by the pod's preStop hook), and the last checkpoint is worth waiting for.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger("retro_ml.engine")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Handlers for the time of a `with` block; elsewhere than in the main thread it does nothing.

    Args:
        on_first: called by the first signal. Inside the handler, so it may set flags and write to a
            file descriptor, but takes no lock that the interrupted code could hold.
        before_exit: called before the process ends at once, inside the handler too.
        asked_by: the signal that asked to stop before this block; a SIGTERM only repeats it.
    """

    def __init__(
        self,
        *,
        on_first: Callable[[], None],
        before_exit: Callable[[], None],
        asked_by: int | None = None,
    ) -> None:
        self.signum: int | None = None
        self._on_first = on_first
        self._before_exit = before_exit
        self._asked_by = asked_by
        self._repeated = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            # None: a handler that was not set from Python cannot be set from Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if self._repeated:  # only now: logging takes locks
            logger.info("SIGTERM came again while stopping (%d)", self._repeated)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTERM and (self.signum or self._asked_by) is not None:
            self._repeated += 1
        elif self.signum is not None:
            self._before_exit()
            os._exit(128 + signum)
        else:
            self.signum = signum
            self._on_first()
