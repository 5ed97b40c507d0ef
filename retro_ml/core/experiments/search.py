"""Optuna as the search of a sweep: it chooses values when a trial begins.

One study for each game and algorithm, since scores of different games cannot be compared. Nothing
of it is saved: on a resume the past is told anew from the trials' own files. So each trial's choice
has random numbers of its own, made of the sweep's seed and the trial's name: those of one sampler
would begin anew on a resume, and propose again what the first trials had.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from typing import Any

from pydantic import ValidationError

from retro_ml.core.experiments.distributions import Distribution
from retro_ml.core.experiments.sweep_trials import PlannedTrial

logger = logging.getLogger("retro_ml.sweep")
MAX_TRIES = 100
"""Choices that do not fit together are refused and told to Optuna; so many for one trial."""


class NoFittingValues(ValueError):
    """All that the search proposed for a trial was refused by the config."""


class OptunaSearch:
    """Tree-structured Parzen estimators (Bergstra et al. 2011), Optuna's default.

    Args:
        seed: of the sampler.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._studies: dict[str, Any] = {}
        self._asked: dict[str, int] = {}

    def choose(self, planned: PlannedTrial) -> PlannedTrial:
        """The trial with values for what is open. Raises: NoFittingValues."""
        study = self._study(planned.task)
        distributions = _translate(planned.open)
        faults = "none"
        for number in range(MAX_TRIES):
            study.sampler = _build_sampler(f"{self._seed}/{planned.experiment_id}/{number}")
            asked = study.ask(distributions)
            try:
                chosen = planned.choose(asked.params)
            except ValidationError as error:
                faults = str(error.errors()[0]["msg"])
                study.tell(asked, state=_states().FAIL)
                continue
            self._asked[planned.experiment_id] = asked.number
            return chosen
        raise NoFittingValues(f"{MAX_TRIES} proposals do not fit, the last one: {faults}")

    def remember(
        self, planned: PlannedTrial, values: dict[str, Any], score: float | None, *, over: bool
    ) -> None:
        """A trial of an earlier call.

        Args:
            planned: the trial.
            values: what was chosen for it.
            score: the last one; None: no game was finished.
            over: whether it ended for good.

        Raises:
            ValueError: the values are not from the distributions.
        """
        import optuna

        study, distributions = self._study(planned.task), _translate(planned.open)
        state = _states().RUNNING
        if over:
            state = _states().FAIL if score is None else _states().COMPLETE
        told = optuna.trial.create_trial(
            params=values, distributions=distributions, state=state, value=score if over else None
        )
        study.add_trial(told)
        if not over:
            self._asked[planned.experiment_id] = len(study.trials) - 1

    def tell(self, planned: PlannedTrial, score: float | None) -> None:
        """How a trial ended; None: without a score."""
        asked = self._asked.pop(planned.experiment_id, None)
        if asked is None:
            return
        study = self._study(planned.task)
        if score is None:
            study.tell(asked, state=_states().FAIL)
        else:
            study.tell(asked, score)

    def _study(self, task: str) -> Any:
        if task not in self._studies:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._studies[task] = optuna.create_study(direction="maximize")
        return self._studies[task]


def _build_sampler(seed: str) -> Any:
    import optuna

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # What runs at the same time is taken for bad, so that not all try the same.
        return optuna.samplers.TPESampler(seed=number, constant_liar=True)


def _states() -> Any:
    import optuna

    return optuna.trial.TrialState


def _translate(distributions: dict[str, Distribution]) -> dict[str, Any]:
    from optuna import distributions as optuna

    translated: dict[str, Any] = {}
    for path, distribution in distributions.items():
        low, high = distribution.values[0], distribution.values[-1]
        if distribution.kind == "choice":
            translated[path] = optuna.CategoricalDistribution(distribution.values)
        elif distribution.kind == "int_uniform":
            translated[path] = optuna.IntDistribution(low, high)
        else:
            log = distribution.kind == "log_uniform"
            translated[path] = optuna.FloatDistribution(low, high, log=log)
    return translated
