"""Whether a trial's parts fit on the nodes, and how much of them it is given.

Ray places a trial as a group of bundles, each whole on one node, all or none; a group that can
never be placed waits for ever. So it is tried here first, node by node: sums over the cluster are
not enough. Nodes that others use count, since they become free. What an autoscaler may still start
does not: Ray's head does not know it (2.60, ray issue 52033), so that takes the user's word
(`wait_for_nodes`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sections import ResourcesConfig

logger = logging.getLogger("retro_ml.cluster")

Bundle = dict[str, float]
"""`{"CPU": cpus, "GPU": gpus, "memory": bytes}` that one process needs, on one node."""
MAX_CPUS = 16
"""Of a trial's main process where the config leaves it open: it has 4 to 16 games, and updates of
32 to 256 samples; more threads would wait for each other. A choice by reasoning, not by
measurement (docs/benchmarks.md)."""
MAX_TRIALS_COUNTED = 10_000
GROWING = "; where an autoscaler starts nodes on demand, add --wait-for-nodes"
ROUNDING = 1e-4
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has in all."""

    cpus: float
    gpus: float = 0.0
    node_id: str = ""
    memory_bytes: float = math.inf
    """That Ray hands out there."""


def trial_bundles(
    *,
    num_cpus: int,
    num_gpus: float,
    env_runners: int,
    learners: int,
    memory_bytes: float = 0.0,
) -> list[Bundle]:
    """The bundles that RLlib asks for: main process, env runners, remote learners.

    Args:
        num_cpus: of the main process.
        num_gpus: of the trial: of its main process, or shared evenly by its remote learners.
        env_runners: remote env runners, a CPU each.
        learners: remote learners; one with a GPU uses the CPUs of the main process.
        memory_bytes: of the main process, which holds DQN's replay; 0: it is not counted.
    """
    main: Bundle = {"CPU": num_cpus, "GPU": 0 if learners else num_gpus, "memory": memory_bytes}
    learner: Bundle = {"CPU": 0 if num_gpus else 1, "GPU": num_gpus / max(learners, 1)}
    env_runner: Bundle = {"CPU": 1, "GPU": 0}
    return [main, *[env_runner] * env_runners, *[learner] * learners]


def bundles_of(
    resources: ResourcesConfig, cpus: int, gpus: float, memory_bytes: float = 0.0
) -> list[Bundle]:
    """The same for a config's env runners and learners, with what was chosen for the trial."""
    return trial_bundles(
        num_cpus=cpus,
        num_gpus=gpus,
        env_runners=resources.num_env_runners,
        learners=resources.num_learners,
        memory_bytes=memory_bytes,
    )


