"""The trials of a sweep on Ray Tune: taken as there is room for them, told of as they end.

Tune keeps no state of a sweep that is ever read back: what there is to know lies in the trials'
own folders, so its snapshots are switched off.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, Experiment, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.search_algorithm import SearchAlgorithm

from retro_ml.cluster.bus_bridge import BusBridge, read_pointer
from retro_ml.cluster.connect import connect
from retro_ml.cluster.driver_process import environment
from retro_ml.cluster.end_notice import EndNotice
from retro_ml.cluster.head_watch import HeadLost, HeadWatch
from retro_ml.cluster.node_checks import prove_nodes
from retro_ml.cluster.node_watch import NodeWatch
from retro_ml.cluster.room import Room
from retro_ml.cluster.schedulers import PbtByPopulation, build_scheduler
from retro_ml.cluster.tracking import build_trackers
from retro_ml.cluster.trial_actor import EXPERIMENT, TrialActor, trial_config
from retro_ml.cluster.trials import (
    RAY_IS_GONE,
    TUNE_ENVIRONMENT,
    TuneLauncher,
    explain,
)
from retro_ml.cluster.worker_output import log_worker_output
from retro_ml.core.engine.launcher import LaunchError, Trial, TrialEnd, TrialSource
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import MetricEvent
from retro_ml.rllib.names import AGENT_STEPS, RECORDS, SCORE

logger = logging.getLogger("retro_ml.cluster")
NO_SNAPSHOTS_S = "1e9"


class TuneSweepLauncher(TuneLauncher):
    """Executes the trials of a sweep as Ray Tune trials."""

    def launch_sweep(
        self,
        sweep: SweepConfig,
        source: TrialSource,
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> None:
        """Runs trials until the source has no more.

        Raises:
            LaunchError: no Ray, or a trial that can never be placed on it.
        """
        with (
            environment(TUNE_ENVIRONMENT),
            connect(options.ray_address, allow_open=options.allow_open_cluster) as cluster,
            log_worker_output(cluster.logs_dir),
            HeadWatch(embedded=cluster.embedded) as head,
        ):
            room = Room(sweep, cluster, options, read_nodes=head.read_nodes)
            for name in source.ended_before:
                room.trial_ended(name)
            configs = [planned.config for planned in sweep.trials]
            prove_nodes(configs, embedded=cluster.embedded)
            hours = min(sweep.max_hours or math.inf, options.max_hours or math.inf)
            stopper = SweepStopper(source, lambda: self._stop_requested, head=head, hours=hours)
            stopper.stop_score = options.stop_score
            experiment = Experiment(
                sweep.sweep_id,
                run=TrialActor,
                stop=stopper,
                storage_path=str(cluster.scratch_dir or sweep.paths.tune_dir),
            )
            feed = TrialFeed(source, experiment, room, stopper)
            trackers = build_trackers(options, sweep.paths.trials_dir)
            scheduler = build_scheduler(sweep, source, publish)
            ends = SweepCallback(source, feed, stopper, scheduler)
            # The feed gives no more than may have begun; those of a population take turns.
            waiting = room.concurrent if room.takes_turns else len(sweep.trials)
            pending = {
                "TUNE_MAX_PENDING_TRIALS_PG": str(waiting),
                "TUNE_GLOBAL_CHECKPOINT_S": NO_SNAPSHOTS_S,
            }
            try:
                with environment(pending):
                    tune.run(
                        [experiment],
                        search_alg=feed,
                        scheduler=scheduler,
                        callbacks=[
                            BusBridge(publish),
                            EndNotice(),
                            *trackers,
                            ends,
                            NodeWatch(head.read_nodes),
                        ],
                        raise_on_failed_trial=False,
                        verbose=0,
                    )
            except HeadLost:
                raise LaunchError(RAY_IS_GONE) from None
            finally:
                shutil.rmtree(sweep.paths.tune_dir, ignore_errors=True)
            for name in list(feed.live):
                # Waiting or paused when all had to end.
                source.trial_ended(TrialEnd(name, "interrupted", stopper.closing()))


class SweepStopper(Stopper):
    """Ends a trial at its last agent step, or earlier where it must.

    Args:
        source: says what must end.
        stop_requested: true when the user wants all trials to end.
        head: of the Ray that they run on.
        hours: after which all trials end.
    """

    def __init__(
        self,
        source: TrialSource,
        stop_requested: Callable[[], bool],
        *,
        head: HeadWatch,
        hours: float,
    ) -> None:
        self._source = source
        self._stop_requested = stop_requested
        self._head = head
        self._hours = hours
        self._deadline_s = time.monotonic() + hours * 3600
        self.stop_score: float | None = None
        self.ends: dict[str, TrialEnd] = {}
        """Of the trials that were ended from here; a scheduler ended the others."""
        self.trials: list[TuneTrial] = []

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True ends the trial that has just reported `result`."""
        score, enough = result[SCORE], self.stop_score
        total = result["config"][EXPERIMENT]["total_timesteps"]
        if result[AGENT_STEPS] >= total or (
            enough is not None and score is not None and score >= enough
        ):
            self.ends[trial_id] = TrialEnd(trial_id, "completed")
            return True
        if self._stop_requested():
            self.ends[trial_id] = TrialEnd(trial_id, "interrupted")
            return True
        reason = self._source.must_end(trial_id) or self.closing()
        if reason is not None:
            self.ends[trial_id] = TrialEnd(trial_id, "interrupted", reason)
        return reason is not None

    def closing(self) -> str | None:
        """Why the whole sweep has to end, where nobody asked it to."""
        if time.monotonic() >= self._deadline_s:
            return f"the {self._hours:g} hours are over"
        return self._source.must_end("")

    def stop_all(self) -> bool:
        """Each trial that runs ends by itself, so that each leaves a checkpoint; then the others.

        Raises:
            HeadLost: nothing can be asked of the trials any more.
        """
        if self._head.lost:
            raise HeadLost
        if not self._stop_requested() and self.closing() is None:
            return False
        return not any(trial.status == TuneTrial.RUNNING for trial in self.trials)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its experiments with their stopper; none of this can be saved."""
        return {}


class TrialFeed(SearchAlgorithm):
    """Tune's source of trials, which are made when there is room for them.

    Args:
        source: the sweep's.
        experiment: Tune's, which all trials belong to.
        room: how many at once.
        stopper: nothing begins while all is about to end.
    """

    def __init__(
        self, source: TrialSource, experiment: Experiment, room: Room, stopper: SweepStopper
    ) -> None:
        self._source = source
        self._experiment = experiment
        self._room = room
        self._stopper = stopper
        self.live: dict[str, TuneTrial] = {}
        """The trials that have begun and not ended."""

    def add_configurations(self, experiments: Any) -> None:
        """Tune's experiment is known already."""

    def next_trial(self) -> TuneTrial | None:
        """The next one; None: no room now, or, when finished, none left."""
        if self.is_finished() or len(self.live) >= self._room.most_begun:
            return None
        trial = None if self._stopper.closing() else self._source.next_trial()
        if trial is None:
            self.set_finished()
            return None
        tune_trial = self._build(trial)
        self.live[tune_trial.trial_id] = tune_trial
        return tune_trial

    def trial_ended(self, name: str) -> None:
        """There is room again."""
        self.live.pop(name, None)
        self._room.trial_ended(name)

    def _build(self, trial: Trial) -> TuneTrial:
        config = trial.config
        cpus, gpus = self._room.place(config)
        restore_from = None if trial.restore_from is None else str(trial.restore_from)
        spared = self._room.find_nodes_to_spare(config)
        return TuneTrial(
            self._experiment.run_identifier,
            trial_id=config.experiment_id,
            config=trial_config(
                config,
                num_cpus=cpus,
                num_gpus=gpus,
                restore_from=restore_from,
                spared_nodes=spared,
                memory_bytes=self._room.place_memory(config),
            ),
            storage=self._experiment.storage,
            checkpoint_config=CheckpointConfig(
                checkpoint_frequency=config.checkpoint_iterations, checkpoint_at_end=True
            ),
            trial_dirname_creator=_folder_name,
            max_failures=config.resources.max_failures,
        )


