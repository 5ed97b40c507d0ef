"""The words of a run's progress: numbers gathered from its events, and lines made of them."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from retro_ml.core.metrics.event_bus import EventType, MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.engine.result import ExperimentResult
    from retro_ml.core.engine.run_storage import Delivery
    from retro_ml.core.experiments.config import ExperimentConfig

# Weight of the newest iteration in the speed shown: an iteration or two of trouble hardly shows.
_SPEED_WEIGHT = 0.2


class RunView:
    """What is known of a run while it lasts; `take` keeps it up to date."""

    def __init__(self, config: "ExperimentConfig") -> None:
        self.experiment_id = config.experiment_id
        self.total = config.total_timesteps
        self.title = f"{config.algorithm} on {config.game.rom}"
        self.details = [f"{self.total:,} agent steps", f"seed {config.seed}"]
        self.folder = shown_path(config.paths.experiment_dir)
        if config.paths.storage_uri is not None:
            self.folder += f", sent to {config.paths.storage_uri}"
        self.step = 0
        self.running = False
        self.evaluation = ""
        self._reward: float | None = None
        self._games = 0
        self._steps_per_s: float | None = None
        self._started_s = time.monotonic()

    def take(self, event: MetricEvent) -> None:
        """Learn from one event of the run."""
        data = event.data
        if event.event_type is EventType.RUN_STARTED:
            self.running = True
            self.step = data.get("from_step", 0)
            device = [str(data[key]) for key in ("device", "precision") if data.get(key)]
            self.details = self.details[:2] + device
        elif event.event_type is EventType.TRAINING_STEP:
            self.step = data["step"]
            self._reward = data.get("reward")
            self._games = data.get("games") or 0
            self._steps_per_s = _smoothed(self._steps_per_s, data.get("steps_per_s"))
        elif event.event_type is EventType.EVALUATION_FINISHED:
            score = f"{data['reward']:,.1f}, mean of {data['games']:,} games"
            self.evaluation = (
                f"evaluation at {data['step']:,}: {score}, protocol {data['protocol']}"
            )

    @property
    def share(self) -> float:
        """Progress, 0 to 1."""
        return min(1.0, self.step / self.total)

    @property
    def elapsed(self) -> str:
        """Time since the start, in words."""
        return duration(time.monotonic() - self._started_s)

    def steps(self) -> str:
        """`4,096 / 10,000 (41 %)`."""
        return f"{self.step:,} / {self.total:,} ({math.floor(100 * self.share)} %)"

    def facts(self) -> list[str]:
        """Speed, score, time left: those that are known."""
        facts = []
        if self._steps_per_s:
            facts.append(f"{self._steps_per_s:,.0f} steps/s")
        facts.append(score_words(self._reward, self._games))
        if self._steps_per_s and self.step < self.total:
            left_s = (self.total - self.step) / self._steps_per_s
            facts.append(f"{duration(left_s)} left")
        return facts


def score_words(reward: float | None, games: int) -> str:
    """`score 1.4, mean of 37 games`; the mean is over the last 100 at most."""
    if reward is None:
        return "no game over yet"
    if games > 100:
        return f"score {reward:,.1f}, mean of the last 100 of {games:,} games"
    return f"score {reward:,.1f}, mean of {games} game{'s' if games != 1 else ''}"


def summary_lines(result: "ExperimentResult", *, title: str) -> list[tuple[str, str]]:
    """The end of a run as pairs of a heading and its text."""
    took = f"{title}, {result.agent_steps:,} agent steps"
    if result.training_time > 0:
        took += f" in {duration(result.training_time)}"
    else:
        took += ", before; more of them with a higher --total-timesteps"
    reason = result.error or took
    lines = {
        "completed": [("done", took)],
        "interrupted": [("stopped", reason.removeprefix("stopped "))],
        "failed": [("failed", reason)],
    }[result.state]
    if result.agent_steps > 0:
        score = score_words(result.final_reward, result.games)
        lines.append(("score", score.removeprefix("score ")))
    lines.append(("files", shown_path(result.experiment_dir)))
    if result.state == "failed":
        lines.append(("log", shown_path(result.log_path)))
    elif result.model_path.exists():
        lines.append(("model", shown_path(result.model_path)))
        if result.best_model_path is not None:
            lines.append(("best", shown_path(result.best_model_path)))
    if result.storage is not None:
        lines.append(("storage", delivery_words(result.storage)))
    return lines


def delivery_words(delivery: "Delivery") -> str:
    """What of an ended run is in storage, and how the rest gets there."""
    if delivery.complete:
        return f"all of it is in {delivery.uri}"
    missing = ", ".join(delivery.missing) or "the last state"
    why = f" ({delivery.error})" if delivery.error else ""
    return (
        f"NOT ALL SENT to {delivery.uri}: {missing}{why}; the same command on this machine sends it"
    )


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `1 h 05 min`, `2 d 03 h`."""
    whole_s = max(0, round(seconds))
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60:02} s"
    if whole_s < 86400:
        return f"{whole_s // 3600} h {whole_s % 3600 // 60:02} min"
    return f"{whole_s // 86400} d {whole_s % 86400 // 3600:02} h"


def shown_path(path: Path) -> str:
    """As one would type it from the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        return str(path)


def _smoothed(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return new if new is not None else old
    return old + _SPEED_WEIGHT * (new - old)
