"""Notices that Ray itself is gone, before it ends this process for that.

Without its head Ray's driver waits for a minute and then ends the whole process from within, in the
middle of whatever it writes; without its node Tune waits for resources for ever (2.60). So the
daemons of an embedded Ray are looked at every second, and the port of a cluster's head is tried.
"""

from __future__ import annotations

import socket
import threading
import time

import ray
from ray._private import ray_constants, worker

from retro_ml.cluster.connect import read_nodes
from retro_ml.cluster.placement import Node

INTERVAL_S = 1.0
ATTACHED_GRACE_S = 45.0
"""How long a cluster's head may be away: it may come back, and Ray's own patience is 60 s."""
DAEMONS = {ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET}


class HeadLost(BaseException):
    """Ray is gone. No Exception: Tune would wait for trials that can no longer end."""


class HeadWatch:
    """Watches for the time of a `with` block.

    Args:
        embedded: whether Ray's daemons are this process's own, and nobody will start them again.
    """

    def __init__(self, *, embedded: bool) -> None:
        self.lost = False
        self._away = False
        self._look = self._look_at_daemons if embedded else self._knock_at_head
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self._seen_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)

    def __enter__(self) -> HeadWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def read_nodes(self) -> tuple[Node, ...] | None:
        """The nodes as they are now; None while the head does not answer: the question may hang."""
        return None if self._away else read_nodes()

    def _watch(self) -> None:
        while not self.lost and not self._ended.wait(INTERVAL_S):
            self.lost = not self._look()

    def _look_at_daemons(self) -> bool:
        return DAEMONS.isdisjoint(name for name, _ in worker._global_node.dead_processes())

    def _knock_at_head(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=INTERVAL_S).close()
        except OSError:
            self._away = True
            return time.monotonic() - self._seen_s < ATTACHED_GRACE_S
        self._away = False
        self._seen_s = time.monotonic()
        return True
