"""Sending files to storage in the background: what all mirrors of a process share.

A mirror makes one pass after another: at intervals, when it is woken, and after a failure with
growing pauses. Passes are made by a handful of threads for all mirrors of the process together, so
that a thousand runs in one driver wait for each other instead of starting a thousand threads. A
failure is told once, as a warning, and so is its end; nothing is raised.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from abc import ABC, abstractmethod

from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError, jittered

logger = logging.getLogger("retro_ml.artifacts")

THREADS = 16
"""At most, for all mirrors of a process (this project's choice): they wait for answers, mostly."""
INTERVAL_S = 60.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
GIVE_UP_S = 30.0
"""How long a mirror that is to end goes on without getting anything through."""
_POLL_S = 0.1


class Mirror(ABC):
    """Keeps objects like the files of a folder: `start`, `wake` any number of times, `close`.

    Args:
        remote: where to.
        interval_s: between two passes, where nothing wakes it.
    """

    level = logging.WARNING
    """Of what is told of a failure and of its end."""

    def __init__(self, remote: RemoteFolder, *, interval_s: float = INTERVAL_S) -> None:
        self.remote = remote
        self.error: str | None = None
        """Why the last pass did not get everything there; None where it did."""
        self._interval_s = interval_s
        self._pause_s = FIRST_PAUSE_S
        self._progress_at_s = time.monotonic()
        self._wanted = self._done = 0
        self._given_up = self._closing = False
        self.running = False
        self.due_s = 0.0

    def start(self) -> None:
        """Makes passes from now on."""
        self._closing = False
        _pool.add(self)

    def wake(self) -> None:
        """Something new is worth sending now; while storage fails, it waits for the next try."""
        if self.error is None:
            _pool.wake(self)

    def ask(self) -> None:
        """Asks for a pass that begins now and gets everything there; `wait` waits for it."""
        self._wanted += 1
        self._progress_at_s = time.monotonic()
        _pool.wake(self)

    def wait(self) -> bool:
        """Whether the pass that was asked for has got everything there.

        Without anything getting through for `GIVE_UP_S` there is no more waiting.
        """
        asked_s = time.monotonic()
        while self._done < self._wanted and not self._given_up:
            if not self.running and time.monotonic() - asked_s >= FIRST_PAUSE_S:
                asked_s = time.monotonic()
                _pool.wake(self)
            if time.monotonic() - self._progress_at_s >= GIVE_UP_S:
                return False
            time.sleep(_POLL_S)
        return self._done >= self._wanted

    def give_up(self) -> None:
        """Ends a `wait` that is under way, e.g. from a signal handler."""
        self._given_up = True

    def close(self, *, patient: bool = True) -> None:
        """No passes any more.

        Args:
            patient: wait for the present object of a pass under way; else leave it hanging.
        """
        self._closing = True
        self._progress_at_s = time.monotonic()
        while patient and self.running and time.monotonic() - self._progress_at_s < GIVE_UP_S:
            time.sleep(_POLL_S)
        _pool.remove(self)

    def make_pass(self) -> float:
        """One pass, by a thread of the pool; seconds until the next."""
        wanted = self._wanted
        try:
            self._send()
        except _Closed:
            return self._interval_s
        except StorageError as error:
            return self._fail(str(error))
        except OSError as error:  # this machine's disk; whoever writes there tells it to the run
            return self._fail(f"cannot read what is to be sent: {error.strerror or error}")
        if self.error is not None:
            logger.log(self.level, "storage answers again: sent to %s", self.remote.uri)
        self.error, self._pause_s = None, FIRST_PAUSE_S
        self._done = max(self._done, wanted)
        return self._interval_s

    @abstractmethod
    def _send(self) -> None:
        """Sends what is new, calling `_note_progress`. Raises StorageError, OSError."""

    def _note_progress(self) -> None:
        """An object got through."""
        self._progress_at_s = time.monotonic()
        if self._closing:
            raise _Closed

    def _fail(self, reason: str) -> float:
        if self.error is None:
            logger.log(self.level, "%s; training goes on, it is tried again", reason)
        self.error = reason
        pause_s = jittered(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


class _Closed(Exception):
    """The mirror is to end."""


class _Pool:
    """The threads; they come with the first mirror and go with the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[tuple[float, int, Mirror]] = []
        self._mirrors: set[Mirror] = set()
        self._threads: set[threading.Thread] = set()

    def add(self, mirror: Mirror) -> None:
        with self._changed:
            self._mirrors.add(mirror)
            self._schedule(mirror, time.monotonic())
            if len(self._threads) < min(THREADS, len(self._mirrors)):
                name = f"mirror-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.add(thread)
                thread.start()

    def wake(self, mirror: Mirror) -> None:
        with self._changed:
            if mirror in self._mirrors:
                self._schedule(mirror, time.monotonic())

    def remove(self, mirror: Mirror) -> None:
        with self._changed:
            self._mirrors.discard(mirror)
            surplus = [] if self._mirrors else list(self._threads)
            self._changed.notify_all()
        for thread in surplus:
            thread.join(timeout=1.0)  # one that waits for an answer ends when it comes

    def _work(self) -> None:
        while (mirror := self._take()) is not None:
            asked_s = time.monotonic()
            try:
                pause_s = mirror.make_pass()
            except Exception:
                logger.exception("a mirror failed; its next pass is in %g s", INTERVAL_S)
                pause_s = INTERVAL_S
            with self._changed:
                mirror.running = False
                woken = mirror.due_s > asked_s
                self._schedule(mirror, mirror.due_s if woken else time.monotonic() + pause_s)

    def _schedule(self, mirror: Mirror, due_s: float) -> None:
        """Puts it into the queue, where what it had there before counts no more."""
        mirror.due_s = due_s
        heapq.heappush(self._queue, (due_s, id(mirror), mirror))
        self._changed.notify()

    def _take(self) -> Mirror | None:
        """The mirror that is due first, when it is; None ends the thread."""
        with self._changed:
            while True:
                if len(self._threads) > len(self._mirrors):
                    self._threads.discard(threading.current_thread())
                    return None
                while self._queue and not self._counts(*self._queue[0]):
                    heapq.heappop(self._queue)
                wait_s = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait_s is not None and wait_s <= 0:
                    first = heapq.heappop(self._queue)[2]
                    first.running = True
                    return first
                self._changed.wait(wait_s)

    def _counts(self, due_s: float, _: int, mirror: Mirror) -> bool:
        return mirror in self._mirrors and not mirror.running and mirror.due_s == due_s


_pool = _Pool()
