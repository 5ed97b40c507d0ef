"""What renews the locks that this process holds: one thread, there from the first to the last.

A sweep may hold thousands.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

RENEWAL_S = 5.0
"""From one renewal to the next, unless all of them together take longer."""


class Renewable(Protocol):
    """Whatever shows that it is alive by changing something."""

    def renew(self) -> None:
        """Changes it; called in the renewing thread."""


class Renewer:
    """The thread and what it renews."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begins anew, as in a forked child: it has neither its parent's thread nor its locks."""
        self._guard = threading.Lock()
        self._held: set[Renewable] = set()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def add(self, held: Renewable) -> None:
        """Renews it from now on. Raises RuntimeError where the thread cannot be started."""
        with self._guard:
            if self._thread is None:
                ended = threading.Event()
                thread = threading.Thread(
                    target=self._work, args=(ended,), name="run-locks", daemon=True
                )
                thread.start()
                self._thread, self._ended = thread, ended
            self._held.add(held)

    def remove(self, held: Renewable) -> None:
        """Renews it no more; the thread has ended where it was the last."""
        with self._guard:
            self._held.discard(held)
            thread = self._thread
            if self._held or thread is None:
                return
            self._thread = None
            self._ended.set()
        thread.join()

    def _work(self, ended: threading.Event) -> None:
        pause_s = RENEWAL_S
        while not ended.wait(pause_s):
            began_s = time.monotonic()
            with self._guard:
                held = list(self._held)
            for one in held:
                one.renew()
            pause_s = max(0.0, RENEWAL_S - (time.monotonic() - began_s))


renewer = Renewer()
"""This process's."""
os.register_at_fork(after_in_child=renewer.forget)
