"""How much of its time a driver waits for the disk.

The files of lines are synced within a second or two, so that a power failure takes no more. Each
sync waits for the disk, 1 to 50 ms, in the one thread that also conducts all trials: a thousand
runs at once, or fifty on a network's file system, would leave it no time for anything else. So all
runs of a process share what it may spend: what is more waits for a later event. A single run never
notices.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.2
"""Of the time, on average (this project's choice)."""
SAVED_S = 1.0
"""What may be spent at once after a quiet time: a second holds the syncs of a few runs."""


class DiskPace:
    """Time for syncs that may wait, which comes back at `SHARE` of the clock's speed.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left_s = SAVED_S
        self._seen_s = clock()

    def allows(self) -> bool:
        """Whether a sync that may wait may be made now."""
        with self._lock:
            now_s = self._clock()
            self._left_s = min(SAVED_S, self._left_s + SHARE * (now_s - self._seen_s))
            self._seen_s = now_s
            return self._left_s > 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Spends what the block takes."""
        began_s = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._left_s -= self._clock() - began_s


PACE = DiskPace()
"""This process's."""
