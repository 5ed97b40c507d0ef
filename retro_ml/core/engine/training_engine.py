"""The order of a run, from a config to its result.

Folder, lock, config.json, log, the user's subscribers, the writers, the launcher, the end. The
engine knows a Launcher, not what executes it.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retro_ml.core.engine.launcher import Launcher, LaunchError, TrialEnd
from retro_ml.core.engine.milestone_films import build_milestone_films
from retro_ml.core.engine.progress import Progress, build_progress
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.run_folder import OpenRun, ReadInitial, open_run
from retro_ml.core.engine.run_log import RunLog
from retro_ml.core.engine.run_session import RunSession, Tally, build_result
from retro_ml.core.engine.run_storage import RunStorage
from retro_ml.core.engine.stop_signals import StopSignals
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import MetricEvent, MetricEventBus

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
        read_initial: ReadInitial | None = None,
    ) -> None:
        self._config = config
        self._bus = MetricEventBus() if event_bus is None else event_bus
        self._launcher = launcher
        self._options = RunOptions() if options is None else options
        self._read_initial = read_initial

    def run(self) -> ExperimentResult:
        """Train to the end, however it comes.

        An interrupted run of the same config goes on from its newest checkpoint; a finished one is
        left as it is and told again. Training failures are reported by the result. Raises
        BadRunFolder (a ValueError) when the run's folder cannot be made or holds another run;
        nothing is left behind then.
        """
        started_s = time.monotonic()
        progress = build_progress(self._config, self._options, sys.stderr)
        opened = open_run(
            self._config,
            self._options,
            notice=progress.notice,
            read_initial=self._read_initial,
        )
        try:
            if opened.finished is not None:
                for note in opened.notices:
                    progress.notice(note)
                result = _tell_again(opened.config, opened.finished)
            else:
                result = self._train(opened, progress, started_s=started_s)
            if opened.storage is not None:
                result = self._deliver(result, opened.storage, progress)
        finally:
            opened.release()
        progress.summarize(result)
        return result

    def _train(self, opened: OpenRun, progress: Progress, *, started_s: float) -> ExperimentResult:
        session = RunSession(opened, self._bus)
        with (
            RunLog(opened.config.paths.log_path, notice=progress.notice) as log,
            progress,
            self._stop_signals(progress) as stop,  # before any file says that the run goes on
        ):
            for note in [*opened.config.notes, *opened.notices]:
                logger.info("%s", note)
                progress.notice(note)
            session.attach_writers(self._bus, watched=[log])
            films = build_milestone_films(session.config, notice=progress.notice)
            with _attached(self._bus, session, progress), films.attached(self._bus):
                end = session.end_before_launch() or self._launch(session)
                end = session.announce(end, signum=stop.signum)
                took_s = time.monotonic() - started_s
                if end.state == "completed":
                    films.finish(stopped=lambda: stop.signum is not None)
            result = build_result(session.config, end, session.tally, training_time_s=took_s)
            logger.info("%s, exit code %d", result.state, result.exit_code)
        return result

    def _deliver(
        self, result: ExperimentResult, storage: RunStorage, progress: Progress
    ) -> ExperimentResult:
        """Waits for what is still to be sent; a run whose files are not there did not do its job.

        A signal ends the waiting.
        """
        with StopSignals(on_first=storage.give_up, before_exit=progress.restore_terminal):
            delivery = storage.deliver()
        code = result.exit_code or (0 if delivery.complete else LaunchError.exit_code)
        return dataclasses.replace(result, storage=delivery, exit_code=code)

    def _launch(self, session: RunSession) -> TrialEnd:
        def publish(event: MetricEvent) -> None:
            session.publish(event)
            if session.write_error is not None:
                self._launcher.request_stop()

        try:
            ends = self._launcher.launch([session.trial], publish, self._options)
            return _own_end(ends, session.config.experiment_id)
        except LaunchError as error:
            return session.failed(str(error), exit_code=LaunchError.exit_code)
        except KeyboardInterrupt:
            return TrialEnd(session.config.experiment_id, "interrupted", exit_code=130)
        except Exception as error:
            logger.exception("training failed")
            return session.failed(f"{type(error).__name__}: {error}", exit_code=1)

    def _stop_signals(self, progress: Progress) -> StopSignals:
        def ask_to_stop() -> None:
            progress.announce_stop()
            self._launcher.request_stop()

        return StopSignals(on_first=ask_to_stop, before_exit=progress.restore_terminal)


def _tell_again(config: ExperimentConfig, status: dict[str, Any]) -> ExperimentResult:
    """The result of a run that ended before: nothing of it is touched."""
    tally = Tally()
    tally.take_status(status)
    return build_result(
        config, TrialEnd(config.experiment_id, "completed"), tally, training_time_s=0.0
    )


def _own_end(ends: list[TrialEnd], experiment_id: str) -> TrialEnd:
    for end in ends:
        if end.experiment_id == experiment_id:
            return end
    raise RuntimeError(f"the launcher reported no end of {experiment_id}")


@contextmanager
def _attached(bus: MetricEventBus, session: RunSession, progress: Progress) -> Iterator[None]:
    """Progress on the bus, behind the writers; all taken off and closed at the end."""
    bus.subscribe(None, progress)
    try:
        yield
    finally:
        bus.unsubscribe(None, progress)
        session.close_writers()