def fits(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Whether all bundles have room at the same time.

    Exact for a trial's bundles: but for the main process all are alike and take whole CPUs or an
    even share of the GPUs, so it does not matter where the main process goes.
    """
    return _pack(bundles, _all_of(nodes))


def count_at_once(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> int:
    """How many such trials have room at the same time, placed one after the other."""
    free = _all_of(nodes)
    count = 0
    while count < MAX_TRIALS_COUNTED and _pack(bundles, free):
        count += 1
    return count


def choose_resources(
    config: ExperimentConfig,
    nodes: Sequence[Node],
    *,
    concurrent: int = 1,
    wait_for_nodes: bool | None = None,
) -> tuple[int, float]:
    """CPUs of the trial's main process and GPUs of the trial.

    Args:
        config: the experiment.
        nodes: what is there.
        concurrent: trials that share it, where the config leaves open what one takes.
        wait_for_nodes: whether more will come when they are asked for; None where none can.

    Raises:
        LaunchError: what the config asks for can never be had.
    """
    resources = config.resources
    gpus = share_gpus(config, nodes, concurrent=concurrent)
    if config.use_gpu and resources.num_gpus is None and not gpus:
        logger.warning("no GPU found: training runs on the CPU")
    possible = [
        cpus
        for cpus in _candidates(resources, gpus, nodes)
        if fits(bundles_of(resources, cpus, gpus), nodes)
    ]
    for cpus in possible:
        if concurrent == 1 or count_at_once(bundles_of(resources, cpus, gpus), nodes) >= concurrent:
            return cpus, gpus
    if possible:  # not all at once, then: as many as possible
        return possible[-1], gpus
    if not wait_for_nodes:
        remedy = "" if wait_for_nodes is None else GROWING
        main = resources.num_cpus or 1
        lack = explain_lack(resources, nodes, num_cpus=main, num_gpus=gpus)
        raise LaunchError(lack + remedy)
    return resources.num_cpus or 1, gpus  # `node_watch` says that the trial waits


def share_gpus(config: ExperimentConfig, nodes: Sequence[Node], *, concurrent: int = 1) -> float:
    """GPUs of a trial: what the config says, or a whole one, or an even part of one.

    Several learners have a whole one each: they cannot share (`check_resources`).

    Args:
        config: the experiment.
        nodes: what is there.
        concurrent: trials that share it.
    """
    if not config.use_gpu:
        return 0.0
    if config.resources.num_gpus is not None:
        return config.resources.num_gpus
    whole = sum(math.floor(node.gpus) for node in nodes)
    if whole and config.resources.num_learners > 1:
        return float(config.resources.num_learners)
    return 1.0 / math.ceil(concurrent / whole) if whole else 0.0


def choose_memory(
    resources: ResourcesConfig,
    nodes: Sequence[Node],
    *,
    num_cpus: int,
    num_gpus: float,
    needed_bytes: float,
) -> float:
    """Bytes of memory that a trial asks Ray for, so that no node gets more trials than it holds.

    What it needs or, where no node that will do hands out so much, all that one hands out: of a
    node that was started without --memory Ray keeps back nearly a third for objects (2.60), of
    which a trial has few. Then it has that node to itself, and memory alone refuses nothing.
    """
    there = {node.memory_bytes for node in nodes if node.memory_bytes < needed_bytes}
    for memory_bytes in sorted({needed_bytes, *there}, reverse=True):
        if fits(bundles_of(resources, num_cpus, num_gpus, memory_bytes), nodes):
            return memory_bytes
    return needed_bytes


def find_nodes_to_spare(
    config: ExperimentConfig, nodes: Sequence[Node], *, num_cpus: int, num_gpus: float
) -> tuple[str, ...]:
    """The nodes that a trial's env runners leave to those who need a GPU.

    Ray packs a trial's bundles onto as few nodes as it can (2.60): env runners would take the CPUs
    beside a GPU, and the next trial could not use what is left of it. None are spared where the
    nodes without GPUs have no room for all.
    """
    resources = config.resources
    room = sum(int(node.cpus) for node in nodes if not node.gpus)
    needed = resources.num_env_runners + (num_cpus if resources.num_learners else 0)
    if not num_gpus or not resources.num_env_runners or room < needed:
        return ()
    return tuple(node.node_id for node in nodes if node.gpus)


def explain_lack(
    resources: ResourcesConfig,
    nodes: Sequence[Node],
    *,
    num_cpus: int,
    num_gpus: float,
    memory_bytes: float = 0.0,
) -> str:
    """Why such a trial has no room on these nodes, and what to change."""
    runners, learners = resources.num_env_runners, resources.num_learners
    bundles = bundles_of(resources, num_cpus, num_gpus)
    needed, there = sum(bundle["CPU"] for bundle in bundles), sum(node.cpus for node in nodes)
    if needed > there + ROUNDING:
        return (
            f"the run needs {needed:g} CPUs ({num_cpus} for its main process, {runners} for env "
            f"runners, {learners} for learners), but there are {there:g}; lower "
            "resources.num_env_runners, resources.num_learners or resources.num_cpus"
        )
    there = sum(node.gpus for node in nodes)
    if num_gpus > there + ROUNDING:
        return (
            f"the run needs {num_gpus:g} GPUs, but there are {there:g}; lower resources.num_gpus"
            f"{' and resources.num_learners' if learners > 1 else ''}, or set use_gpu to false"
        )
    if fits(bundles, nodes):
        most = max(node.memory_bytes for node in nodes)
        return (
            f"the run's main process asks for {memory_bytes / 1e9:.1f} GB of memory on one node "
            f"with room for it, and Ray hands out up to {most / 1e9:.1f} GB of one; "
            "lower dqn.replay_size"
        )
    largest = max(bundles, key=lambda bundle: (bundle["GPU"], bundle["CPU"]))
    shapes = sorted({(node.cpus, node.gpus) for node in nodes}, reverse=True)
    described = ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in shapes[:5])
    return (
        f"the run's parts find no room on the nodes: each part has to be on one node, and one of "
        f"them needs {largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs, while the nodes have "
        f"{described}; lower resources.num_cpus or resources.num_gpus, or spread the GPUs over "
        "resources.num_learners"
    )


def _all_of(nodes: Sequence[Node]) -> list[list[float]]:
    return [[node.cpus, node.gpus, node.memory_bytes] for node in nodes]


def _pack(bundles: Sequence[Bundle], free: list[list[float]]) -> bool:
    """Takes the bundles out of `free`, [CPUs, GPUs, bytes] of each node; False: one has no room."""
    for needed in sorted(map(_amounts, bundles), key=lambda amounts: (-amounts[1], -amounts[0])):
        room = [
            node
            for node in free
            if all(have + ROUNDING > need for have, need in zip(node, needed, strict=True))
        ]
        if not room:
            return False
        # The fullest one that will do, and no node with GPUs for what needs none.
        best = min(room, key=lambda node: (node[1], node[0], node[2]))
        best[:] = [have - need for have, need in zip(best, needed, strict=True)]
    return True


def _amounts(bundle: Bundle) -> tuple[float, float, float]:
    """CPUs, GPUs and bytes of memory of a bundle."""
    return bundle["CPU"], bundle["GPU"], bundle.get("memory", 0.0)


def _candidates(resources: ResourcesConfig, gpus: float, nodes: Sequence[Node]) -> Sequence[int]:
    """CPUs of the main process to try, the best first."""
    if resources.num_cpus is not None:
        return [resources.num_cpus]
    most = int(max((node.cpus for node in nodes), default=0))
    if 0 < gpus < 1 and not resources.num_learners:
        # Who asks for a part of a GPU wants others to have the rest, and they need CPUs for it.
        shares = [node.cpus * gpus / node.gpus for node in nodes if node.gpus >= gpus]
        most = max(int(max(shares, default=0)), 1)
    return range(min(most, MAX_CPUS), 0, -1)
