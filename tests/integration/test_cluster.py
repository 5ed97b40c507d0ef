"""A cluster of several nodes: jobs, their exit codes, a node that dies, what nodes must have."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table, remove_placement_group

from retro_ml.cluster.connect import connect
from retro_ml.cluster.job_entry import LEFT_LINE
from retro_ml.cluster.placement import bundles_of, count_at_once, find_nodes_to_spare
from retro_ml.cluster.plan import count_memory
from retro_ml.cluster.trial_actor import TrialActor, trial_config
from retro_ml.cluster.trials import place, place_memory
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.core.experiments.sections import ResourcesConfig

pytest.importorskip("aiohttp", reason="the jobs API needs the extra cluster")

from clustering.nodes import LocalNodes

pytestmark = pytest.mark.integration
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalNodes]:
    """A head without CPUs and two workers of one CPU each, token authentication on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.delenv("RAY_ADDRESS", raising=False)
        with LocalNodes(cpus=1) as nodes:
            nodes.add_worker()
            nodes.add_worker()
            yield nodes


@pytest.fixture
def call(nodes: LocalNodes, tmp_path: Path) -> Command:
    """Calls `retro-ml` as a user of that cluster does."""

    def command(*words: str, **changed: str) -> "subprocess.CompletedProcess[str]":
        environment = {**nodes.environment, **changed}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "retro_ml.cli",
                words[0],
                "--address",
                nodes.address,
                *words[1:],
            ],
            env={name: value for name, value in environment.items() if value},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return command


def words_of(folder: Path, name: str, *more: str, agent_steps: int = 2_000) -> list[str]:
    return [
        *("run", "--game-id", "breakout", "--algorithm", "A2C", "-n", str(agent_steps)),
        *("--output-dir", str(folder), "--experiment-id", name, "--no-use-gpu"),
        *("--set", "checkpointing.every_steps=1000", "--set", "resources.num_cpus=1", *more),
    ]


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "events.log"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event["data"] for event in events if event["event_type"] == kind]


def wait_for(folder: Path, kind: str, *, count: int = 1) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + 240
    while len(events_of(folder, kind)) < count:
        assert time.monotonic() < deadline_s, f"no {kind} in {folder}"
        time.sleep(0.2)
    return events_of(folder, kind)


def wait_for_line(folder: Path, text: str) -> None:
    deadline_s = time.monotonic() + 240
    while text not in (folder / "training.log").read_text():
        assert time.monotonic() < deadline_s, f"no line with {text!r} in {folder}"
        time.sleep(0.2)


