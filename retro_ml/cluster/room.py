"""How many trials of a sweep run at once, and what each of them is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from retro_ml.cluster.connect import Cluster, read_nodes
from retro_ml.cluster.placement import (
    Node,
    bundles_of,
    count_at_once,
    find_nodes_to_spare,
)
from retro_ml.cluster.plan import plan_run
from retro_ml.cluster.trials import place
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.machine import count_free_memory

LOOK_S = 10.0
"""Between two looks at which nodes there are (this project's choice)."""


class Room:
    """How many trials run at once, and what each of them gets.

    Args:
        sweep: its trials, of which none may be too large.
        cluster: what there is.
        options: whether more nodes will come.
        read_nodes: what there is later: nodes come and go.

    Raises:
        LaunchError: a trial can never be placed.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        cluster: Cluster,
        options: RunOptions | None = None,
        *,
        read_nodes: Callable[[], tuple[Node, ...]] = read_nodes,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._read_nodes = read_nodes
        self._nodes = cluster.nodes or (Node(cpus=cluster.cpus, gpus=cluster.gpus),)
        self._kinds = {_kind(planned.config): planned.config for planned in sweep.trials}
        self._trials = len(sweep.trials)
        self.concurrent = sweep.max_concurrent or max(1, self._count_fitting())
        self._fixed = cluster.embedded or sweep.max_concurrent is not None
        self.takes_turns = sweep.scheduler == "pbt"
        self._placed: dict[tuple[Any, ...], tuple[int, float]] = {}
        for config in self._kinds.values():
            self.place(config)
        self._fit, self._counted_at_s = self._count_begun(), time.monotonic()
        needed, free = self.concurrent * self._largest(), count_free_memory()
        if cluster.embedded and needed > free:
            raise LaunchError(
                f"{self.concurrent} trials at once need up to {needed / 1e9:.1f} GB of memory, but "
                f"{free / 1e9:.1f} GB are free; lower max_concurrent or base.dqn.replay_size"
            )

    @property
    def most_begun(self) -> int:
        """Trials that may have begun and not ended, as the cluster is now."""
        if self.takes_turns:  # all of a population, in as many at once as there is room for
            return self._trials
        if self._fixed:
            return self.concurrent
        if time.monotonic() - self._counted_at_s >= LOOK_S:
            self._nodes = self._read_nodes()
            self._fit, self._counted_at_s = self._count_begun(), time.monotonic()
        return self._fit

    def place(self, config: ExperimentConfig) -> tuple[int, float]:
        """CPUs of a trial's main process and GPUs of the trial."""
        kind = _kind(config)
        if kind not in self._placed:  # what there is to say of it is said once
            self._placed[kind] = place(
                config, self._cluster, self._options, concurrent=self.concurrent
            )
        return self._placed[kind]

    def find_nodes_to_spare(self, config: ExperimentConfig) -> tuple[str, ...]:
        """See `placement.find_nodes_to_spare`."""
        cpus, gpus = self.place(config)
        return find_nodes_to_spare(config, self._nodes, num_cpus=cpus, num_gpus=gpus)

    def _count_fitting(self) -> int:
        """Trials that there are CPUs, GPUs and memory for at once."""
        kinds = self._kinds.values()
        fit = min(self._trials, *(_count_placed(config, self._cluster) for config in kinds))
        if self._cluster.embedded:
            fit = min(fit, count_free_memory() // self._largest())
        return fit

    def _count_begun(self) -> int:
        """Trials that the nodes have room for, and those that ask for more nodes."""
        fit = min(
            count_at_once(bundles_of(config.resources, *self.place(config)), self._nodes)
            for config in self._kinds.values()
        )
        if self._options is not None and self._options.wait_for_nodes:
            fit *= 2  # what waits for room makes an autoscaler act
        return max(1, min(fit, self._trials))

    def _largest(self) -> int:
        """Bytes of memory of the largest trial."""
        return max(plan_run(config).memory_bytes for config in self._kinds.values())


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
        config.dqn.replay_size,
    )


def _count_placed(config: ExperimentConfig, cluster: Cluster) -> int:
    """Trials of this kind that the cluster has room for, one CPU each if nothing is said."""
    resources = config.resources
    gpus = 0.0
    if config.use_gpu and cluster.gpus >= 1:
        gpus = 1.0 if resources.num_gpus is None else resources.num_gpus
    bundles = bundles_of(resources, resources.num_cpus or 1, gpus)
    return count_at_once(bundles, cluster.nodes or (Node(cpus=cluster.cpus, gpus=cluster.gpus),))
