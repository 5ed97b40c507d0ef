"""What Ray's workers print goes to the run's log instead of the screen.

Ray prints its workers' output on the driver's standard streams and offers no other place for it
(2.60); the dispatcher that hands the lines on is private to Ray, so its name may change. The
workaround can go when ray.init takes a handler.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

logger = logging.getLogger("retro_ml.workers")
PRINTING_HANDLER = "ray_print_logs"
LOGGING_HANDLER = "retro_ml_log"


@contextmanager
def log_worker_output() -> Iterator[None]:
    """While active, lines of workers become messages of `retro_ml.workers`."""
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
