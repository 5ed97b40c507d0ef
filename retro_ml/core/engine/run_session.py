"""One run between its opening and its end: its files, its numbers, its last words.

An engine that orders one run has one of these, a sweep's has one for each trial under way.
"""

import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

from retro_ml.core.artifacts.checkpoint_files import CheckpointFolder
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.writers import build_writers
from retro_ml.core.engine.launcher import Trial, TrialEnd
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.run_folder import OpenRun, save_config
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

logger = logging.getLogger("retro_ml.engine")


class Watched(Protocol):
    """Whatever may fail to write; `error` is its first failure."""

    @property
    def error(self) -> Exception | None:
        """None while all goes well."""


class RunSession:
    """A run that this process works on.

    Args:
        opened: its folder, locked, and its storage; they are the caller's to release.
        bus: its events are emitted there.
    """

    def __init__(self, opened: OpenRun, bus: MetricEventBus) -> None:
        self.config = opened.config
        self.tally = Tally()
        self.opened = opened
        self._lock = opened.lock
        self._storage = opened.storage
        self._restore_from = opened.restore_from
        self._bus = bus
        self._writers: list[RunWriter] = []
        self._watched: list[Watched] = []
        self._started = False

    @property
    def trial(self) -> Trial:
        """What a launcher is asked to execute."""
        restore_from = None if self._restore_from is None else self._restore_from.path
        return Trial(self.config, restore_from)

    @property
    def restore_from(self) -> CheckpointFolder | None:
        """The checkpoint that it goes on from."""
        return self._restore_from

    @property
    def write_error(self) -> Exception | None:
        """That the run is another driver's by now, or the first file that could not be written."""
        return next((watched.error for watched in self._watched if watched.error), None)

    def attach_writers(self, bus: MetricEventBus, *, watched: Sequence[Watched] = ()) -> None:
        """Puts the run's writers, and what sends their files to storage, on a bus.

        Args:
            bus: the session's own, or one that gets this run's events alone.
            watched: what else ends the run when it cannot write.
        """
        self._watched = [self._lock, *watched]
        if self._lock.error is not None:
            return
        storage = self._storage
        self._writers = build_writers(self.config, None if storage is None else storage.describe)
        self._watched = [self._lock, *self._writers, *watched]
        for writer in self._writers:
            writer.attach(bus)
        if storage is not None:
            storage.attach(bus, self._writers)

    def close_writers(self) -> None:
        """Takes them off and closes their files; what is to be sent may still be under way."""
        if self._storage is not None:
            self._storage.detach()
        writers, self._writers = self._writers, []
        for writer in writers:
            try:
                writer.close()
            except ArtifactError as error:
                # All was synced when the end was told, so this fails only after an earlier error,
                # which the result has already.
                logger.error("%s", error)

    def publish(self, event: MetricEvent) -> None:
        """Hands one event of the run to everybody."""
        self._leave_what_is_lost()
        self.tally.take(event)
        if event.event_type is EventType.RUN_STARTED:
            self._started = True
            self._note_start(event.data)
        self._bus.emit(event)

    def end_before_launch(self) -> TrialEnd | None:
        """The end of a run that cannot begin, or that was killed after its last checkpoint."""
        write_error, checkpoint = self.write_error, self._restore_from
        if write_error is not None:
            return self.failed(str(write_error), exit_code=1)
        if checkpoint is not None and self.opened.complete:
            return self._conclude(checkpoint)
        return None

    def announce(self, end: TrialEnd, *, signum: int | None) -> TrialEnd:
        """Tells everybody the end, as it is seen from here; the last writes are made on it.

        Args:
            end: what the launcher says.
            signum: the signal that asked for it, if one did.
        """
        self._leave_what_is_lost()
        if not self._started:
            self._recall()
            if end.state == "interrupted":
                self._emit_start()  # what lies beyond the checkpoint goes
        end = self._seen_from_here(end, signum)
        if end.state != "failed":
            self._emit(EventType.RUN_COMPLETED, self.tally.completed_data(end.state))
            # The last writes are made on this event, and may fail as any other.
            write_error = self.write_error
            if write_error is None:
                return end
            end = self.failed(str(write_error), exit_code=1)
        self._emit(EventType.ERROR, {"message": end.error})
        return end

    def failed(self, message: str, *, exit_code: int) -> TrialEnd:
        """A failure as the run's end."""
        return TrialEnd(self.config.experiment_id, "failed", message, exit_code)

    def _conclude(self, checkpoint: CheckpointFolder) -> TrialEnd:
        self._recall()
        self._emit_start()
        steps = checkpoint.agent_steps
        self._emit(EventType.CHECKPOINT_SAVED, {"step": steps, "path": str(checkpoint.path)})
        return TrialEnd(self.config.experiment_id, "completed")

    def _recall(self) -> None:
        """The numbers of the checkpoint, where no trial has come to tell them."""
        if self._restore_from is None:
            return
        steps = self._restore_from.agent_steps
        self.tally.step = steps
        for row in read_rows(self.config.paths.metrics_csv_path):
            if row["type"] == EventType.TRAINING_STEP.value and row["step"] == steps:
                self.tally.take(MetricEvent.now(EventType.TRAINING_STEP, "", row))
                return

    def _emit_start(self) -> None:
        self._started = True
        self._emit(EventType.RUN_STARTED, {"from_step": self.tally.step})

    def _seen_from_here(self, end: TrialEnd, signum: int | None) -> TrialEnd:
        """What the launcher cannot know: files that could not be written, signals."""
        write_error = self.write_error
        if write_error is not None:
            return self.failed(str(write_error), exit_code=1)
        if end.state == "interrupted":
            by = "on request" if signum is None else f"by {Signals(signum).name}"
            step, total = self.tally.step, self.config.total_timesteps
            code = (end.exit_code or 130) if signum is None else 128 + signum
            error = end.error or f"stopped {by} at {step:,} of {total:,} agent steps"
            return TrialEnd(end.experiment_id, "interrupted", error, code)
        if end.state == "failed":
            return self.failed(end.error or "training failed", exit_code=end.exit_code or 1)
        return end

    def _note_start(self, data: dict[str, Any]) -> None:
        """Who trains, for the lock; and the precision, which a resume takes over."""
        if data.get("host") == platform.node() and data.get("pid") is not None:
            self._lock.note_trainer(data["pid"])
        precision = data.get("precision")
        resources = self.config.resources
        if precision is not None and resources.precision != precision:
            resources = resources.model_copy(update={"precision": precision})
            self.change_config(self.config.model_copy(update={"resources": resources}))

    def change_config(self, config: ExperimentConfig) -> None:
        """Replaces the run's config, on disk too."""
        self.config = config
        if self._lock.error is not None:
            return
        try:
            save_config(config)
        except ArtifactError as error:  # the writers find the same, and end the run
            logger.error("%s", error)

    def _leave_what_is_lost(self) -> None:
        """Another driver's files get nothing more from here."""
        if self._lock.error is not None:
            self.close_writers()

    def _emit(self, event_type: EventType, data: dict[str, Any]) -> None:
        self._bus.emit(MetricEvent.now(event_type, self.config.experiment_id, data))


