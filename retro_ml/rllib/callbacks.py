"""RLlib callbacks: here a trial's records leave the actor it runs in.

A callback cannot reach the user's MetricEventBus: it lives in another process, perhaps on another
machine. It puts plain data into the result instead, under `records`; `cluster.bus_bridge` publishes
them on the driver.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS
from ray.tune.result import SHOULD_CHECKPOINT

from retro_ml.rllib.evaluation import evaluate_trial, is_due
from retro_ml.rllib.names import AGENT_STEPS, RECORDS, SCORE

LEARNER_COLUMNS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
    "loss",
    "q_mean",
)


class RecordCallback(RLlibCallback):
    """Writes a result's `records`: `[{"type", "timestamp", "data"}]`, in order."""

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Starts the clock of the first iteration."""
        self._started_at = time.perf_counter()
        self._first_result = True

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """One row per finished game, then one for the iteration."""
        progress = algorithm.progress
        now = time.perf_counter()
        elapsed_s, self._started_at = now - self._started_at, now
        progress.iteration = result["training_iteration"]
        progress.time_total_s += elapsed_s
        records = []
        if self._first_result:
            records.append(_record("run_started", algorithm.describe_attempt()))
            self._first_result = False
        records.extend(_record("episode_finished", game) for game in progress.finished)
        progress.finished = []
        steps = progress.agent_steps - algorithm.agent_steps_before
        row = {
            "step": progress.agent_steps,
            "reward": progress.score,
            "iteration": progress.iteration,
            "frames": progress.frames,
            "games": progress.games,
            **_learner_columns(algorithm, result),
            **algorithm.training_columns(),
            "steps_per_s": steps / elapsed_s,
            "time_total_s": progress.time_total_s,
        }
        records.append(_record("training_step", row))
        progress.evaluation = None
        if is_due(algorithm):
            evaluation = evaluate_trial(algorithm)
            progress.evaluation = evaluation["reward"]
            records.append(_record("evaluation_finished", evaluation))
            # What was evaluated is kept, so that the best can be.
            result[SHOULD_CHECKPOINT] = True
            self._started_at = time.perf_counter()
        algorithm.agent_steps_before = progress.agent_steps
        result[RECORDS] = records
        result[AGENT_STEPS] = progress.agent_steps
        result[SCORE] = progress.score


def _record(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "timestamp": datetime.now(UTC).isoformat(timespec="microseconds"),
        "data": data,
    }


def _learner_columns(algorithm: Any, result: dict[str, Any]) -> dict[str, float]:
    """Means over the iteration's updates, and the step size of the last; nothing without any."""
    statistics = result.get(LEARNER_RESULTS, {}).get(DEFAULT_MODULE_ID, {})
    columns = {name: float(statistics[name]) for name in LEARNER_COLUMNS if name in statistics}
    return columns | {"learning_rate": algorithm.learning_rate} if columns else columns
