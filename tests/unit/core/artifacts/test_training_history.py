"""What a model.zip tells of its training, whole or taken up again."""

from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.training_history import POINTS, TrainingHistory
from retro_ml.core.artifacts.writers import MetricsWriter
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit

STEP = EventType.TRAINING_STEP


def build_config(folder: Path) -> ExperimentConfig:
    return ExperimentConfig(
        game_id="breakout", total_timesteps=1_000, output_dir=str(folder), experiment_id="x"
    )


def rows(scores: list[float | None]) -> list[dict[str, Any]]:
    """One every 5 agent steps."""
    return [
        {"step": 5 * n, "reward": score, "games": n, "frames": 20 * n, "iteration": n}
        for n, score in enumerate(scores, start=1)
    ]


def test_the_curve_is_thinned_and_ends_where_training_stands(tmp_path: Path) -> None:
    history = TrainingHistory(build_config(tmp_path))
    for row in rows([None, None, *(float(n) for n in range(3, 197)), 7.0]):
        history.take(STEP.value, row)
    summary = history.summarize()

    assert summary["curve"][0] == {"agent_steps": 15, "score": 3.0}
    assert summary["curve"][-1] == {"agent_steps": 985, "score": 7.0}
    assert len(summary["curve"]) == POINTS + 1
    assert summary["best"] == {"agent_steps": 980, "score": 196.0}
    assert (summary["games"], summary["frames"], summary["iterations"]) == (197, 3_940, 197)


def test_a_run_without_a_finished_game_has_no_curve(tmp_path: Path) -> None:
    history = TrainingHistory(build_config(tmp_path))
    assert history.summarize()["curve"] == []
    history.take(STEP.value, {"step": 5, "reward": float("nan")})

    assert history.summarize()["curve"] == []
    assert history.summarize()["best"] is None


def test_evaluations_are_told(tmp_path: Path) -> None:
    history = TrainingHistory(build_config(tmp_path))
    history.take("evaluation_finished", {"step": 10, "reward": 2.5, "games": 30, "scores": [1]})

    assert history.summarize()["evaluations"] == [
        {"agent_steps": 10, "mean_score": 2.5, "games": 30}
    ]


def test_taken_up_again_it_is_that_of_the_rows_that_are_left(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    whole, writer = TrainingHistory(config), MetricsWriter(config)
    for row in rows([float(n) for n in range(100)]):
        writer(MetricEvent.now(STEP, "x", row))
        if row["step"] <= 300:
            whole.take(STEP.value, row)
    writer.close()

    assert TrainingHistory.load(config, up_to_step=300).summarize() == whole.summarize()
    assert TrainingHistory.load(config, up_to_step=0).summarize()["curve"] == []