@pytest.mark.nightly
def test_the_doctor_looks_from_inside(call: Command, tmp_path: Path) -> None:
    done = call("doctor", "--output-dir", str(tmp_path), "--no-use-gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 nodes, 2 CPUs" in done.stdout
    assert "written and read by each node" in done.stdout
    assert list(tmp_path.iterdir()) == []
    refused = call("doctor", "--output-dir", "/proc/nowhere", "--set", "resources.num_cpus=3")
    assert refused.returncode == 3
    assert re.search("error: storage: .*cannot write .*/proc/nowhere", refused.stderr)
    assert "error: placement: the run needs 3 CPUs" in refused.stderr


def test_a_wrong_token_and_none_are_told_apart(call: Command, tmp_path: Path) -> None:
    wrong = call("doctor", "--output-dir", "/tmp", RAY_AUTH_TOKEN="00" * 32)
    assert wrong.returncode == 3
    assert "does not accept this token" in wrong.stderr
    none = call("doctor", "--output-dir", "/tmp", RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert none.returncode == 3
    assert "wants a token" in none.stderr


def test_a_sweep_survives_a_node_that_dies(
    nodes: LocalNodes, call: Command, tmp_path: Path
) -> None:
    base = {
        "game_id": "breakout",
        "algorithm": "A2C",
        "total_timesteps": 3_000,
        "use_gpu": False,
        "checkpointing": {"every_steps": 1_000},
        "resources": {"num_cpus": 1},
    }
    spec = tmp_path / "survivor.json"
    spec.write_text(json.dumps({"base": base, "grid": {"seed": [1, 2]}}))
    words = ["sweep", str(spec), "--output-dir", str(tmp_path)]
    left = call("submit", "--no-wait", "--", *words)
    assert left.returncode == 0, left.stderr
    folders = [tmp_path / "survivor" / f"breakout-a2c-s{seed}" for seed in (1, 2)]
    saved = {folder: wait_for(folder, "checkpoint_saved") for folder in folders}
    homes = {f: nodes.find_node(events_of(f, "run_started")[0]["pid"]) for f in folders}
    assert None not in homes.values()
    assert len(set(homes.values())) == 2, "a trial on each worker"
    hit = min(folders, key=lambda folder: len(events_of(folder, "checkpoint_saved")))
    nodes.kill(str(homes[hit]))
    nodes.add_worker()

    followed = call("submit", "--", *words)

    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "job survivor is there already: running" in followed.stderr
    assert "done: sweep survivor, 2 trials" in followed.stdout
    for folder in folders:
        begun = [attempt["from_step"] for attempt in events_of(folder, "run_started")]
        assert begun[0] == 0
        assert len(begun) == (2 if folder == hit else 1)
        assert begun[-1] >= saved[folder][0]["step"] * (folder == hit)
        rows = list(read_rows(RunPaths(str(folder.parent), folder.name).metrics_csv_path))
        games = [number for number, row in enumerate(rows) if row["type"] == "episode_finished"]
        iterations = [number for number, row in enumerate(rows) if row["type"] == "training_step"]
        assert [rows[number]["step"] for number in iterations] == [1_040, 2_080, 3_120]
        for number in iterations:  # as many games before it as it counts: none lost, none doubled
            assert rows[number]["games"] == len([game for game in games if game < number])
        assert json.loads((folder / "status.json").read_text())["state"] == "completed"

    again = call("submit", "--", *words)
    assert again.returncode == 0
    assert "is there already: succeeded" in again.stderr


@pytest.mark.nightly
def test_a_run_whose_only_node_died_says_so_and_goes_on_with_the_next(
    nodes: LocalNodes, call: Command, tmp_path: Path
) -> None:
    size: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100_000_000}
    node = nodes._cluster.add_node(**size)
    words = words_of(tmp_path, "stranded", "--set", "resources.num_cpus=2", agent_steps=20_000)
    assert call("submit", "--no-wait", "--", *words).returncode == 0
    folder = tmp_path / "stranded"
    wait_for(folder, "checkpoint_saved")
    nodes._cluster.remove_node(node, allow_graceful=False)
    wait_for_line(folder, "no node has room for stranded, waiting for one: the run")
    node = nodes._cluster.add_node(**size)
    wait_for_line(folder, "a node has room again for stranded")
    followed = call("submit", "--job-id", "stranded")
    nodes._cluster.remove_node(node)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert followed.stdout.count("warning: no node has room for stranded") == 1
    assert followed.stdout.count("warning: a node has room again") == 1


@pytest.mark.nightly
def test_a_run_that_waits_for_a_node_can_be_stopped(
    nodes: LocalNodes, call: Command, tmp_path: Path
) -> None:
    node = nodes._cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    words = words_of(tmp_path, "waiting", "--set", "resources.num_cpus=2", agent_steps=20_000)
    assert call("submit", "--no-wait", "--", *words).returncode == 0
    folder = tmp_path / "waiting"
    wait_for(folder, "checkpoint_saved")
    nodes._cluster.remove_node(node, allow_graceful=False)
    wait_for_line(folder, "no node has room for waiting, waiting for one: the run")
    assert call("submit", "--job-id", "waiting", "--stop").returncode == 0
    followed = call("submit", "--job-id", "waiting")
    assert followed.returncode == 128 + signal.SIGTERM, followed.stdout + followed.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.nightly
def test_a_stopped_job_saves_a_checkpoint_and_goes_on(call: Command, tmp_path: Path) -> None:
    words = words_of(tmp_path, "stopped", agent_steps=40_000)
    assert call("submit", "--no-wait", "--", *words).returncode == 0
    folder = tmp_path / "stopped"
    wait_for(folder, "training_step")

    assert call("submit", "--job-id", "stopped", "--stop").returncode == 0
    followed = call("submit", "--job-id", "stopped")

    assert followed.returncode == 128 + signal.SIGTERM, followed.stdout + followed.stderr
    steps = [data["step"] for data in events_of(folder, "training_step")]
    assert steps[-1] < 40_000
    assert events_of(folder, "checkpoint_saved")[-1]["step"] == steps[-1]


def test_env_runners_leave_the_cpus_beside_a_gpu_to_the_next_trial(nodes: LocalNodes) -> None:
    """Placement groups as trials ask for them, on a node whose GPU is logical."""
    gpu_node = nodes._cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100_000_000)
    resources = {"num_gpus": 0.5, "num_env_runners": 1, "games_per_env_runner": 8}
    config = ExperimentConfig(game_id="pong", resources=resources)
    groups = []
    with connect(nodes._cluster.address) as cluster:
        cpus, gpus = place(config, cluster)
        assert (cpus, gpus) == (1, 0.5)
        spared = find_nodes_to_spare(config, cluster.nodes, num_cpus=cpus, num_gpus=gpus)
        assert spared == (gpu_node.node_id,)
        trial = trial_config(
            config, num_cpus=cpus, num_gpus=gpus, restore_from=None, spared_nodes=spared
        )
        for _ in range(2):
            groups.append(TrialActor.default_resource_request(trial).to_placement_group())
        ray.get([group.ready() for group in groups], timeout=240)
        homes = [placement_group_table(group)["bundles_to_node_id"] for group in groups]
        for group in groups:
            remove_placement_group(group)
        assert [home[0] for home in homes] == [gpu_node.node_id] * 2
        assert gpu_node.node_id not in {home[1] for home in homes}
        too_much = config.model_copy(update={"resources": ResourcesConfig(num_gpus=2)})
        with pytest.raises(LaunchError, match="needs 2 GPUs, but there are 1"):
            place(too_much, cluster)
    nodes._cluster.remove_node(gpu_node)


