"""The order of a sweep, from a SweepConfig to its leaderboard.

Every trial is an experiment like any other: the same folder, lock, writers and resume as a single
run's. Here is what makes many of one: which begins next, who is told what, what comes out.

One bus has the events of all trials. Each trial's writers listen on a bus of their own, to which
its events are passed on, so that an event does not visit the writers of all others; they are there
from the trial's beginning to its end, so a thousand trials hold no more files open than those that
run.
"""

import dataclasses
import logging
import sys
import time
from collections import deque

from retro_ml.core.artifacts.leaderboard import Normalise
from retro_ml.core.artifacts.metrics_file import read_scores
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.engine.chosen_values import ChosenValues
from retro_ml.core.engine.launcher import LaunchError, SweepLauncher, Trial, TrialEnd
from retro_ml.core.engine.resume_point import is_finished
from retro_ml.core.engine.run_faults import BadMachine, BadRunFolder, BadStorage
from retro_ml.core.engine.run_folder import OpenRun, ReadInitial, open_run
from retro_ml.core.engine.run_lock import LockLost, RunLock
from retro_ml.core.engine.run_log import RunLog, TrialLogs
from retro_ml.core.engine.run_session import RunSession
from retro_ml.core.engine.stop_signals import StopSignals
from retro_ml.core.engine.sweep_board import SweepBoard
from retro_ml.core.engine.sweep_folder import load_trial_status, open_sweep
from retro_ml.core.engine.sweep_progress import SweepProgress, build_sweep_progress
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.engine.sweep_storage import SweepStorage, is_delivered
from retro_ml.core.engine.sweep_takeover import SweepTakeover
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.search import NoFittingValues, OptunaSearch
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.experiments.sweep_trials import PlannedTrial, apply_values
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

logger = logging.getLogger("retro_ml.sweep")


