"""How many trials of a sweep run at once, and what each of them is given."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from retro_ml.cluster.connect import Cluster, read_nodes
from retro_ml.cluster.node_watch import LOOK_S
from retro_ml.cluster.placement import (
    Node,
    bundles_of,
    choose_memory,
    count_at_once,
    find_nodes_to_spare,
    share_gpus,
)
from retro_ml.cluster.plan import count_memory
from retro_ml.cluster.trials import place, place_memory
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.machine import count_free_memory

logger = logging.getLogger("retro_ml.cluster")


class Room:
    """How many trials run at once, and what each of them gets.

    Args:
        sweep: its trials, of which none may be too large.
        cluster: what there is.
        options: whether more nodes will come.
        read_nodes: what there is later: nodes come and go; None: nobody knows.

    Raises:
        LaunchError: a trial can never be placed.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        cluster: Cluster,
        options: RunOptions | None = None,
        *,
        read_nodes: Callable[[], tuple[Node, ...] | None] = read_nodes,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._read_nodes = read_nodes
        self._nodes = cluster.all_nodes
        self._kinds = {_kind(planned.config): planned.config for planned in sweep.trials}
        self._left = {planned.experiment_id: _kind(planned.config) for planned in sweep.trials}
        self._trials = len(sweep.trials)
        self._asked = sweep.max_concurrent
        self._most = min(self._asked or self._trials, self._trials)
        self.concurrent = self._count_concurrent()
        self.takes_turns = sweep.scheduler == "pbt"
        self._placed: dict[tuple[Any, ...], tuple[int, float]] = {}
        self._memory: dict[tuple[Any, ...], float] = {}
        for config in self._kinds.values():
            self.place(config)
            self.place_memory(config)
        self._fit, self._counted_at_s = self._count_begun(), time.monotonic()

    @property
    def most_begun(self) -> int:
        """Trials that may have begun and not ended, as the cluster is now."""
        if self.takes_turns:  # all of a population, in as many at once as there is room for
            return self._trials
        if not self._cluster.embedded and time.monotonic() - self._counted_at_s >= LOOK_S:
            nodes = self._read_nodes()
            self._nodes = self._nodes if nodes is None else nodes
            self._fit, self._counted_at_s = self._count_begun(), time.monotonic()
        return self._fit

    def trial_ended(self, experiment_id: str) -> None:
        """From the next look on, its size counts only where another trial has it as well."""
        self._left.pop(experiment_id, None)

    def place(self, config: ExperimentConfig) -> tuple[int, float]:
        """CPUs of a trial's main process and GPUs of the trial."""
        kind = _kind(config)
        if kind not in self._placed:  # what there is to say of it is said once
            self._placed[kind] = place(
                config, self._cluster, self._options, concurrent=self.concurrent
            )
        return self._placed[kind]

    def place_memory(self, config: ExperimentConfig) -> float:
        """Bytes of memory that a trial asks Ray for; see `trials.place_memory`."""
        kind = _kind(config)
        if kind not in self._memory:
            cpus, gpus = self.place(config)
            self._memory[kind] = place_memory(config, self._cluster, num_cpus=cpus, num_gpus=gpus)
        return self._memory[kind]

    def find_nodes_to_spare(self, config: ExperimentConfig) -> tuple[str, ...]:
        """See `placement.find_nodes_to_spare`."""
        cpus, gpus = self.place(config)
        return find_nodes_to_spare(config, self._nodes, num_cpus=cpus, num_gpus=gpus)

    def _count_concurrent(self) -> int:
        """Trials at once; what a cluster has room for may still grow to what was asked for.

        Raises:
            LaunchError: this machine has too little memory for one.
        """
        if not self._cluster.embedded:
            return self._asked or max(1, self._count_fitting())
        free = count_free_memory()
        if self._largest() > free:
            raise LaunchError(
                f"a trial needs up to {self._largest() / 1e9:.1f} GB of memory, but "
                f"{free / 1e9:.1f} GB are free; lower base.dqn.replay_size, or free some"
            )
        fit = max(1, min(self._count_fitting(), free // self._largest()))
        if self._asked is not None and fit < self._most:
            logger.warning(
                "this machine has CPUs, GPUs and memory for %d trials at once (max_concurrent: %d)",
                fit,
                self._asked,
            )
        return min(self._most, fit)

    def _count_fitting(self) -> int:
        """Trials that the nodes have room for, one CPU each if nothing is said."""
        return min(self._trials, *(self._count_placed(one) for one in self._kinds.values()))

    def _count_placed(self, config: ExperimentConfig) -> int:
        """Trials of this kind that the nodes have room for."""
        resources, cpus = config.resources, config.resources.num_cpus or 1
        gpus = share_gpus(config, self._nodes, concurrent=self._asked or 1)
        memory_bytes = 0.0
        if not self._cluster.embedded:
            needed_bytes = count_memory(config)
            memory_bytes = choose_memory(
                resources, self._nodes, num_cpus=cpus, num_gpus=gpus, needed_bytes=needed_bytes
            )
        return count_at_once(bundles_of(resources, cpus, gpus, memory_bytes), self._nodes)

    def _count_begun(self) -> int:
        """Trials that the nodes have room for, and those that ask for more nodes.

        Any that is left may be the next one, so as many as there is room for of the largest.
        """
        if self._cluster.embedded:
            return self.concurrent
        left = [self._kinds[kind] for kind in set(self._left.values())]
        fit = min(
            count_at_once(
                bundles_of(config.resources, *self.place(config), self.place_memory(config)),
                self._nodes,
            )
            for config in left or self._kinds.values()
        )
        if self._options is not None and self._options.wait_for_nodes:
            # What waits for room makes an autoscaler act.
            fit = self._most if self._asked else 2 * fit
        return max(1, min(fit, self._most))

    def _largest(self) -> int:
        """Bytes of memory of the largest trial."""
        return max(count_memory(config) for config in self._kinds.values())


def _kind(config: ExperimentConfig) -> tuple[Any, ...]:
    """What decides how much a trial takes."""
    asked = config.resources
    return (
        asked.num_cpus,
        asked.num_gpus,
        asked.num_env_runners,
        asked.num_learners,
        config.use_gpu,
        config.algorithm,
        count_memory(config),
    )
