"""Step size and epsilon over whole runs, one half of each in an algorithm that was resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm import Algorithm

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.translate import translate

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]

TWO_GAMES = {"games_per_env_runner": 2}  # starting many takes longer than these runs


def build(algorithm: str, **fields: Any) -> Algorithm:
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4", algorithm=algorithm, seed=3, use_gpu=False, **fields
    )
    return translate(config).build_algo()


def run_in_two_halves(
    folder: Path, iterations: int, algorithm: str, **fields: Any
) -> Iterator[tuple[dict[str, Any], Algorithm]]:
    """The training_step row of each iteration, and the algorithm that made it."""
    current = build(algorithm, **fields)
    for iteration in range(iterations):
        if iteration == iterations // 2:
            current.save_checkpoint(str(folder / "saved"))
            current.stop()
            current = build(algorithm, **fields)
            current.load_checkpoint(str(folder / "saved"))
        records = current.train()["records"]
        (row,) = [record["data"] for record in records if record["type"] == "training_step"]
        yield row, current
    current.stop()


def test_ppos_step_size(tmp_path: Path) -> None:
    """Ten iterations of 64 agent steps: from 2.5e-4 down by a tenth each; at the end it stays 0."""
    ppo = {"rollout_length": 32, "minibatch_size": 64, "epochs": 1}
    fields = {"ppo": ppo, "total_timesteps": 640, "resources": TWO_GAMES}
    rows = [row for row, _ in run_in_two_halves(tmp_path, 12, "PPO", **fields)]
    assert [row["step"] for row in rows] == [64 * (i + 1) for i in range(12)]
    expected = [2.5e-4 * max(1 - i / 10, 0.0) for i in range(12)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_a2cs_step_size(tmp_path: Path) -> None:
    """Iterations of two updates, 512 agent steps apart; what the second one used."""
    fields = {"total_timesteps": 4_096, "a2c": {"rollout_length": 256}, "resources": TWO_GAMES}
    steps, used = [], []
    for row, algorithm in run_in_two_halves(tmp_path, 2, "A2C", **fields):
        steps.append(row["step"])
        learner = algorithm.learner_group._learner
        used.append(learner.get_optimizer("default_policy").param_groups[0]["lr"])
    assert steps == [1_024, 2_048]
    assert used == pytest.approx([7e-4 * (1 - at / 4_096) for at in (512, 1_536)], rel=1e-5)


def test_dqns_epsilon(tmp_path: Path) -> None:
    """1 to 0.01 over 2,560 agent steps, in iterations of 1,024; nothing is learned meanwhile."""
    dqn = {"rollout_length": 512, "warmup_agent_steps": 9_000, "epsilon_agent_steps": 2_560}
    fields = {"total_timesteps": 10_000, "dqn": dqn, "resources": TWO_GAMES}
    found, acted = [], []
    for row, algorithm in run_in_two_halves(tmp_path, 4, "DQN", **fields):
        found.append(row["epsilon"])
        acted.append(algorithm.env_runner.epsilons(1)[0])
    expected = [1 - 0.99 * 0.4, 1 - 0.99 * 0.8, 0.01, 0.01]
    assert found == pytest.approx(expected)
    assert acted == pytest.approx(expected)  # what the env runner goes by


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN"])
def test_a_changed_step_size_is_used_after_a_restore(name: str, tmp_path: Path) -> None:
    """What PBT does: a checkpoint of one step size goes on with another, its schedule included."""
    section = name.lower()
    fields: dict[str, Any] = {
        "total_timesteps": 4_096,
        "resources": TWO_GAMES,
        "ppo": {"rollout_length": 128, "minibatch_size": 256, "epochs": 1},
        "a2c": {"rollout_length": 256},
        "dqn": {"warmup_agent_steps": 100, "rollout_length": 64, "agent_steps_per_update": 32},
    }
    first = build(name, **fields)
    first.train()
    first.save_checkpoint(str(tmp_path / "saved"))
    first.stop()
    changed = fields | {section: fields[section] | {"learning_rate": 3e-3}}
    second = build(name, **changed)
    second.load_checkpoint(str(tmp_path / "saved"))
    # Of the last update: PPO's began at this iteration's start, A2C's 512 agent steps later.
    at = second.progress.agent_steps + (512 if name == "A2C" else 0)
    second.train()
    used = second.learner_group._learner.get_optimizer("default_policy").param_groups[0]["lr"]
    second.stop()
    expected = 3e-3 if name == "DQN" else 3e-3 * (1 - at / 4_096)
    assert used == pytest.approx(expected, rel=1e-5)
