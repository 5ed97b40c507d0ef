"""Says so where a trial waits for a node that is not there.

What no node can hold, Ray lets wait for ever, and says so nowhere that a user looks (2.60). Before
a start `placement` refuses it. Here is what comes later: the only node with room for it has died.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from retro_ml.cluster.bus_bridge import experiment_id
from retro_ml.cluster.placement import Node, bundles_of, explain_lack, fits
from retro_ml.cluster.trial_actor import EXPERIMENT
from retro_ml.core.experiments.sections import ResourcesConfig

logger = logging.getLogger("retro_ml.cluster")

LOOK_S = 10.0
"""Between two looks at which nodes there are (this project's choice)."""
MOST_NAMED = 3
"""Trials that a message names."""


class NodeWatch(Callback):
    """Warns once of trials that no node has room for, and says when one has again.

    Args:
        read_nodes: the nodes that there are now; None: nobody knows.
    """

    def __init__(self, read_nodes: Callable[[], Sequence[Node] | None]) -> None:
        self._read_nodes = read_nodes
        self._looked_at_s = -math.inf
        self._stranded: set[str] = set()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks, if it is time and there is a trial that waits."""
        if time.monotonic() - self._looked_at_s < LOOK_S:
            return
        self._looked_at_s = time.monotonic()
        waiting = [one for one in trials if one.status in (TuneTrial.PENDING, TuneTrial.PAUSED)]
        nodes = self._read_nodes() if waiting else ()
        if nodes is None:
            return
        lacks: dict[str, list[str]] = {}
        for trial in waiting:
            lack = _explain_lack(trial.config, nodes)
            if lack is not None:
                lacks.setdefault(lack, []).append(experiment_id(trial))
        unfinished = {experiment_id(one) for one in trials if not one.is_finished()}
        self._tell(lacks, unfinished=unfinished)

    def _tell(self, lacks: dict[str, list[str]], *, unfinished: set[str]) -> None:
        stranded = {name for names in lacks.values() for name in names}
        for lack, names in lacks.items():
            new = [name for name in names if name not in self._stranded]
            if new:
                logger.warning("no node has room for %s, waiting for one: %s", _listed(new), lack)
        freed = sorted((self._stranded - stranded) & unfinished)
        if freed:
            logger.warning("a node has room again for %s", _listed(freed))
        self._stranded = stranded


def _explain_lack(config: dict[str, Any], nodes: Sequence[Node]) -> str | None:
    """Why a trial of this config, which is Tune's, has no room on these nodes; None if it has."""
    resources = ResourcesConfig.model_validate(config[EXPERIMENT]["resources"])
    cpus, gpus, memory_bytes = (config[name] for name in ("num_cpus", "num_gpus", "memory_bytes"))
    # Its env runners may not be on the nodes that it spares, whatever has become of the others.
    others = sum(int(node.cpus) for node in nodes if node.node_id not in config["spared_nodes"])
    if config["spared_nodes"] and others < resources.num_env_runners:
        return (
            f"its {resources.num_env_runners} env runners are to be on nodes without GPUs, which "
            f"have {others} CPUs; start one with more, or give the same command again"
        )
    if fits(bundles_of(resources, cpus, gpus, memory_bytes), nodes):
        return None
    return explain_lack(resources, nodes, num_cpus=cpus, num_gpus=gpus, memory_bytes=memory_bytes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
