"""Run folders as a run leaves them, written by the package's own writers of rows."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.metrics_file import build_header, build_row
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run under tmp_path/runs: `make_run("a", scores=[1, 2], seed=3, algorithm="DQN")`.

    Game k ends at agent step 100 * (k + 1); an iteration of 100 steps ends there too. Evaluations
    are of the model at the end, or `evaluated_at` other agent steps.
    """

    def make(
        name: str,
        *,
        scores: list[float],
        state: str = "completed",
        evaluation: list[float] | None = None,
        evaluated_at: int | None = None,
        folder: Path | None = None,
        **fields: Any,
    ) -> Path:
        config = ExperimentConfig(
            **{
                "game_id": "breakout",
                "total_timesteps": 100 * max(1, len(scores)),
                "output_dir": str(folder or tmp_path / "runs"),
                "experiment_id": name,
                **fields,
            }
        )
        paths = config.paths
        paths.experiment_dir.mkdir(parents=True)
        paths.config_path.write_text(config.model_dump_json())
        status = {
            "experiment_id": name,
            "state": state,
            "step": 100 * len(scores),
            "total_timesteps": config.total_timesteps,
            "reward": sum(scores[-100:]) / len(scores[-100:]) if scores else None,
            "games": len(scores),
            "started_at": TIME.isoformat(),
            "updated_at": TIME.isoformat(),
            "error": "RuntimeError: no more" if state == "failed" else None,
        }
        paths.status_path.write_text(json.dumps(status))
        paths.metrics_csv_path.write_bytes(build_header() + b"".join(_rows(scores)))
        if evaluation is not None:
            document = {
                "protocol": {"name": "noop", "actions": "sampled"},
                "trained_agent_steps": evaluated_at or 100 * len(scores),
                "episodes": [{"score": score} for score in evaluation],
            }
            paths.evaluation_path("noop").write_text(json.dumps(document))
        return paths.experiment_dir

    return make


def _rows(scores: list[float]) -> list[bytes]:
    rows = []
    for index, score in enumerate(scores):
        step = 100 * (index + 1)
        past = scores[max(0, index - 99) : index + 1]
        for kind, data in (
            (
                EventType.EPISODE_FINISHED,
                {"step": step, "reward": float(score), "length": 50, "frames": 200},
            ),
            (
                EventType.TRAINING_STEP,
                {
                    "step": step,
                    "reward": sum(past) / len(past),
                    "iteration": index + 1,
                    "policy_loss": -0.01,
                    "value_loss": 0.5,
                    "entropy": 1.0,
                    "loss": 0.1,
                    "learning_rate": 2.5e-4,
                    "steps_per_s": 500.0,
                    "time_total_s": 0.2 * (index + 1),
                },
            ),
        ):
            rows.append(build_row(MetricEvent(kind, "x", TIME, data)))
    return rows
