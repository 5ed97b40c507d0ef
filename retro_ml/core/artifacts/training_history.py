"""What a model.zip tells of its training: a curve of a few dozen points, and where it stands."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.run_writer import plain
from retro_ml.core.metrics.event_bus import EventType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retro_ml.core.experiments.config import ExperimentConfig

POINTS = 50
"""Of the curve: one for each 2 % of the run."""
_TRAINING, _EVALUATION = EventType.TRAINING_STEP.value, EventType.EVALUATION_FINISHED.value


class TrainingHistory:
    """Gathered from a run's rows, however often it was taken up again.

    Args:
        config: says how long the run is, which spaces the curve's points.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self._total = config.total_timesteps
        self._last: dict[str, Any] = {}
        self._best: dict[str, Any] | None = None
        self._curve: dict[int, dict[str, Any]] = {}
        self._evaluations: list[dict[str, Any]] = []

    @classmethod
    def load(cls, config: ExperimentConfig, *, up_to_step: int) -> TrainingHistory:
        """That of the run's metrics.csv up to a step. Raises ArtifactError for a damaged line."""
        history, path = cls(config), config.paths.metrics_csv_path
        if up_to_step and path.exists():
            for row in read_rows(path):
                if row["step"] is not None and row["step"] <= up_to_step:
                    history.take(row["type"], row)
        return history

    def take(self, row_type: str, row: Mapping[str, Any]) -> None:
        """One row of metrics.csv, or the data of its event."""
        if row_type == _TRAINING:
            self._last = dict(row)
            score = plain(row.get("reward"))
            if score is None:
                return
            point = {"agent_steps": row["step"], "score": score}
            # The first row in each stretch of the run, so that the curve does not move.
            self._curve.setdefault(row["step"] * POINTS // self._total, point)
            if self._best is None or score > self._best["score"]:
                self._best = point
        elif row_type == _EVALUATION:
            self._evaluations.append(
                {
                    "agent_steps": row["step"],
                    "mean_score": plain(row.get("reward")),
                    "games": row.get("games"),
                }
            )

    @property
    def best_evaluation(self) -> dict[str, Any] | None:
        """`agent_steps` and `mean_score` of the highest, the newest of equals."""
        scored = [one for one in self._evaluations if one["mean_score"] is not None]
        rank = itemgetter("mean_score", "agent_steps")
        return max(scored, key=rank, default=None)

    def summarize(self) -> dict[str, Any]:
        """As JSON types. Scores are means over the last 100 games, unclipped."""
        last = self._last
        point = {"agent_steps": last.get("step"), "score": plain(last.get("reward"))}
        curve = list(self._curve.values())
        if point["score"] is not None and curve[-1]["agent_steps"] != point["agent_steps"]:
            curve.append(point)
        return {
            "frames": plain(last.get("frames")),
            "games": plain(last.get("games")),
            "iterations": plain(last.get("iteration")),
            "time_s": plain(last.get("time_total_s")),
            "best": self._best,
            "curve": curve,
            "evaluations": self._evaluations[-POINTS:],
        }
