"""The order of a run, from a config to its result.

Folder, lock, config.json, log, the user's subscribers, the writers, the launcher, the end. The
engine knows a Launcher, not what executes it.
"""

import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import Any

from retro_ml.core.artifacts.checkpoint_files import CheckpointFolder
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.writers import build_writers
from retro_ml.core.engine.launcher import Launcher, LaunchError, Trial, TrialEnd
from retro_ml.core.engine.milestone_films import build_milestone_films
from retro_ml.core.engine.progress import Progress, build_progress
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.run_folder import BadRunFolder, OpenRun, open_run, save_config
from retro_ml.core.engine.run_lock import RunLock
from retro_ml.core.engine.run_log import RunLog
from retro_ml.core.engine.stop_signals import StopSignals
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

__all__ = ["BadRunFolder", "TrainingEngine"]

logger = logging.getLogger("retro_ml.engine")


class TrainingEngine:
    """Trains one config with a launcher; `run` is called once."""

    def __init__(
        self,
        config: ExperimentConfig,
        event_bus: MetricEventBus | None = None,
        *,
        launcher: Launcher,
        options: RunOptions | None = None,
    ) -> None:
        self._config = config
        self._bus = MetricEventBus() if event_bus is None else event_bus
        self._launcher = launcher
        self._options = RunOptions() if options is None else options
        self._tally = _Tally()
        self._watched: list[RunWriter | RunLog] = []
        self._lock: RunLock

    def run(self) -> ExperimentResult:
        """Train to the end, however it comes.

        An interrupted run of the same config goes on from its newest checkpoint; a finished one is
        left as it is and told again. Training failures are reported by the result. Raises
        BadRunFolder (a ValueError) when the run's folder cannot be made or holds another run;
        nothing is left behind then.
        """
        started_s = time.monotonic()
        progress = build_progress(self._config, self._options, sys.stderr)
        opened = open_run(self._config, self._options, notice=progress.notice)
        self._config = opened.config
        try:
            if opened.finished is not None:
                result = self._finished(opened.finished)
            else:
                result = self._train(opened, progress, started_s=started_s)
        finally:
            opened.lock.release()
        progress.summarize(result)
        return result

    def _train(self, opened: OpenRun, progress: Progress, *, started_s: float) -> ExperimentResult:
        self._lock = opened.lock
        with RunLog(self._config.paths.log_path, notice=progress.notice) as log, progress:
            for note in [self._config.game.note, *opened.notices]:
                if note is not None:
                    logger.info("%s", note)
                    progress.notice(note)
            writers = build_writers(self._config)
            self._watched = [*writers, log]
            films = build_milestone_films(self._config, notice=progress.notice)
            with (
                self._stop_signals(progress) as stop,
                _attached(self._bus, writers, progress),
                films.attached(self._bus),
            ):
                end = self._announce(self._launch(stop, opened.restore_from))
                training_time_s = time.monotonic() - started_s
                if end.state == "completed":
                    films.finish(stopped=lambda: stop.signum is not None)
            result = self._result(end, training_time_s=training_time_s)
            logger.info("%s, exit code %d", result.state, result.exit_code)
        return result

    def _launch(self, stop: StopSignals, restore_from: CheckpointFolder | None) -> TrialEnd:
        write_error = self._write_error()
        if write_error is not None:
            return self._failed(str(write_error), exit_code=1)
        if restore_from is not None and restore_from.agent_steps >= self._config.total_timesteps:
            return self._end_seen_from_here(self._conclude(restore_from), stop)
        try:
            trial = Trial(self._config, None if restore_from is None else restore_from.path)
            ends = self._launcher.launch([trial], self._publish, self._options)
            end = self._own_end(ends)
        except LaunchError as error:
            end = self._failed(str(error), exit_code=LaunchError.exit_code)
        except KeyboardInterrupt:
            end = TrialEnd(self._config.experiment_id, "interrupted", exit_code=130)
        except Exception as error:
            logger.exception("training failed")
            end = self._failed(f"{type(error).__name__}: {error}", exit_code=1)
        return self._end_seen_from_here(end, stop)

    def _conclude(self, checkpoint: CheckpointFolder) -> TrialEnd:
        """A run that was killed between its last checkpoint and its end."""
        steps = checkpoint.agent_steps
        rows = read_rows(self._config.paths.metrics_csv_path)
        last = [row for row in rows if row["type"] == "training_step" and row["step"] == steps][-1]
        self._emit(EventType.RUN_STARTED, {"from_step": steps})
        self._tally.take(MetricEvent.now(EventType.TRAINING_STEP, "", last))
        self._emit(EventType.CHECKPOINT_SAVED, {"step": steps, "path": str(checkpoint.path)})
        return TrialEnd(self._config.experiment_id, "completed")

    def _publish(self, event: MetricEvent) -> None:
        self._tally.take(event)
        if event.event_type is EventType.RUN_STARTED:
            self._note_start(event.data)
        self._bus.emit(event)
        if self._write_error() is not None:
            self._launcher.request_stop()

    def _note_start(self, data: dict[str, Any]) -> None:
        """Who trains, for the lock; and the precision, which a resume takes over."""
        if data.get("host") == platform.node() and data.get("pid") is not None:
            self._lock.note_trainer(data["pid"])
        precision = data.get("precision")
        resources = self._config.resources
        if precision is not None and resources.precision != precision:
            resources = resources.model_copy(update={"precision": precision})
            self._config = self._config.model_copy(update={"resources": resources})
            try:
                save_config(self._config)
            except ArtifactError as error:  # the writers find the same, and end the run
                logger.error("%s", error)

    def _announce(self, end: TrialEnd) -> TrialEnd:
        if end.state != "failed":
            self._emit(EventType.RUN_COMPLETED, self._tally.completed_data(end.state))
            # The last writes are made on this event, and may fail as any other.
            write_error = self._write_error()
            if write_error is None:
                return end
            end = self._failed(str(write_error), exit_code=1)
        self._emit(EventType.ERROR, {"message": end.error})
        return end

    def _end_seen_from_here(self, end: TrialEnd, stop: StopSignals) -> TrialEnd:
        """What the launcher cannot know: files that could not be written, signals."""
        write_error = self._write_error()
        if write_error is not None:
            return self._failed(str(write_error), exit_code=1)
        if end.state == "interrupted":
            by = "on request" if stop.signum is None else f"by {Signals(stop.signum).name}"
            step, total = self._tally.step, self._config.total_timesteps
            code = (end.exit_code or 130) if stop.signum is None else 128 + stop.signum
            error = end.error or f"stopped {by} at {step:,} of {total:,} agent steps"
            return TrialEnd(end.experiment_id, "interrupted", error, code)
        if end.state == "failed":
            return self._failed(end.error or "training failed", exit_code=end.exit_code or 1)
        return end

    def _result(self, end: TrialEnd, *, training_time_s: float) -> ExperimentResult:
        paths = self._config.paths
        return ExperimentResult(
            success=end.state == "completed",
            training_time=training_time_s,
            metrics_path=paths.metrics_json_path,
            model_path=paths.model_path,
            log_path=paths.log_path,
            final_reward=self._tally.reward,
            error=end.error,
            experiment_id=self._config.experiment_id,
            experiment_dir=paths.experiment_dir,
            state=end.state,
            agent_steps=self._tally.step,
            games=self._tally.games,
            exit_code=end.exit_code,
        )

    def _finished(self, status: dict[str, Any]) -> ExperimentResult:
        """A run that ended before: nothing of it is touched."""
        self._tally.step = status["step"]
        self._tally.reward = status.get("reward")
        self._tally.games = status.get("games", 0)
        end = TrialEnd(self._config.experiment_id, "completed")
        return self._result(end, training_time_s=0.0)

    def _stop_signals(self, progress: Progress) -> StopSignals:
        def ask_to_stop() -> None:
            progress.announce_stop()
            self._launcher.request_stop()

        return StopSignals(on_first=ask_to_stop, before_exit=progress.restore_terminal)

    def _own_end(self, ends: list[TrialEnd]) -> TrialEnd:
        for end in ends:
            if end.experiment_id == self._config.experiment_id:
                return end
        raise RuntimeError(f"the launcher reported no end of {self._config.experiment_id}")

    def _failed(self, message: str, *, exit_code: int) -> TrialEnd:
        return TrialEnd(self._config.experiment_id, "failed", message, exit_code)

    def _write_error(self) -> Exception | None:
        return next((watched.error for watched in self._watched if watched.error), None)

    def _emit(self, event_type: EventType, data: dict[str, Any]) -> None:
        self._bus.emit(MetricEvent.now(event_type, self._config.experiment_id, data))


