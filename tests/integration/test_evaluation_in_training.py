"""Evaluation during training: told in rows of its own, and training does not notice."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from retro_ml import (
    Agent,
    EventType,
    ExperimentConfig,
    MetricEventBus,
    evaluate_model,
    run_experiment,
)
from retro_ml.core.artifacts.checkpoint_files import find_checkpoints, load_manifest
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.rllib.evaluation import EVALUATION_SEEDS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]


def train(config: ExperimentConfig, bus: MetricEventBus | None = None) -> list[dict[str, Any]]:
    result = run_experiment(config, event_bus=bus, options=RunOptions(progress="quiet"))
    assert result.success, result.error
    rows = json.loads(config.metrics_path.read_text())["metrics"]
    return [
        {k: v for k, v in row.items() if k != "timestamp" and not k.endswith("_s")} for row in rows
    ]


def test_training_is_the_same_with_evaluations_in_between(
    small_config: Callable[..., ExperimentConfig],
) -> None:
    fields: dict[str, Any] = {"game_id": "ALE/Breakout-v5", "total_timesteps": 3000}
    evaluation = {"every_steps": 2000, "episodes": 2}
    bus = MetricEventBus()
    plain = train(small_config("A2C", experiment_id="a", **fields))
    config = small_config("A2C", experiment_id="b", evaluation=evaluation, **fields)
    evaluated = train(config, bus)

    assert [row for row in evaluated if row["type"] != "evaluation_finished"] == plain
    (row,) = [row for row in evaluated if row["type"] == "evaluation_finished"]
    assert (row["step"], row["games"]) == (2080, 2)
    (event,) = bus.history(EventType.EVALUATION_FINISHED)
    assert event.data["protocol"] == "machado"
    assert event.data["reward"] == row["reward"] == sum(event.data["scores"]) / 2

    manifests = {
        f.agent_steps: load_manifest(f.path) for f in find_checkpoints(config.checkpoints_dir)
    }
    assert manifests[2080]["evaluation"] == row["reward"]
    assert manifests[max(manifests)]["evaluation"] is None
    best = config.paths.best_model_path
    assert Agent.load(best).metadata["agent_steps"] == 2080
    seed = derive_seed(config.seed, EVALUATION_SEEDS)
    again = evaluate_model(best, episodes=2, seed=seed, protocol="machado")
    assert [episode.score for episode in again.episodes] == event.data["scores"]