class SweepCallback(Callback):
    """Tells the source how its trials go."""

    def __init__(
        self, source: TrialSource, feed: TrialFeed, stopper: SweepStopper, scheduler: Any
    ) -> None:
        self._source = source
        self._feed = feed
        self._stopper = stopper
        self._scheduler = scheduler

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Shows the stopper Tune's trials."""
        self._stopper.trials = trials

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Publishes what the scheduler did; its records are out, and Tune need not keep them."""
        result.pop(RECORDS, None)
        if isinstance(self._scheduler, PbtByPopulation):
            self._scheduler.publish_told()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A failed trial is tried again."""
        self._stopper.ends.pop(trial.trial_id, None)
        saved = trial.checkpoint
        steps = 0 if saved is None else read_pointer(saved)["agent_steps"]
        message = "%s failed and is tried again from %s agent steps: %s"
        logger.warning(message, trial.trial_id, f"{steps:,}", explain(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended in order."""
        name = trial.trial_id
        self._end(self._stopper.ends.get(name) or TrialEnd(name, "stopped"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for the last time."""
        self._end(TrialEnd(trial.trial_id, "failed", explain(trial), exit_code=1))

    def _end(self, end: TrialEnd) -> None:
        self._feed.trial_ended(end.experiment_id)
        self._source.trial_ended(end)


def _folder_name(trial: TuneTrial) -> str:
    return str(trial.trial_id)
