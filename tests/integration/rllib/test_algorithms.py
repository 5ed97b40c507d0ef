"""The three algorithms as RLlib Algorithms: built, trained, checkpointed, on one Ray."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from retro_ml.core.artifacts.checkpoint_files import CheckpointError, verify_checkpoint
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib import algorithm as algorithms
from retro_ml.rllib import checkpoints
from retro_ml.rllib.names import POINTER_FILE
from retro_ml.rllib.state_files import load_state
from retro_ml.rllib.translate import translate

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]
# A2C's is seen in whole runs too: `test_trials.py`.
ALGORITHMS = ["PPO", pytest.param("A2C", marks=pytest.mark.nightly), "DQN"]
Build = Callable[..., ExperimentConfig]


def train(algorithm: Algorithm, iterations: int) -> list[dict[str, Any]]:
    """The records of so many iterations, without the clock's values."""
    records = []
    for _ in range(iterations):
        for record in algorithm.train()["records"]:
            data = {k: v for k, v in record["data"].items() if not k.endswith("_s")}
            records.append({"type": record["type"], **data})
    return [record for record in records if record["type"] != "run_started"]


def lifetime(algorithm: Algorithm) -> int:
    """Agent steps by RLlib's count."""
    key = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
    return int(algorithm.metrics.peek(key))


def weights_of(algorithm: Algorithm) -> dict[str, np.ndarray]:
    return algorithm.learner_group.get_weights()["default_policy"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_seed_decides_the_course_and_a_checkpoint_brings_it_back(
    name: str, tmp_path: Path, small_config: Build
) -> None:
    config = small_config(name)
    iterations = 4 if name == "DQN" else 1  # DQN's are short
    first = translate(config).build_algo()
    initial = {key: value.copy() for key, value in weights_of(first).items()}
    beginning = train(first, iterations)
    first.save_checkpoint(str(tmp_path / "saved"))
    rest = train(first, iterations)
    for key, value in weights_of(first).items():
        assert np.isfinite(value).all(), key
        assert not np.array_equal(value, initial[key]), key

    again = translate(config).build_algo()
    assert train(again, iterations) == beginning

    resumed = translate(config).build_algo()
    resumed.load_checkpoint(str(tmp_path / "saved"))
    assert train(resumed, iterations) == rest
    for key, value in weights_of(first).items():
        np.testing.assert_array_equal(weights_of(resumed)[key], value, err_msg=key)

    first.load_checkpoint(str(tmp_path / "saved"))  # which has gone on since
    assert train(first, iterations) == rest

    other = translate(small_config(name, seed=43)).build_algo()
    assert train(other, iterations) != beginning
    for algorithm in (first, again, resumed, other):
        algorithm.stop()


def test_learning_waits_until_there_are_n_steps(small_config: Build) -> None:
    dqn = {"warmup_agent_steps": 0, "n_step": 20, "agent_steps_per_update": 16}
    algorithm = translate(small_config("DQN", dqn=dqn)).build_algo()
    (row,) = [r for r in train(algorithm, 1) if r["type"] == "training_step"]
    assert np.isfinite(row["loss"])
    algorithm.stop()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, small_config: Build) -> None:
    algorithm = translate(small_config("PPO")).build_algo()
    algorithm.save_checkpoint(str(tmp_path / "saved"))
    weights = tmp_path / "saved" / "module.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"module\.safetensors is not what was saved"):
        algorithm.load_checkpoint(str(tmp_path / "saved"))
    algorithm.stop()


def test_a_checkpoint_counts_though_older_ones_cannot_be_removed(
    tmp_path: Path, small_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EIO, "a bad sector")

    monkeypatch.setattr(checkpoints, "prune_checkpoints", fail)
    config = translate(small_config("A2C"))
    config.checkpoints_dir = str(tmp_path / "checkpoints")
    algorithm = config.build_algo()
    (tmp_path / "note").mkdir()
    algorithm.save_checkpoint(str(tmp_path / "note"))
    algorithm.stop()
    verify_checkpoint(tmp_path / "checkpoints" / "step-0")
    assert (tmp_path / "note" / POINTER_FILE).exists()


