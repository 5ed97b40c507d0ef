"""What a trial takes of what there is."""

from pathlib import Path
from typing import Any

import pytest

from retro_ml.cluster import room as rooms
from retro_ml.cluster.connect import Cluster
from retro_ml.cluster.placement import Node
from retro_ml.cluster.room import Room
from retro_ml.cluster.trials import place, place_memory
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig

pytestmark = pytest.mark.unit


def placed(cpus: int, gpus: float = 0.0, concurrent: int = 1, **fields: Any) -> tuple[int, float]:
    config = ExperimentConfig(game_id="pong", **fields)
    return place(config, Cluster(cpus=cpus, gpus=gpus), concurrent=concurrent)


@pytest.mark.parametrize(("cpus", "taken"), [(1, 1), (2, 2), (8, 8), (16, 16), (64, 16)])
def test_a_trial_takes_the_cores_up_to_what_it_can_use(cpus: int, taken: int) -> None:
    assert placed(cpus) == (taken, 0.0)


def test_env_runners_and_learners_are_left_theirs() -> None:
    assert placed(8, resources={"num_env_runners": 4, "num_learners": 1}) == (3, 0.0)
    with pytest.raises(LaunchError, match="needs 9 CPUs"):
        placed(8, resources={"num_env_runners": 8})
    with pytest.raises(LaunchError, match="needs 9 CPUs"):
        placed(8, resources={"num_cpus": 9})


def test_a_gpu_is_taken_where_there_is_one() -> None:
    assert placed(8, gpus=4.0) == (8, 1.0)
    assert placed(8, gpus=4.0, use_gpu=False) == (8, 0.0)
    assert placed(8, gpus=1.0, resources={"num_gpus": 0.25}) == (2, 0.25)
    with pytest.raises(LaunchError, match="needs 2 GPUs, but there are 1"):
        placed(8, gpus=1.0, resources={"num_gpus": 2})


def test_each_of_several_learners_has_a_gpu_of_its_own() -> None:
    assert placed(8, gpus=4.0, resources={"num_learners": 4}) == (8, 4.0)
    assert placed(8, gpus=4.0, concurrent=2, resources={"num_learners": 2}) == (4, 2.0)
    assert placed(8, resources={"num_learners": 2}) == (6, 0.0)
    with pytest.raises(LaunchError, match=r"needs 4 GPUs, .* and resources\.num_learners"):
        placed(8, gpus=2.0, resources={"num_learners": 4})


def test_several_at_once_share_what_there_is() -> None:
    assert placed(8, concurrent=3) == (2, 0.0)
    assert placed(2, concurrent=4) == (1, 0.0)
    assert placed(8, concurrent=2, resources={"num_env_runners": 2}) == (2, 0.0)
    assert placed(8, concurrent=2, resources={"num_cpus": 1}) == (1, 0.0)
    assert placed(8, gpus=2.0, concurrent=2) == (4, 1.0)
    assert placed(8, gpus=2.0, concurrent=8) == (1, 0.25)
    assert placed(8, gpus=2.0, concurrent=5) == (1, pytest.approx(1 / 3))


def room(cpus: int, gpus: float = 0.0, **fields: Any) -> Room:
    sweep = SweepConfig(**{"base": {"game_id": "pong"}, "grid": {"seed": [*range(20)]}, **fields})
    return Room(sweep, Cluster(cpus=cpus, gpus=gpus))


def test_as_many_trials_run_as_there_is_room_for() -> None:
    assert room(8).concurrent == 8
    assert room(64).concurrent == 20
    assert room(64, gpus=4.0).concurrent == 4
    assert room(64, gpus=4.0, base={"game_id": "pong", "use_gpu": False}).concurrent == 20
    base = {"game_id": "pong", "resources": {"num_gpus": 0.25, "num_cpus": 2}}
    assert room(64, gpus=2.0, base=base).concurrent == 8
    assert room(8, max_concurrent=3).concurrent == 3
    base = {"game_id": "pong", "resources": {"num_env_runners": 1}}
    assert room(8, base=base).concurrent == 4


