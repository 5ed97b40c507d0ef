"""Which trials have room on which nodes, and what is said of those that have none."""

from itertools import product
from typing import Any

import pytest

from retro_ml.cluster.placement import (
    Bundle,
    Node,
    choose_memory,
    choose_resources,
    count_at_once,
    find_nodes_to_spare,
    fits,
    trial_bundles,
)
from retro_ml.cluster.trial_actor import TrialActor, trial_config
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit
GPU_NODE, CPU_NODE = Node(cpus=8, gpus=1), Node(cpus=16)


def chosen(*nodes: Node, wait_for_nodes: bool | None = None, **resources: Any) -> tuple[int, float]:
    config = ExperimentConfig(game_id="pong", resources=resources)
    return choose_resources(config, nodes, wait_for_nodes=wait_for_nodes)


def refusal(*nodes: Node, **resources: Any) -> str:
    with pytest.raises(LaunchError) as refused:
        chosen(*nodes, **resources)
    return str(refused.value)


def can_be_placed(bundles: list[Bundle], nodes: list[Node]) -> bool:
    """The same by trying everything."""
    for homes in product(range(len(nodes)), repeat=len(bundles)):
        free = [[node.cpus, node.gpus] for node in nodes]
        for home, bundle in zip(homes, bundles, strict=True):
            free[home][0] -= bundle["CPU"]
            free[home][1] -= bundle["GPU"]
        if all(left >= -1e-9 for node in free for left in node):
            return True
    return False


def test_it_agrees_with_trying_everything() -> None:
    nodes = [Node(cpus=2), Node(cpus=3, gpus=1), Node(cpus=1, gpus=2)]
    outcomes = []
    for cpus, gpus, runners, learners in product((1, 2, 3), (0, 0.5, 1, 2), (0, 1, 3), (0, 1, 2)):
        bundles = trial_bundles(
            num_cpus=cpus, num_gpus=gpus, env_runners=runners, learners=learners
        )
        outcomes.append(fits(bundles, nodes))
        assert outcomes[-1] == can_be_placed(bundles, nodes), bundles
    assert {True, False} == set(outcomes)


def test_the_main_process_is_on_one_node_whatever_the_sum() -> None:
    assert chosen(Node(cpus=4), Node(cpus=4)) == (4, 0.0)
    assert "needs 6 CPUs" in refusal(Node(cpus=4), Node(cpus=4), num_cpus=6)
    assert "has to be on one node" in refusal(Node(cpus=4), Node(cpus=4), num_cpus=6)


def test_a_gpu_and_its_cpus_are_on_one_node() -> None:
    assert chosen(GPU_NODE, CPU_NODE) == (8, 1.0)
    assert "needs 12 CPUs and 1 GPUs" in refusal(GPU_NODE, CPU_NODE, num_cpus=12)


def test_env_runners_go_to_nodes_without_gpus() -> None:
    assert chosen(GPU_NODE, CPU_NODE, num_env_runners=16, games_per_env_runner=1) == (8, 1.0)
    assert chosen(GPU_NODE, CPU_NODE, num_env_runners=20, games_per_env_runner=1) == (4, 1.0)
    with pytest.raises(LaunchError, match="lower resources"):
        chosen(GPU_NODE, CPU_NODE, num_env_runners=24, games_per_env_runner=1)


def test_env_runners_leave_gpu_nodes_alone_where_others_have_room_for_all() -> None:
    nodes = [Node(cpus=8, gpus=1, node_id="g"), Node(cpus=4, node_id="c")]

    def spared(**resources: Any) -> tuple[str, ...]:
        config = ExperimentConfig(game_id="pong", resources=resources)
        return find_nodes_to_spare(
            config, nodes, num_cpus=2, num_gpus=resources.get("num_gpus", 1.0)
        )

    assert spared(num_env_runners=4) == ("g",)
    assert spared(num_env_runners=8) == spared() == ()
    assert spared(num_env_runners=4, num_gpus=0) == ()
    assert spared(num_env_runners=4, num_learners=1) == ()
    config = ExperimentConfig(game_id="pong", resources={"num_env_runners": 2})
    trial = trial_config(
        config, num_cpus=2, num_gpus=1.0, restore_from=None, spared_nodes=("g", "h")
    )
    asked = TrialActor.default_resource_request(trial)._bound.kwargs["bundle_label_selector"]
    assert asked == [{}, *[{"ray.io/node-id": "!in(g,h)"}] * 2]


