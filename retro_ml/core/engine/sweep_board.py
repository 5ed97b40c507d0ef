"""How a sweep stands: gathered from its trials' events, told by leaderboard and status.json."""

import json
import os
import socket
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from retro_ml.core.artifacts.leaderboard import STATES, Normalise, Standing, save_leaderboard
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

_LEAST_INTERVAL_S = 2.0
# Of a large sweep a save takes a while: at most this share of the time goes there.
_SHARE_OF_TIME = 0.02
_MOST_FAILED_SHOWN = 100
# Weight of the newest iteration in a trial's speed.
_SPEED_WEIGHT = 0.2
_ENDED_FOR_GOOD = ("completed", "stopped")


class SweepBoard:
    """Every trial's standing.

    Args:
        config: of the sweep.
        normalise: scores of a game on the human scale.
    """

    def __init__(self, config: SweepConfig, *, normalise: Normalise) -> None:
        self.config = config
        self.normalise = normalise
        self.standings = {
            trial.experiment_id: _stand(trial.config, trial.values) for trial in config.trials
        }
        self.total_agent_steps = sum(one.total_timesteps for one in self.standings.values())
        self.agent_steps = 0
        self.error: ArtifactError | None = None
        self.started_at = datetime.now(UTC)
        self._saved_at_s = -_LEAST_INTERVAL_S
        self._save_took_s = 0.0

    def __getitem__(self, experiment_id: str) -> Standing:
        return self.standings[experiment_id]

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(one.state for one in self.standings.values())

    @property
    def share(self) -> float:
        """Progress, 0 to 1; trials that ended for good count as whole."""
        left = sum(
            max(0, one.total_timesteps - one.agent_steps)
            for one in self.standings.values()
            if one.state not in _ENDED_FOR_GOOD
        )
        return 1.0 - left / max(self.total_agent_steps, 1)

    @property
    def failed(self) -> list[Standing]:
        """The trials that failed."""
        return [one for one in self.standings.values() if one.state == "failed"]

    def take(self, event: MetricEvent) -> None:
        """Learn from one event of a trial."""
        one, data = self.standings[event.experiment_id], event.data
        if event.event_type is EventType.RUN_STARTED:
            self.set_steps(one, data.get("from_step", 0))
        elif event.event_type is EventType.TRAINING_STEP:
            self.set_steps(one, data["step"])
            one.score = data.get("reward")
            one.games = data.get("games") or 0
            new, old = data.get("steps_per_s"), one.steps_per_s
            one.steps_per_s = new if old is None else old + _SPEED_WEIGHT * ((new or old) - old)
        elif event.event_type is EventType.HYPERPARAMETERS_CHANGED:
            one.values = one.values | data["values"]

    def take_status(self, one: Standing, status: dict[str, Any], *, finished: bool) -> None:
        """Learn from the status.json that an earlier call left.

        Args:
            one: the trial's.
            status: of the trial.
            finished: it has nothing left to do.
        """
        state = status.get("state")
        # One that was killed, or that was told to go on, does go on.
        one.state = state if state in {"stopped", "failed"} else "interrupted"
        if finished:
            one.state = "completed"
        one.error = status.get("error")
        self.set_steps(one, status["step"])
        one.score = status.get("reward")
        one.games = status.get("games") or 0

    def set_steps(self, one: Standing, agent_steps: int) -> None:
        """A trial's progress, and so the sweep's."""
        self.agent_steps += agent_steps - one.agent_steps
        one.agent_steps = agent_steps

    @property
    def state(self) -> str:
        """Of the whole: running, failed, interrupted (there is something left) or completed."""
        counts = self.counts
        if counts["running"]:
            return "running"
        if counts["failed"]:
            return "failed"
        return "interrupted" if counts["waiting"] or counts["interrupted"] else "completed"

    def save(self, *, force: bool = False) -> None:
        """Replaces leaderboard and status.json, unless that was done just now.

        A failure is kept in `error`, for whoever orders the sweep.
        """
        now_s = time.monotonic()
        interval_s = max(_LEAST_INTERVAL_S, self._save_took_s / _SHARE_OF_TIME)
        if not force and now_s - self._saved_at_s < interval_s:
            return
        try:
            save_leaderboard(self.standings.values(), self.config.paths, normalise=self.normalise)
            text = json.dumps(self._status(), indent=2, allow_nan=False) + "\n"
            replace_atomically(
                self.config.paths.status_path, lambda file: file.write(text.encode())
            )
        except ArtifactError as error:
            self.error = self.error or error
        self._saved_at_s = time.monotonic()
        self._save_took_s = self._saved_at_s - now_s

    def _status(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "name": self.config.sweep_id,
            "state": self.state,
            "trials": {name: counts[name] for name in STATES},
            "agent_steps": self.agent_steps,
            "total_agent_steps": self.total_agent_steps,
            "progress": self.share,
            "failed": [
                {"experiment_id": one.experiment_id, "error": one.error}
                for one in self.failed[:_MOST_FAILED_SHOWN]
            ],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": self.started_at.isoformat(timespec="microseconds"),
            "updated_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }


def _stand(config: ExperimentConfig, values: dict[str, Any]) -> Standing:
    return Standing(
        experiment_id=config.experiment_id,
        game=config.game.label,
        rom=config.game.rom,
        algorithm=config.algorithm,
        seed=config.seed,
        values=values,
        total_timesteps=config.total_timesteps,
    )
