"""What a run will take, told before it begins."""

from pathlib import Path
from typing import Any

import pytest

from retro_ml.cluster.plan import plan_lines, plan_run
from retro_ml.core.artifacts.metrics_file import build_header, build_row
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit


def make_config(tmp_path: Path, **fields: Any) -> ExperimentConfig:
    given = {"game_id": "breakout", "output_dir": str(tmp_path / "runs"), **fields}
    return ExperimentConfig(**given)


def test_a_run_ends_with_a_whole_iteration(tmp_path: Path) -> None:
    plan = plan_run(make_config(tmp_path, total_timesteps=10_000))
    assert (plan.iterations, plan.agent_steps) == (10, 10_240)


def test_checkpoints_and_replay_decide_the_size(tmp_path: Path) -> None:
    def size(**fields: Any) -> int:
        return plan_run(make_config(tmp_path, total_timesteps=1_000_000, **fields)).disk_bytes

    few = size(checkpointing={"keep": 1})
    many = size(checkpointing={"keep": 9})
    weights_and_adam = 3 * 4 * 1_693_875  # NatureCNN with 18 actions and a value
    assert many - few == 8 * weights_and_adam
    evaluated = size(
        checkpointing={"keep": 1, "every_steps": 1_000_000}, evaluation={"every_steps": 9}
    )
    model = 2 * 4 * 1_693_875
    once = size(checkpointing={"keep": 1, "every_steps": 1_000_000})
    assert evaluated - once == 2 * weights_and_adam + model
    replay = plan_run(make_config(tmp_path, algorithm="DQN", total_timesteps=1_000_000))
    assert replay.memory_bytes > 7_063 * 1_000_000


def test_many_games_at_once_take_memory_for_their_batches(tmp_path: Path) -> None:
    def memory(**fields: Any) -> int:
        return plan_run(make_config(tmp_path, **fields)).memory_bytes

    observation = 4 * 84 * 84
    few = memory(resources={"games_per_env_runner": 8})
    many = memory(resources={"games_per_env_runner": 800})
    assert many - few == 792 * 128 * observation
    apart = memory(resources={"games_per_env_runner": 8, "num_env_runners": 100})
    assert apart - many == 800 * 128 * observation, "the parts and all together"


def test_the_latest_run_of_the_algorithm_gives_the_speed(tmp_path: Path) -> None:
    config = make_config(tmp_path, total_timesteps=10_240)
    assert plan_run(config).time_s is None
    for algorithm, time_total_s in (("PPO", 10.0), ("A2C", 2.0)):
        done = make_config(tmp_path, algorithm=algorithm)
        done.experiment_dir.mkdir(parents=True)
        done.config_path.write_text(done.model_dump_json())
        data = {"step": 1000, "time_total_s": time_total_s}
        row = build_row(MetricEvent.now(EventType.TRAINING_STEP, "x", data))
        done.paths.metrics_csv_path.write_bytes(build_header() + row)
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "metrics.csv").write_text("mine")

    plan = plan_run(config)

    assert plan.time_s == pytest.approx(102.4)
    assert "about 1 min 42 s" in plan_lines(config, plan)[2]


def test_nothing_is_made_for_it(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    lines = plan_lines(config, plan_run(config))
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "steps", "time", "disk", "memory", "files",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
