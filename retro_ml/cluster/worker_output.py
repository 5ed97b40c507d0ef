"""What Ray's workers print goes to the run's log instead of the screen.

Our own Ray has no log monitor (`embedded`): Ray's class of that name reads the files in a thread of
the driver. Another Ray's log monitor sends the lines to the driver, where Ray prints them and
offers no other place for them (2.60); the dispatcher that hands them on is private to Ray, so its
name may change. That workaround can go when ray.init takes a handler.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import log_monitor
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

logger = logging.getLogger("retro_ml.workers")
PRINTING_HANDLER = "ray_print_logs"
LOGGING_HANDLER = "retro_ml_log"
READ_INTERVAL_S = 0.5
MAX_PASSES = 100
"""Each reads up to a hundred lines of every file."""


@contextmanager
def log_worker_output(logs_dir: Path | None) -> Iterator[None]:
    """While active, lines of workers become messages of `retro_ml.workers`.

    Args:
        logs_dir: where our own Ray's processes write; None on another Ray.
    """
    with _follow_files(logs_dir) if logs_dir is not None else _take_over_dispatcher():
        yield


@contextmanager
def _follow_files(logs_dir: Path) -> Iterator[None]:
    level = log_monitor.logger.level
    log_monitor.logger.setLevel(logging.WARNING)  # it tells of every file that it opens
    monitor = log_monitor.LogMonitor("127.0.0.1", str(logs_dir), _Log(), log_monitor.is_proc_alive)
    done = threading.Event()

    def follow() -> None:
        while not done.wait(READ_INTERVAL_S):
            _read_on(monitor)

    thread = threading.Thread(target=follow, name="worker-output", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _read_on(monitor)
        log_monitor.logger.setLevel(level)


def _read_on(monitor: log_monitor.LogMonitor) -> None:
    """What was written meanwhile; what a worker writes without end waits for the next time."""
    try:
        monitor.update_log_filenames()
        monitor.open_closed_files()
        for _ in range(MAX_PASSES):
            if not monitor.check_log_files_and_publish_updates():
                break
    except OSError as error:  # too many open files, say: no reason to end a run
        logger.warning("the workers' output cannot be read: %s", error)


class _Log:
    """Stands where the log monitor has a client of Ray's head to publish to."""

    def publish_logs(self, batch: dict[str, Any]) -> None:
        _log(batch)


@contextmanager
def _take_over_dispatcher() -> Iterator[None]:
    printing = [pair for pair in dispatcher.handlers if pair[0] == PRINTING_HANDLER]
    dispatcher.remove_handler(PRINTING_HANDLER)
    dispatcher.add_handler(LOGGING_HANDLER, _log)
    try:
        yield
    finally:
        dispatcher.remove_handler(LOGGING_HANDLER)
        for name, handler in printing:
            dispatcher.add_handler(name, handler)


def _log(batch: dict[str, Any]) -> None:
    source = batch.get("pid")
    if source == "autoscaler":  # a table of idle resources every five seconds
        return
    for line in batch.get("lines", ()):
        logger.info("(pid %s) %s", source, line)
