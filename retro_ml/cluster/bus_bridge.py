"""From a trial's results to the engine's bus: the driver's half of publishing.

RLlib callbacks put records into a trial's result (`rllib.callbacks`); Tune brings the result to the
driver, where this callback turns each record into a MetricEvent and publishes it, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ray.tune import Callback

from retro_ml.cluster.trial_actor import EXPERIMENT
from retro_ml.core.metrics.event_bus import EventType, MetricEvent
from retro_ml.rllib.names import RECORDS


class BusBridge(Callback):
    """Publishes what trials record.

    Args:
        publish: called in Tune's thread with one event at a time.
    """

    def __init__(self, publish: Callable[[MetricEvent], None]) -> None:
        self._publish = publish

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One event for each record of the result."""
        for record in result.get(RECORDS, ()):
            self._publish(
                MetricEvent(
                    EventType(record["type"]),
                    experiment_id(trial),
                    datetime.fromisoformat(record["timestamp"]),
                    record["data"],
                )
            )

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        """CHECKPOINT_SAVED, with the folder that Tune's checkpoint is."""
        # From now on Tune brings the trial back; the checkpoint that it began with may be removed.
        trial.config["restore_from"] = None
        pointer = read_pointer(checkpoint)
        data = {"step": pointer["agent_steps"], "path": pointer["path"]}
        self._publish(MetricEvent.now(EventType.CHECKPOINT_SAVED, experiment_id(trial), data))


def read_pointer(checkpoint: Any) -> dict[str, Any]:
    """Where a trial's checkpoint lies, perhaps on another node's disk: `path`, `agent_steps`."""
    path = Path(checkpoint.path)
    return {"path": str(path), "agent_steps": int(path.name.removeprefix("step-"))}


def experiment_id(trial: Any) -> str:
    """The experiment that a Tune trial is."""
    return str(trial.config[EXPERIMENT]["experiment_id"])