def test_another_algorithms_checkpoint_is_refused(tmp_path: Path, small_config: Build) -> None:
    ppo = translate(small_config("PPO")).build_algo()
    ppo.save_checkpoint(str(tmp_path / "saved"))
    a2c = translate(small_config("A2C")).build_algo()
    with pytest.raises(CheckpointError, match="saved by PPO; it cannot go on as A2C"):
        a2c.load_checkpoint(str(tmp_path / "saved"))
    ppo.stop()
    a2c.stop()


@pytest.fixture
def four_cpus() -> Iterator[None]:
    """A Ray that believes in more CPUs than there are, for actors beside the main process."""
    ray.shutdown()
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("name", "iterations"),
    [("PPO", 3), pytest.param("DQN", 12, marks=pytest.mark.nightly)],
)
def test_remote_env_runners_play_and_one_may_die(
    name: str, iterations: int, tmp_path: Path, small_config: Build
) -> None:
    resources = {"num_env_runners": 2, "num_cpus": 1}
    config = small_config(name, resources=resources)
    algorithm = translate(config).build_algo()
    train(algorithm, 1)
    runner = algorithm.env_runner_group._worker_manager.actors()[1]
    ray.kill(runner, no_restart=False)
    rows = [r for r in train(algorithm, iterations) if r["type"] == "training_step"]
    steps = config.iteration_agent_steps
    assert [row["step"] for row in rows] == [(2 + i) * steps for i in range(iterations)]
    # What came twice is not counted: epsilon follows RLlib's number.
    assert lifetime(algorithm) == rows[-1]["step"]
    algorithm.save_checkpoint(str(tmp_path / "saved"))
    algorithm.load_checkpoint(str(tmp_path / "saved"))
    assert train(algorithm, 1)[-1]["step"] == (2 + iterations) * steps

    # One that dies while a checkpoint is made takes its games along, and nothing else.
    ray.kill(algorithm.env_runner_group._worker_manager.actors()[2], no_restart=True)
    algorithm.save_checkpoint(str(tmp_path / "less"))
    assert [state is None for state in load_state(tmp_path / "less", "games")] == [False, True]
    algorithm.stop()
    again = translate(config).build_algo()
    again.load_checkpoint(str(tmp_path / "less"))
    assert train(again, 1)[-1]["step"] == (3 + iterations) * steps
    again.stop()


@pytest.mark.usefixtures("four_cpus")
def test_a_trial_without_env_runners_fails_instead_of_waiting_for_ever(
    small_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algorithms, "PATIENCE_S", 0.5)
    config = small_config("PPO", resources={"num_env_runners": 1, "num_cpus": 1})
    algorithm = translate(config).build_algo()
    train(algorithm, 1)
    ray.kill(algorithm.env_runner_group._worker_manager.actors()[1], no_restart=True)
    with pytest.raises(algorithms.NoEnvRunners, match="too few env runners"):
        train(algorithm, 10_000)
    algorithm.stop()


@pytest.mark.usefixtures("four_cpus")
def test_two_learners_stay_equal(tmp_path: Path, small_config: Build) -> None:
    config = small_config("PPO", resources={"num_learners": 2, "num_cpus": 1})
    algorithm = translate(config).build_algo()
    rows = train(algorithm, 2)
    assert rows[-1]["step"] == 2 * config.iteration_agent_steps
    weights = algorithm.learner_group.foreach_learner(
        lambda learner: learner.module["default_policy"].unwrapped().get_state()
    )
    one, other = [result.get() for result in weights]
    for key, value in one.items():
        np.testing.assert_array_equal(other[key], value, err_msg=key)

    algorithm.save_checkpoint(str(tmp_path / "saved"))
    rest = train(algorithm, 2)
    algorithm.stop()
    resumed = translate(config).build_algo()
    resumed.load_checkpoint(str(tmp_path / "saved"))
    assert train(resumed, 2) == rest
    resumed.stop()
