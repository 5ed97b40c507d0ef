"""What is said of trials that no node has room for any more; the nodes' listing is faked."""

from types import SimpleNamespace
from typing import Any

import pytest

from retro_ml.cluster import node_watch
from retro_ml.cluster.node_watch import NodeWatch
from retro_ml.cluster.placement import Node
from retro_ml.cluster.trial_actor import trial_config
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit
HEAD, SMALL, LARGE = Node(cpus=0), Node(cpus=2, node_id="small"), Node(cpus=8, node_id="large")


class Watched:
    """Trials, nodes, and a watch that looks at them."""

    def __init__(self) -> None:
        self.nodes: list[Node] | None = [HEAD, SMALL, LARGE]
        self.looks = 0
        self.trials: list[Any] = []
        self.watch = NodeWatch(self._read)

    def add(self, name: str, status: str = "PENDING", *, cpus: int = 4, **more: Any) -> Any:
        resources = more.pop("resources", {})
        config = ExperimentConfig(game_id="pong", experiment_id=name, resources=resources)
        trial = SimpleNamespace(
            trial_id=f"tune-{name}",
            status=status,
            config=trial_config(config, num_cpus=cpus, num_gpus=0.0, restore_from=None, **more),
        )
        trial.is_finished = lambda: trial.status in ("TERMINATED", "ERROR")
        self.trials.append(trial)
        return trial

    def look(self) -> None:
        self.watch.on_step_begin(0, self.trials)

    def _read(self) -> list[Node] | None:
        self.looks += 1
        return self.nodes


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(node_watch, "LOOK_S", 0.0)
    return Watched()


def test_a_trial_whose_only_node_has_died_is_told_of_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    trial = watched.add("one", "RUNNING")
    watched.look()
    assert (watched.looks, caplog.messages) == (0, [])
    watched.nodes, trial.status = [HEAD, SMALL], "PENDING"
    watched.look()
    watched.look()
    (said,) = caplog.messages
    assert said.startswith("no node has room for one, waiting for one: the run needs 4 CPUs")
    assert "there are 2; lower" in said
    assert caplog.records[0].levelname == "WARNING"  # which is shown on the screen
    watched.nodes.append(LARGE)
    watched.look()
    watched.look()
    assert caplog.messages[1:] == ["a node has room again for one"]


def test_nothing_is_said_of_trials_that_wait_for_their_turn(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        watched.add(f"t{number}", "PAUSED" if number % 2 else "PENDING")
    watched.look()
    assert (watched.looks, caplog.messages) == (1, [])


def test_trials_that_lack_the_same_share_a_line(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.nodes = [HEAD]
    for number in range(5):
        watched.add(f"t{number}")
    watched.look()
    (said,) = caplog.messages
    assert said.startswith("no node has room for t0, t1, t2 and 2 more, waiting for one: ")
    for trial in watched.trials:
        trial.status = "TERMINATED"
    watched.look()
    assert len(caplog.messages) == 1  # stopped meanwhile: no room is needed


def test_memory_and_nodes_that_are_spared_count(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.nodes = [Node(cpus=8, memory_bytes=4e9), Node(cpus=2, memory_bytes=64e9)]
    watched.add("replay", memory_bytes=8e9)
    watched.look()
    assert "asks for 8.0 GB of memory on one node" in caplog.messages[0]
    watched.trials.clear()
    watched.nodes = [Node(cpus=16, gpus=1.0, node_id="gpu")]
    watched.add("runners", resources={"num_env_runners": 2}, spared_nodes=("gpu",))
    watched.look()
    assert "2 env runners are to be on nodes without GPUs, which have 0 CPUs" in caplog.messages[1]


def test_nothing_is_said_where_nobody_knows_the_nodes(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.add("one")
    watched.nodes = None
    watched.look()
    assert (watched.looks, caplog.messages) == (1, [])