def test_a_trial_that_can_never_be_placed_is_said_at_once() -> None:
    base = {"game_id": "pong", "resources": {"num_cpus": 9}}
    with pytest.raises(LaunchError, match="needs 9 CPUs"):
        room(8, base=base)


def test_trials_follow_the_nodes_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LOOK_S", 0.0)
    nodes: Any = (Node(cpus=2.0),)
    base = {"game_id": "pong", "resources": {"num_cpus": 1}}
    sweep = SweepConfig(base=base, grid={"seed": [*range(20)]})
    cluster = Cluster(cpus=2, gpus=0.0, nodes=nodes)
    follows = Room(sweep, cluster, read_nodes=lambda: nodes)
    waits = Room(sweep, cluster, RunOptions(wait_for_nodes=True), read_nodes=lambda: nodes)
    assert (follows.most_begun, waits.most_begun) == (2, 4)
    nodes = (Node(cpus=2.0), Node(cpus=4.0))
    assert (follows.most_begun, waits.most_begun) == (6, 12)
    nodes = ()
    assert (follows.most_begun, waits.most_begun) == (1, 1)
    nodes = (Node(cpus=64.0),)
    assert (follows.most_begun, waits.most_begun) == (20, 20)
    known, nodes = nodes, None  # while the head is away
    assert (follows.most_begun, waits.most_begun) == (20, 20)
    nodes = known
    fixed = Room(sweep.model_copy(update={"max_concurrent": 3}), cluster, read_nodes=lambda: nodes)
    assert fixed.most_begun == 3


def test_a_sweep_begins_where_the_autoscaler_has_no_node_yet() -> None:
    base = {"game_id": "pong", "resources": {"num_cpus": 2}}
    sweep = SweepConfig(base=base, grid={"seed": [1, 2, 3]})
    empty = Cluster(cpus=0, gpus=0.0, nodes=(Node(cpus=0.0, node_id="head"),))
    with pytest.raises(LaunchError, match="--wait-for-nodes"):
        Room(sweep, empty, RunOptions(), read_nodes=lambda: ())
    waits = Room(sweep, empty, RunOptions(wait_for_nodes=True), read_nodes=lambda: ())
    assert (waits.most_begun, waits.place(sweep.trials[0].config)) == (1, (2, 0.0))


def test_a_population_takes_turns() -> None:
    distributions = {"ppo.gamma": {"uniform": [0.9, 0.99]}}
    fields: dict[str, Any] = {"grid": {}, "distributions": distributions, "samples": 6}
    population = room(2, scheduler="pbt", **fields)
    assert (population.concurrent, population.most_begun) == (2, 6)
    assert room(2, **fields).most_begun == 2


GB = 1_000_000_000
LAPTOP = Cluster(cpus=2, gpus=0.0, nodes=(Node(cpus=2.0, memory_bytes=3e9),), scratch_dir=Path("x"))


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what this machine has left."""
    return lambda size: monkeypatch.setattr(rooms, "count_free_memory", lambda: size)


def sixteen(algorithm: str = "DQN", **fields: Any) -> SweepConfig:
    base = {"game_id": "pong", "algorithm": algorithm, "total_timesteps": 10_000_000}
    return SweepConfig(
        base=base, grid={"seed": [*range(16)]}, max_concurrent=fields.get("most", 16)
    )


def test_a_small_machine_runs_as_many_as_fit_of_those_asked_for(
    free_memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    free_memory(18 * GB)
    laptop = Room(sixteen(), LAPTOP)
    assert (laptop.concurrent, laptop.most_begun) == (2, 2)  # by its CPUs
    assert laptop.place(sixteen().trials[0].config) == (1, 0.0)
    assert "for 2 trials at once (max_concurrent: 16)" in caplog.text
    free_memory(12 * GB)
    laptop = Room(sixteen(), LAPTOP)
    assert (laptop.concurrent, laptop.most_begun) == (1, 1)  # by its memory
    assert laptop.place(sixteen().trials[0].config) == (2, 0.0)
    caplog.clear()
    assert Room(sixteen("PPO", most=2), LAPTOP).most_begun == 2
    assert caplog.messages == ["no GPU found: training runs on the CPU"]


def test_a_trial_that_is_too_large_for_this_machine_is_said_at_once(free_memory: Any) -> None:
    free_memory(8 * GB)
    with pytest.raises(LaunchError, match=r"a trial needs up to 8\.6 GB of memory, but 8\.0 GB"):
        Room(sixteen(), LAPTOP)


def test_an_embedded_ray_is_not_asked_for_memory(free_memory: Any) -> None:
    """It hands out less than the machine has: DQN's default replay fits a small laptop."""
    free_memory(9 * GB)
    config = sixteen().trials[0].config
    assert Room(sixteen(), LAPTOP).place_memory(config) == 0
    assert place_memory(config, LAPTOP, num_cpus=1, num_gpus=0.0) == 0