class _Tally:
    """What the result tells of the run, gathered from its events."""

    def __init__(self) -> None:
        self.step = 0
        self.reward: float | None = None
        self.games = 0
        self._time_total_s = 0.0

    def take(self, event: MetricEvent) -> None:
        data = event.data
        if event.event_type is EventType.RUN_STARTED:
            self.step = data.get("from_step", 0)
        elif event.event_type is EventType.TRAINING_STEP:
            self.step = data["step"]
            self.reward = data.get("reward")
            self.games = data.get("games", self.games)
            self._time_total_s = data.get("time_total_s", self._time_total_s)

    def completed_data(self, state: str) -> dict[str, Any]:
        return {
            "step": self.step,
            "reward": self.reward,
            "games": self.games,
            "time_total_s": self._time_total_s,
            "state": state,
        }


@contextmanager
def _attached(bus: MetricEventBus, writers: list[RunWriter], progress: Progress) -> Iterator[None]:
    """Writers and progress on the bus, in this order; taken off and closed at the end."""
    for writer in writers:
        writer.attach(bus)
    bus.subscribe(None, progress)
    try:
        yield
    finally:
        bus.unsubscribe(None, progress)
        for writer in writers:
            try:
                writer.close()
            except ArtifactError as error:
                # All was synced when the end was told, so this fails only after an earlier error,
                # which the result has already.
                logger.error("%s", error)