class SweepEngine:
    """Runs one sweep with a launcher, to which it is the source of trials; `run` is called once."""

    def __init__(
        self,
        config: SweepConfig,
        event_bus: MetricEventBus | None = None,
        *,
        launcher: SweepLauncher,
        normalise: Normalise,
        options: RunOptions | None = None,
        read_initial: ReadInitial | None = None,
    ) -> None:
        self._config = config
        self._read_initial = read_initial
        self._bus = MetricEventBus() if event_bus is None else event_bus
        self._launcher = launcher
        self._options = RunOptions() if options is None else options
        self._board = SweepBoard(config, normalise=normalise)
        self._search = OptunaSearch(config.seed)
        self._planned = {trial.experiment_id: trial for trial in config.trials}
        self._waiting = deque(config.trials)
        self._completed: deque[PlannedTrial] = deque()
        self._postponed: set[str] = set()
        self._taken: set[str] = set()
        self._sessions: dict[str, RunSession] = {}
        self._buses: dict[str, MetricEventBus] = {}
        self._logs = TrialLogs()
        self._first: Trial | None = None
        self._progress = SweepProgress()
        self._stop = StopSignals(on_first=self._ask_to_stop, before_exit=lambda: None)
        self._stopping = False
        self._storage = SweepStorage(config)
        self._chosen = ChosenValues(config, {})
        self._left: BadMachine | BadStorage | None = None
        self._lock: RunLock | None = None
        self._takeover = SweepTakeover()
        self.ended_before: list[str] = []

    def run(self) -> SweepResult:
        """Run every trial to its end, however it comes.

        Trials that ended are left as they are, interrupted ones go on from their newest checkpoint,
        failed ones are tried again. What fails is reported by the result. Raises BadRunFolder (a
        ValueError) when the sweep's folder cannot be made or holds another sweep.
        """
        started_s = time.monotonic()
        self._progress = build_sweep_progress(self._board, self._options, sys.stderr)
        opened = open_sweep(self._config, self._options, notice=self._progress.notice)
        self._lock = opened.lock
        try:
            self._chosen = ChosenValues(self._config, opened.stored_configs)
            self._read_past()
            self._set_completed_aside()
            self._storage.start()
            with (
                RunLog(
                    self._config.paths.log_path, notice=self._progress.notice, trials=self._logs
                ) as log,
                self._progress,
            ):
                for note in opened.notices:
                    self._progress.notice(note)
                error = self._train() or self._lost or log.error or self._board.error
                result = self._result(error, took_s=time.monotonic() - started_s)
                logger.info("%s, exit code %d", result.state, result.exit_code)
            result = self._deliver(result)
        finally:
            opened.lock.release()
        self._progress.summarize_sweep(result)
        return result

    # What a launcher asks of its source of trials.

    def next_trial(self) -> Trial | None:
        """See `TrialSource`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while not self._stopping and not self._over():
            if not self._waiting:
                return None
            planned = self._waiting.popleft()
            if self._board[planned.experiment_id].state == "stopped":
                continue
            trial = self._begin(planned)
            if trial is not None:
                return trial
        return None

    def must_end(self, experiment_id: str) -> str | None:
        """See `TrialSource`."""
        session = self._sessions.get(experiment_id)
        if session is not None and session.write_error is not None:
            return str(session.write_error)
        return self._over()

    def trial_ended(self, end: TrialEnd) -> None:
        """See `TrialSource`."""
        name = end.experiment_id
        session = self._sessions.pop(name, None)
        if session is None:  # it had ended already
            return
        self._logs.speaking = name
        end = session.announce(end, signum=self._stop.signum)
        session.close_writers()
        self._logs.speaking = None
        self._logs.close_file(name)
        del self._buses[name]
        self._hand_over(session.opened)
        standing = self._board[name]
        standing.state, standing.error, standing.steps_per_s = end.state, end.error, None
        if end.state in {"completed", "stopped", "failed"}:
            score = None if end.state == "failed" else standing.score
            self._search.tell(self._planned[name], score)
        self._save_board()
        self._progress.trial_ended(standing)

    def past_scores(self, experiment_id: str) -> list[tuple[int, float]]:
        """See `TrialSource`."""
        session = self._sessions.get(experiment_id)
        restore_from = None if session is None else session.restore_from
        if session is not None and restore_from is None:
            return []
        path = self._planned[experiment_id].config.paths.metrics_csv_path
        try:
            return [
                (step, score)
                for step, score in read_scores(path)
                if restore_from is None or step <= restore_from.agent_steps
            ]
        except (OSError, ArtifactError) as error:  # the trial itself says what is wrong with it
            logger.warning("%s", error)
            return []

    # How the sweep goes.

    def _train(self) -> Exception | None:
        """Launches what is left; the error that ended all of it, if one did."""
        error: Exception | None = None
        self._stop = StopSignals(
            on_first=self._ask_to_stop, before_exit=self._progress.restore_terminal
        )
        with self._stop:
            self._bus.subscribe(None, self._pass_on)
            try:
                self._first = self.next_trial()
                if self._first is not None:
                    self._launcher.launch_sweep(self._config, self, self._publish, self._options)
                self._look_after_completed()
            except LaunchError as launch_error:
                error = launch_error
            except KeyboardInterrupt:
                self._stopping = True
            except Exception as unforeseen:
                logger.exception("the sweep failed")
                error = unforeseen
            finally:
                self._end_rest(error)
                self._bus.unsubscribe(None, self._pass_on)
                self._save_board(force=True)
        return error

    def _set_completed_aside(self) -> None:
        """What earlier calls completed comes last: opening thousands takes minutes."""
        trials, self._waiting = self._waiting, deque()
        for planned in trials:
            completed = self._board[planned.experiment_id].state == "completed"
            (self._completed if completed else self._waiting).append(planned)

    def _look_after_completed(self) -> None:
        """Makes models that are gone or outdated again, and sends what storage does not have."""
        self._waiting = self._completed
        while self._waiting and not self._stopping and self._lost is None:
            planned = self._waiting.popleft()
            if not is_delivered(planned.config):
                self._begin(planned)  # one that is to train after all is left to the next call

    def _end_rest(self, error: Exception | None) -> None:
        """Trials of which the launcher told no end."""
        for name, session in list(self._sessions.items()):
            if error is None:
                self.trial_ended(TrialEnd(name, "interrupted", exit_code=130))
            elif isinstance(error, LaunchError):  # nothing is wrong with the trial: it goes on
                self.trial_ended(TrialEnd(name, "interrupted", str(error), error.exit_code))
            else:
                code = getattr(error, "exit_code", 1)
                self.trial_ended(session.failed(str(error), exit_code=code))

    def _begin(self, planned: PlannedTrial) -> Trial | None:
        """Opens a trial; None where it has nothing left to do, or cannot be opened."""
        name, as_planned = planned.experiment_id, planned
        standing = self._board[name]
        if not self._takeover.wait_for(
            name, notice=self._progress.notice, stopped=lambda: self._stopping
        ):
            return None
        try:
            planned = self._with_values(planned)
            opened = self._open(planned.config, is_new=standing.state == "waiting")
        except (BadMachine, BadStorage) as error:
            self._postpone(as_planned, error)
            return None
        except (BadRunFolder, NoFittingValues) as error:
            standing.state, standing.error = "failed", str(error)
            self._search.tell(planned, None)
            self._progress.trial_ended(standing)
            return None
        if opened.finished is not None:
            self._hand_over(opened)
            self._board.take_status(standing, opened.finished, finished=True)
            return None
        session = RunSession(opened, self._bus)
        self._sessions[name] = session
        self._buses[name] = bus = MetricEventBus(history_limit=0)
        log = self._logs.open(name, planned.config.paths.log_path)
        session.attach_writers(bus, watched=[log])
        standing.state, standing.error = "running", None
        restore_from = opened.restore_from
        self._board.set_steps(standing, 0 if restore_from is None else restore_from.agent_steps)
        self._logs.speaking = name
        for note in [*planned.config.notes, *opened.notices]:
            logger.info("%s", note)
        self._logs.speaking = None
        self._progress.trial_began(standing)
        end = session.end_before_launch()
        if end is not None:
            self.trial_ended(end)
            return None
        return session.trial

    def _open(self, config: ExperimentConfig, *, is_new: bool) -> OpenRun:
        """A trial's folder. Raises BadRunFolder."""
        return open_run(
            config,
            self._options.model_copy(update={"restart_behavior": "resume"}),
            notice=self._progress.notice,
            read_initial=self._read_initial,
            is_new=is_new,
            patience_s=self._storage.patience_s,
        )

    def _postpone(self, planned: PlannedTrial, error: BadMachine | BadStorage) -> None:
        """Where the trial goes on cannot be read for now; it is tried once more after the others.

        Nothing is wrong with it, so it has not failed: the next call takes it up.
        """
        name = planned.experiment_id
        if name in self._postponed:
            self._left = error
            logger.warning("%s is left for the next call: %s", name, error)
            return
        self._postponed.add(name)
        self._waiting.append(planned)
        logger.warning("%s comes after the others: %s", name, error)

    def _hand_over(self, opened: OpenRun) -> None:
        """A trial of which there is nothing more to train."""
        self._taken.add(opened.config.experiment_id)
        self._storage.take(opened)

    def _with_values(self, planned: PlannedTrial) -> PlannedTrial:
        """The trial with the values it has been given: by a search, or by PBT before this call."""
        if not self._chosen.paths(planned):
            return planned
        values = self._chosen.read(planned)
        if values is not None:
            planned = planned.choose(values)
        elif planned.open:
            planned = self._search.choose(planned)
        self._board[planned.experiment_id].values = planned.values
        return planned

    def _read_past(self) -> None:
        """What earlier calls left: every trial's standing, and for a search what it led to."""
        under_way: list[ExperimentConfig] = []
        for planned in self._config.trials:
            standing = self._board[planned.experiment_id]
            status = load_trial_status(planned.config.paths.status_path)
            if status.get("state") in {"starting", "running"}:
                under_way.append(planned.config)
            if status:
                finished = is_finished(status, planned.config, self._options)
                self._board.take_status(standing, status, finished=finished)
            over = standing.state in {"completed", "stopped"}
            if over:
                self.ended_before.append(planned.experiment_id)
            if not self._chosen.paths(planned):
                continue
            try:
                values = self._chosen.read(planned)
                if values is not None and planned.open:
                    self._search.remember(planned, values, standing.score, over=over)
            except ValueError as error:  # told when the trial is to begin
                logger.warning("%s: %s", planned.experiment_id, error)
                continue
            standing.values = planned.values | (values or {})
        self._takeover.look_at(under_way)

    def _publish(self, event: MetricEvent) -> None:
        name = event.experiment_id
        session = self._sessions.get(name)
        if session is None:  # an actor that was given up had one more to tell
            return
        self._logs.speaking = name
        session.publish(event)
        if event.event_type is EventType.HYPERPARAMETERS_CHANGED:
            session.close_writers()
            session.change_config(apply_values(session.config, event.data["values"]))
            session.attach_writers(self._buses[name])
        self._logs.speaking = None
        self._board.take(event)
        self._progress.take(event)
        self._save_board()

    def _pass_on(self, event: MetricEvent) -> None:
        """From the sweep's bus to the writers of the trial."""
        bus = self._buses.get(event.experiment_id)
        if bus is not None:
            bus.emit(event)

    def _save_board(self, *, force: bool = False) -> None:
        if self._lost is None:
            self._board.save(force=force)

    @property
    def _lost(self) -> LockLost | None:
        """That the sweep is another driver's by now."""
        return None if self._lock is None else self._lock.error

    def _over(self) -> str | None:
        """Why the whole sweep has to end."""
        return self._spent() if self._lost is None else str(self._lost)

    def _spent(self) -> str | None:
        budget = self._config.max_agent_steps
        if budget is not None and self._board.agent_steps >= budget:
            return f"the budget of {budget:,} agent steps is spent"
        return None

    def _deliver(self, result: SweepResult) -> SweepResult:
        """Waits for what is still to be sent; a signal ends the waiting."""
        restore_terminal = self._progress.restore_terminal
        with StopSignals(on_first=self._storage.give_up, before_exit=restore_terminal):
            if self._lost is None:
                self._send_past()
            delivery = self._storage.finish()
        if delivery is None:
            return result
        code = result.exit_code or (0 if delivery.complete else LaunchError.exit_code)
        return dataclasses.replace(result, storage=delivery, exit_code=code)

    def _send_past(self) -> None:
        """Trials that this call did not begin, of which an earlier one could not send all."""
        for planned in self._config.trials:
            name = planned.experiment_id
            if name in self._taken or planned.config.paths.storage_uri is None:
                continue
            if is_delivered(planned.config):
                continue
            if self._storage.given_up:
                self._storage.note_not_opened(name, "a signal ended the sending")
                continue
            try:
                self._hand_over(self._open(self._with_values(planned).config, is_new=False))
            except BadRunFolder as error:
                self._storage.note_not_opened(name, str(error))

    def _ask_to_stop(self) -> None:
        self._stopping = True
        self._progress.announce_stop()
        self._launcher.request_stop()

    def _result(self, error: Exception | None, *, took_s: float) -> SweepResult:
        state = self._board.state
        message = None if error is None else str(error)
        if error is not None:
            state = "failed"
            exit_code = getattr(error, "exit_code", 1)
        elif state == "interrupted" and self._stopping:
            signum = self._stop.signum
            exit_code = 130 if signum is None else 128 + signum
        else:
            exit_code = 1 if state == "failed" else 0
        if self._left is not None and not self._stopping:
            exit_code = exit_code or self._left.exit_code
            message = message or str(self._left)
        elif state == "interrupted" and not self._stopping:
            message = self._spent() or "the time is up"
        return SweepResult(
            state=state,
            error=message,
            exit_code=exit_code,
            sweep_id=self._config.sweep_id,
            paths=self._config.paths,
            standings=tuple(self._board.standings.values()),
            took_s=took_s,
        )