def test_trials_asked_for_share_a_gpu_of_this_machine(free_memory: Any) -> None:
    free_memory(64 * GB)
    node = Node(cpus=8.0, gpus=1.0)
    machine = Cluster(cpus=8, gpus=1.0, nodes=(node,), scratch_dir=Path("x"))
    shared = Room(sixteen("PPO", most=4), machine)
    assert (shared.concurrent, shared.place(sixteen("PPO").trials[0].config)) == (4, (2, 0.25))


def test_a_cluster_s_memory_counts(caplog: pytest.LogCaptureFixture) -> None:
    def begun(node: Node, **fields: Any) -> int:
        cluster = Cluster(cpus=int(node.cpus), gpus=0.0, nodes=(node,))
        return Room(sixteen(**fields), cluster, read_nodes=lambda: (node,)).most_begun

    assert begun(Node(cpus=16.0, memory_bytes=22e9)) == 2
    assert begun(Node(cpus=16.0, memory_bytes=22e9), most=None) == 2
    assert begun(Node(cpus=16.0, memory_bytes=22e9), algorithm="PPO") == 16
    assert "there it is the only one" not in caplog.text
    assert begun(Node(cpus=16.0, memory_bytes=8e9)) == 1
    assert "may take 8.6 GB of memory, and Ray hands out 8.0 GB" in caplog.text


def test_no_more_begin_on_a_cluster_than_have_room_unless_it_may_grow() -> None:
    nodes = (Node(cpus=2.0),)
    cluster = Cluster(cpus=2, gpus=0.0, nodes=nodes)
    sweep = sixteen("PPO", most=8)
    assert Room(sweep, cluster, read_nodes=lambda: nodes).most_begun == 2
    grows = RunOptions(wait_for_nodes=True)
    assert Room(sweep, cluster, grows, read_nodes=lambda: nodes).most_begun == 8


def test_a_size_counts_as_long_as_a_trial_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "LOOK_S", 0.0)
    nodes = (Node(cpus=16.0, memory_bytes=22e9),)
    base = {
        "game_id": "pong",
        "total_timesteps": 10_000_000,
        "resources": {"num_cpus": 1},
    }
    sweep = SweepConfig(base=base, grid={"algorithm": ["DQN", "PPO"], "seed": [*range(16)]})
    cluster = Cluster(cpus=16, gpus=0.0, nodes=nodes)
    mixed = Room(sweep, cluster, read_nodes=lambda: nodes)
    large = [one.experiment_id for one in sweep.trials if one.config.algorithm == "DQN"]
    assert mixed.most_begun == 2
    for name in large[1:]:
        mixed.trial_ended(name)
    assert mixed.most_begun == 2
    mixed.trial_ended(large[0])
    assert mixed.most_begun == 16
    for planned in sweep.trials:
        mixed.trial_ended(planned.experiment_id)
    assert mixed.most_begun == 2  # nothing is left to begin