def test_learners_bring_their_gpus_together_from_several_nodes() -> None:
    assert "has to be on one node" in refusal(GPU_NODE, GPU_NODE, num_gpus=2)
    assert chosen(GPU_NODE, GPU_NODE, num_gpus=2, num_learners=2) == (8, 2.0)


def test_trials_that_share_a_gpu_share_its_cpus() -> None:
    assert chosen(GPU_NODE, CPU_NODE, num_gpus=0.25) == (2, 0.25)
    assert chosen(Node(cpus=1, gpus=1), num_gpus=0.25) == (1, 0.25)
    bundles = trial_bundles(num_cpus=2, num_gpus=0.25, env_runners=0, learners=0)
    assert count_at_once(bundles, [GPU_NODE, CPU_NODE]) == 4


def test_trials_at_once_share_what_is_there() -> None:
    config = ExperimentConfig(game_id="pong")
    assert choose_resources(config, [Node(cpus=8)], concurrent=3) == (2, 0.0)
    assert choose_resources(config, [Node(cpus=3), Node(cpus=3)], concurrent=3) == (1, 0.0)
    assert choose_resources(config, [Node(cpus=2)], concurrent=9) == (1, 0.0)
    assert choose_resources(config, [Node(cpus=8, gpus=2)], concurrent=2) == (4, 1.0)
    assert choose_resources(config, [Node(cpus=8, gpus=2)], concurrent=4) == (2, 0.5)


def test_a_head_without_cpus_takes_no_trial() -> None:
    assert "there are 0" in refusal(Node(cpus=0))
    assert chosen(Node(cpus=0), Node(cpus=2)) == (2, 0.0)


def test_nodes_to_come_are_waited_for_when_the_user_says_so() -> None:
    with pytest.raises(LaunchError, match="--wait-for-nodes"):
        chosen(Node(cpus=0), num_gpus=1, wait_for_nodes=False)
    assert chosen(Node(cpus=0), num_gpus=1, num_cpus=4, wait_for_nodes=True) == (4, 1.0)
    assert chosen(CPU_NODE, num_cpus=4, wait_for_nodes=True) == (4, 0.0)


def memory(needed_bytes: float, *nodes: Node, num_gpus: float = 0.0, **resources: Any) -> float:
    asked = ExperimentConfig(game_id="pong", resources=resources).resources
    return choose_memory(asked, nodes, num_cpus=1, num_gpus=num_gpus, needed_bytes=needed_bytes)


def test_no_node_gets_more_trials_than_it_has_memory_for() -> None:
    """Sixteen DQN trials on sixteen CPUs and 32 GB of which Ray hands out 22."""
    node = Node(cpus=16, memory_bytes=22e9)
    assert memory(7e9, node) == 7e9
    bundles = trial_bundles(num_cpus=1, num_gpus=0, env_runners=0, learners=0, memory_bytes=7e9)
    assert count_at_once(bundles, [node]) == 3
    assert count_at_once(bundles, [node, Node(cpus=1, memory_bytes=64e9)]) == 4
    assert count_at_once(bundles, [Node(cpus=16)]) == 16


def test_memory_alone_refuses_nothing() -> None:
    """Ray hands out about 70 % of a node's memory; a replay that fits into the rest did fit."""
    small, large = Node(cpus=8, memory_bytes=6e9), Node(cpus=8, memory_bytes=7.5e9)
    assert memory(8.6e9, small, large) == 7.5e9
    assert memory(8.6e9, small, Node(cpus=0, memory_bytes=64e9)) == 6e9
    assert memory(8.6e9, Node(cpus=8, gpus=1, memory_bytes=6e9), large, num_gpus=1.0) == 6e9
    assert memory(8.6e9, Node(cpus=8, memory_bytes=0)) == 0
    assert memory(8.6e9, Node(cpus=0)) == 8.6e9  # nodes to come are asked for all of it
    bundles = trial_bundles(num_cpus=1, num_gpus=0, env_runners=0, learners=0, memory_bytes=6e9)
    assert count_at_once(bundles, [small]) == 1


def test_the_memory_is_asked_of_the_main_process_s_node_alone() -> None:
    config = ExperimentConfig(game_id="pong", resources={"num_env_runners": 2})
    trial = trial_config(config, num_cpus=2, num_gpus=0, restore_from=None, memory_bytes=7e9)
    asked = TrialActor.default_resource_request(trial)
    assert asked.bundles == [{"CPU": 2.0, "memory": 7e9}, {"CPU": 1.0}, {"CPU": 1.0}]
