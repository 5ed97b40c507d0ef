"""Ray Tune's schedulers for the trials of a sweep: FIFO, ASHA, PBT.

ASHA compares scores, which mean something within one game only; PBT exchanges checkpoints, which
fit one game and algorithm only. Tune's schedulers know one population, so here is one of Tune's for
each, and a trial is handed to its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from retro_ml.cluster.population import Population
from retro_ml.core.engine.launcher import TrialSource
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import MetricEvent
from retro_ml.rllib.names import AGENT_STEPS, SCORE

FIRST_RUNG_SHARE = 16
"""The first rung of ASHA is this part of a trial, where the sweep says nothing else."""
INTERVAL_SHARE = 20
"""The interval of PBT is this part of a trial, where the sweep says nothing else."""


def build_scheduler(
    sweep: SweepConfig, source: TrialSource, publish: Callable[[MetricEvent], None]
) -> FIFOScheduler:
    """The scheduler that a sweep names.

    Args:
        sweep: with the scheduler's settings.
        source: tells what happened before this call.
        publish: is told of changed hyperparameters.
    """
    if sweep.scheduler == "asha":
        return AshaByGame(sweep, source)
    if sweep.scheduler == "pbt":
        return PbtByPopulation(sweep, publish)
    return FIFOScheduler()


class ByGroup(ABC, FIFOScheduler):
    """Hands every trial to the scheduler of its group, which is made with the first of it.

    A trial without a score yet, because no game is over, goes on.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        super().__init__()
        self._planned = {trial.experiment_id: trial for trial in sweep.trials}
        self._groups: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        """The scheduler by trial: PBT asks for that of each waiting trial time and again."""

    def of(self, trial: Any) -> Any:
        """The scheduler of the trial's group."""
        own = self._own.get(trial.trial_id)
        if own is None:
            own = self._own[trial.trial_id] = self._of_group(self.group(trial.trial_id))
        return own

    def _of_group(self, group: str) -> Any:
        if group not in self._groups:
            steps = max(
                planned.config.total_timesteps
                for name, planned in self._planned.items()
                if self.group(name) == group
            )
            self._groups[group] = self.build(steps)
        return self._groups[group]

    @abstractmethod
    def group(self, name: str) -> str:
        """What a trial has in common with those that it is compared with."""

    @abstractmethod
    def build(self, total_timesteps: int) -> Any:
        """The scheduler of a group, whose longest trial has so many agent steps."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """As Tune's, of the group."""
        self.of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """As Tune's, of the group."""
        self.of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of the trial."""
        if result.get(SCORE) is None:
            return str(TrialScheduler.CONTINUE)
        return str(self.of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """As Tune's, of the group."""
        if result.get(SCORE) is not None:
            self.of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """As Tune's, of the group."""
        self.of(trial).on_trial_remove(tune_controller, trial)


class AshaByGame(ByGroup):
    """Asynchronous successive halving among the trials of each game.

    The rungs are rebuilt from the rows that earlier calls left in the trials' files.
    """

    def __init__(self, sweep: SweepConfig, source: TrialSource) -> None:
        super().__init__(sweep)
        self._settings = sweep.asha
        self._source = source
        for name in source.ended_before:
            stand_in = SimpleNamespace(trial_id=name)
            self.of(stand_in).on_trial_add(None, stand_in)
            self._replay(stand_in)

    def group(self, name: str) -> str:
        """The game."""
        return self._planned[name].config.game.label

    def build(self, total_timesteps: int) -> Any:
        """One bracket, as Li et al. 2020 recommend."""
        grace = self._settings.grace_agent_steps or max(1, total_timesteps // FIRST_RUNG_SHARE)
        return AsyncHyperBandScheduler(
            time_attr=AGENT_STEPS,
            metric=SCORE,
            mode="max",
            max_t=max(total_timesteps, grace),
            grace_period=grace,
            reduction_factor=self._settings.reduction_factor,
            # Otherwise one that has passed a rung is compared again at those below which it had
            # jumped over (2.60). What ends a trial is its last agent step.
            stop_last_trials=False,
        )

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """The trial, and what it reached before."""
        super().on_trial_add(tune_controller, trial)
        self._replay(trial)

    def _replay(self, trial: Any) -> None:
        # What was decided then is past: only the rungs take note.
        for agent_steps, score in self._source.past_scores(trial.trial_id):
            result = {AGENT_STEPS: agent_steps, SCORE: score}
            self.of(trial).on_trial_result(None, trial, result)


class PbtByPopulation(ByGroup):
    """Population based training within each game, algorithm and combination of the grid."""

    def __init__(self, sweep: SweepConfig, publish: Callable[[MetricEvent], None]) -> None:
        super().__init__(sweep)
        self._sweep = sweep
        self._publish = publish
        self._told: list[MetricEvent] = []

    def group(self, name: str) -> str:
        """Game, algorithm and the grid's fields but for the seed."""
        planned, drawn = self._planned[name], self._sweep.distributions
        cell = {
            path: value
            for path, value in planned.values.items()
            if path not in drawn and path != "seed"
        }
        return f"{planned.task} {sorted(cell.items())}"

    def build(self, total_timesteps: int) -> Population:
        """One population."""
        settings = self._sweep.pbt
        return Population(
            self._sweep.drawn,
            interval_agent_steps=settings.interval_agent_steps
            or max(1, total_timesteps // INTERVAL_SHARE),
            quantile=settings.quantile,
            resample_probability=settings.resample_probability,
            tell=self._told.append,
        )

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The one that is farthest behind, so that all get their share of the machine."""
        waiting = [
            trial
            for trial in tune_controller.get_trials()
            if trial.status in (TuneTrial.PENDING, TuneTrial.PAUSED)
        ]
        return min(waiting, key=lambda trial: self.of(trial).trained(trial), default=None)

    def publish_told(self) -> None:
        """Publishes what was exchanged, once the rows are out that it was decided on."""
        told, self._told[:] = list(self._told), []
        for event in told:
            self._publish(event)
