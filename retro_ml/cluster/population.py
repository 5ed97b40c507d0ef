"""Population based training (Jaderberg et al. 2017) on Ray Tune's scheduler of that name.

Tune's gives a trial the whole config of the one that it goes on from. Here it takes over that one's
hyperparameters, changed, and remains itself otherwise: its name, its folder, its seed. The other's
checkpoint becomes the only one in the trial's own folder, so that the run is resumed from there
like any other; nothing points to a folder whose owner may tidy it up.

The learning rate in the checkpoint counts for nothing (ray issue 62173): the Learner sets it before
each update from the config (`rllib.learner`).
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from pydantic import ValidationError
from ray import tune
from ray.tune import Checkpoint
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining

from retro_ml.cluster.bus_bridge import experiment_id, read_pointer
from retro_ml.cluster.trial_actor import EXPERIMENT
from retro_ml.core.artifacts.checkpoint_files import (
    CheckpointError,
    CheckpointFolder,
    adopt_checkpoint,
    find_checkpoints,
)
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.distributions import Distribution
from retro_ml.core.experiments.sweep_trials import apply_values, read_value
from retro_ml.core.metrics.event_bus import EventType, MetricEvent
from retro_ml.rllib.names import AGENT_STEPS, SCORE

logger = logging.getLogger("retro_ml.cluster")
FACTORS = (1.2, 0.8)
"""By which a hyperparameter is multiplied (Jaderberg et al. 2017)."""


class Population(PopulationBasedTraining):
    """The trials that learn from one another.

    Args:
        drawn: what may change, by its path, and what it is drawn from; nothing leaves its bounds.
        interval_agent_steps: from one comparison to the next.
        quantile: share of the trials at either end.
        resample_probability: of a value drawn anew.
        tell: gets an event for each exchange.
    """

    def __init__(
        self,
        drawn: dict[str, Distribution],
        *,
        interval_agent_steps: int,
        quantile: float,
        resample_probability: float,
        tell: Callable[[MetricEvent], None],
    ) -> None:
        super().__init__(
            time_attr=AGENT_STEPS,
            metric=SCORE,
            mode="max",
            perturbation_interval=interval_agent_steps,
            hyperparam_mutations={EXPERIMENT: _mutations(drawn)},
            quantile_fraction=quantile,
            resample_probability=resample_probability,
            perturbation_factors=FACTORS,
            log_config=False,
        )
        self._drawn = drawn
        self._interval = interval_agent_steps
        self._tell = tell

    def trained(self, trial: Any) -> int:
        """Agent steps at the trial's last comparison."""
        return int(self._trial_state[trial].last_train_time)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that goes on waits for its next interval."""
        super().on_trial_add(tune_controller, trial)
        steps = (trial.last_result or {}).get(AGENT_STEPS) or _step_of(trial.config["restore_from"])
        state = self._trial_state[trial]
        state.last_perturbation_time = steps // self._interval * self._interval
        state.last_train_time = steps

    def _checkpoint_or_exploit(
        self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]
    ) -> None:
        """Where trials take turns, those that wait can be gone on from too.

        Tune remembers a trial's checkpoint only if it was among the best at its own last
        comparison; the first to be compared has nobody to be better than (2.60).
        """
        for other in upper_quantile:
            state = self._trial_state[other]
            if state.last_checkpoint is None and other.status == TuneTrial.PAUSED:
                state.last_checkpoint = other.checkpoint
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        """The trial's own config with the changed values of the other one."""
        explored, operations = super()._get_new_config(trial, trial_to_clone)
        own = ExperimentConfig.model_validate(trial.config[EXPERIMENT])
        paths = self._paths(own)
        values = {path: self._drawn[path].clip(_read(explored[EXPERIMENT], path)) for path in paths}
        try:
            changed = apply_values(own, values)
        except ValidationError:  # they do not fit together: the other's do
            theirs = trial_to_clone.config[EXPERIMENT]
            changed = apply_values(own, {path: _read(theirs, path) for path in paths})
        config = copy.copy(trial.config)
        config[EXPERIMENT] = changed.model_dump(mode="json")
        config["restore_from"] = None
        return config, operations

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        """The trial goes on from the other's checkpoint, with changed hyperparameters."""
        before = ExperimentConfig.model_validate(trial.config[EXPERIMENT])
        donor = ExperimentConfig.model_validate(trial_to_clone.config[EXPERIMENT])
        checkpoint = self._trial_state[trial_to_clone].last_checkpoint
        adopted = _adopt(Path(read_pointer(checkpoint)["path"]), donor, before)
        if adopted is None:
            return
        super()._exploit(tune_controller, trial, trial_to_clone)
        latest = trial.run_metadata.checkpoint_manager._latest_checkpoint_result
        latest.checkpoint = Checkpoint(str(adopted.path), filesystem=LocalFileSystem())
        now = ExperimentConfig.model_validate(trial.config[EXPERIMENT])
        data = {
            "step": adopted.agent_steps,
            "from_experiment": donor.experiment_id,
            "before": {path: read_value(before, path) for path in self._paths(before)},
            "values": {path: read_value(now, path) for path in self._paths(before)},
        }
        name = experiment_id(trial)
        self._tell(MetricEvent.now(EventType.HYPERPARAMETERS_CHANGED, name, data))
        saved = {"step": adopted.agent_steps, "path": str(adopted.path)}
        self._tell(MetricEvent.now(EventType.CHECKPOINT_SAVED, name, saved))

    def _paths(self, config: ExperimentConfig) -> list[str]:
        """What may change of a trial of this algorithm."""
        section = config.algorithm.lower()
        return [path for path in self._drawn if path.partition(".")[0] == section]


def _adopt(source: Path, donor: ExperimentConfig, own: ExperimentConfig) -> CheckpointFolder | None:
    """The donor's checkpoint as the trial's own; None where the donor has none that is whole.

    The donor may have gone on meanwhile, and removed `source`: then it has a newer one.
    """
    newer = reversed(find_checkpoints(donor.checkpoints_dir))
    for path in [source, *(folder.path for folder in newer)]:
        try:
            return adopt_checkpoint(path, own.checkpoints_dir)
        except CheckpointError:
            continue
        except ArtifactError as error:
            logger.warning("%s", error)
            return None
    logger.warning("%s has no whole checkpoint to go on from", donor.experiment_id)
    return None


def _mutations(drawn: dict[str, Distribution]) -> dict[str, Any]:
    """What Tune is told of the distributions, nested as the config is."""
    nested: dict[str, Any] = {}
    for path, distribution in drawn.items():
        section, _, name = path.partition(".")
        nested.setdefault(section, {})[name] = _domain(distribution)
    return nested


def _domain(distribution: Distribution) -> Any:
    low, high = distribution.values[0], distribution.values[-1]
    if distribution.kind == "choice":
        return list(distribution.values)
    if distribution.kind == "int_uniform":
        return tune.randint(low, high + 1)
    return (tune.loguniform if distribution.kind == "log_uniform" else tune.uniform)(low, high)


def _read(experiment: dict[str, Any], path: str) -> Any:
    section, _, name = path.partition(".")
    return experiment[section][name]


def _step_of(restore_from: str | None) -> int:
    """Agent steps of a checkpoint by its folder's name."""
    match = re.fullmatch(r".*/step-(\d+)", restore_from or "")
    return int(match[1]) if match else 0