def test_a_node_gets_no_more_trials_than_it_has_memory_for(nodes: LocalNodes) -> None:
    """Placement groups as trials ask for them: by CPUs the node has room for two."""
    node = nodes._cluster.add_node(
        num_cpus=4, memory=1_500_000_000, object_store_memory=100_000_000
    )
    config = ExperimentConfig(game_id="pong", use_gpu=False, resources={"num_cpus": 2})
    with connect(nodes._cluster.address) as cluster:
        memory_bytes = place_memory(config, cluster, num_cpus=2, num_gpus=0.0)
        assert memory_bytes == count_memory(config) >= 1_100_000_000
        bundles = bundles_of(config.resources, 2, 0.0, memory_bytes)
        assert count_at_once(bundles, cluster.nodes) == 1
        trial = trial_config(
            config, num_cpus=2, num_gpus=0.0, restore_from=None, memory_bytes=memory_bytes
        )
        asked = TrialActor.default_resource_request(trial)
        groups = [asked.to_placement_group() for _ in range(2)]
        waiting = [group.ready() for group in groups]
        ready, rest = ray.wait(waiting, timeout=240)
        assert len(ready) == 1
        assert ray.wait(rest, timeout=5)[0] == []
        remove_placement_group(groups[waiting.index(ready[0])])
        assert ray.wait(rest, timeout=240)[1] == []
        remove_placement_group(groups[waiting.index(rest[0])])
    nodes._cluster.remove_node(node)


@pytest.mark.nightly
def test_the_same_command_goes_on_where_the_hours_were_over(call: Command, tmp_path: Path) -> None:
    words = words_of(tmp_path, "hours", agent_steps=20_000)
    first = call("submit", "--", *words, "--max-hours", "0.001")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.rstrip().endswith(LEFT_LINE)
    second = call("submit", "--", *words, "--max-hours", "0.001")
    assert second.returncode == 0
    assert "job hours has ended (with work left); hours-2 goes on" in second.stderr
    begun = [attempt["from_step"] for attempt in events_of(tmp_path / "hours", "run_started")]
    assert begun[0] == 0 < begun[1]


@pytest.mark.nightly
def test_a_config_is_shipped_and_env_runners_on_other_nodes_play(
    nodes: LocalNodes, call: Command, tmp_path: Path
) -> None:
    nodes.add_worker()  # three CPUs are on no single node
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 7\nresources: {num_env_runners: 2, games_per_env_runner: 8}\n")
    words = words_of(tmp_path, "shipped", "--config", "mine.yaml", agent_steps=1_000)
    done = call("submit", "--", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "shipped" / "config.json").read_text())["seed"] == 7