class Tally:
    """What the result tells of a run, gathered from its events."""

    def __init__(self) -> None:
        self.step = 0
        self.reward: float | None = None
        self.games = 0
        self.time_total_s = 0.0

    def take(self, event: MetricEvent) -> None:
        """Learn from one event."""
        data = event.data
        if event.event_type is EventType.RUN_STARTED:
            self.step = data.get("from_step", 0)
        elif event.event_type is EventType.TRAINING_STEP:
            self.step = data["step"]
            self.reward = data.get("reward")
            self.games = data.get("games", self.games)
            self.time_total_s = data.get("time_total_s", self.time_total_s)

    def take_status(self, status: dict[str, Any]) -> None:
        """Learn from the status.json of a run that ended before."""
        self.step = status["step"]
        self.reward = status.get("reward")
        self.games = status.get("games") or 0

    def completed_data(self, state: str) -> dict[str, Any]:
        """The data of RUN_COMPLETED."""
        return {
            "step": self.step,
            "reward": self.reward,
            "games": self.games,
            "time_total_s": self.time_total_s,
            "state": state,
        }


def build_result(
    config: ExperimentConfig, end: TrialEnd, tally: Tally, *, training_time_s: float
) -> ExperimentResult:
    """What the user gets of a run."""
    paths = config.paths
    return ExperimentResult(
        success=end.state == "completed",
        training_time=training_time_s,
        metrics_path=paths.metrics_json_path,
        model_path=paths.model_path,
        log_path=paths.log_path,
        final_reward=tally.reward,
        error=end.error,
        experiment_id=config.experiment_id,
        experiment_dir=Path(paths.experiment_dir),
        state=end.state,
        agent_steps=tally.step,
        games=tally.games,
        exit_code=end.exit_code,
        best_model_path=paths.best_model_path if paths.best_model_path.exists() else None,
    )
