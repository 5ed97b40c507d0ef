"""SweepConfig: many experiments from one base. Frozen, explicit, exact as JSON.

A sweep is every combination of its grid, times `samples` draws from its distributions. All of its
experiments are built, and so validated, when the config is: an invalid combination is found before
anything starts. Fields of another algorithm than a trial's are left out of it, and what is then
alike is trained once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from typing import Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.distributions import Distribution, parse_distribution
from retro_ml.core.experiments.faults import describe_faults, raise_faults, raise_lines
from retro_ml.core.experiments.fields import FrozenModel, Real, Text, Whole
from retro_ml.core.experiments.locations import is_uri, normalize_uri
from retro_ml.core.experiments.sections import MAX_AGENT_STEPS
from retro_ml.core.experiments.seeds import MAX_SEED
from retro_ml.core.experiments.sweep_paths import SweepPaths
from retro_ml.core.experiments.sweep_trials import PlannedTrial, expand

_NAMED_BY_SWEEP = ("experiment_id", "output_dir", "created_at")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_MOST_NAMED = 3  # games or algorithms in a sweep's name; of more there is their number
_LONGEST_SUMMARY = 80
# How far and where a sweep goes, not what its trials are.
NOT_COMPARED = frozenset({"output_dir", "samples", "grid", "max_concurrent", "max_agent_steps"}) | {
    "max_hours"
}
PERTURBABLE = frozenset(
    {
        "learning_rate",
        "gamma",
        "gae_lambda",
        "clip",
        "entropy_coefficient",
        "value_loss_coefficient",
        "max_grad_norm",
        "epochs",
        "target_update_agent_steps",
    }
)
"""Hyperparameters that can change in the middle of a run: a checkpoint holds nothing of them."""


class AshaSettings(FrozenModel):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934)."""

    grace_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps before a trial may be stopped, the first rung; by default a "
        "sixteenth of total_timesteps (this project's choice: two rungs of factor 4)",
    )
    reduction_factor: Real = Field(
        default=4.0,
        gt=1,
        le=1_000,
        description="of so many trials at a rung one goes on (Li et al. 2020: 4)",
    )


class PbtSettings(FrozenModel):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846)."""

    interval_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps from one comparison with the population to the next; by default "
        "a twentieth of total_timesteps (this project's choice)",
    )
    quantile: Real = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="the worst of this share go on from the best of it (Jaderberg et al. 2017, "
        "truncation selection: 0.2)",
    )
    resample_probability: Real = Field(
        default=0.25,
        ge=0,
        le=1,
        description="how often a value is drawn anew instead of multiplied by 0.8 or 1.2 "
        "(Ray Tune; the factors: Jaderberg et al. 2017)",
    )


class SweepConfig(FrozenModel):
    """One sweep, completely described. Raises pydantic's ValidationError with all faults."""

    name: str | None = Field(
        default=None,
        validate_default=False,
        description="the sweep's name and folder; by default made of what it does",
    )
    output_dir: Text = Field(default="runs", description="the folder that its own is made in")
    base: dict[str, Any] = Field(
        default_factory=dict, description="fields of ExperimentConfig that all trials share"
    )
    grid: dict[str, Any] = Field(
        default_factory=dict,
        description="fields by their path, each with the list of its values; all are combined",
    )
    distributions: dict[str, Any] = Field(
        default_factory=dict,
        description="fields by their path, each with what it is drawn from, "
        "e.g. ppo.learning_rate: {log_uniform: [1e-5, 1e-3]}",
    )
    samples: Whole = Field(
        default=1, ge=1, le=100_000, description="draws for every combination of the grid"
    )
    seed: Whole = Field(
        default=0, ge=0, le=MAX_SEED, description="the seed of the draws; a trial's is base.seed"
    )
    search: Literal["random", "optuna"] = Field(
        default="random",
        description="random draws (Bergstra and Bengio 2012), or Optuna's, which learn from the "
        "trials that ended (pip install 'retro_ml[optuna]')",
    )
    scheduler: Literal["none", "asha", "pbt"] = Field(
        default="none",
        description="none: every trial runs to its end; asha stops those that fall behind; pbt "
        "lets them go on from the best with changed hyperparameters",
    )
    asha: AshaSettings = Field(default=AshaSettings(), description="of the scheduler asha")
    pbt: PbtSettings = Field(default=PbtSettings(), description="of the scheduler pbt")
    max_concurrent: Whole | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="trials at once; by default as many as there are CPUs for, one a trial where "
        "base.resources says nothing (this project's choice)",
    )
    max_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="budget of all trials together; what it does not reach waits for a larger one",
    )
    max_hours: Real | None = Field(
        default=None, gt=0, description="hours after which a call ends, at its iterations' end"
    )
    _trials: tuple[PlannedTrial, ...] = PrivateAttr(default=())

    @property
    def trials(self) -> tuple[PlannedTrial, ...]:
        """Every trial, in the order in which they begin."""
        return self._trials

    @property
    def sweep_id(self) -> str:
        """The sweep's name."""
        return self.name or f"{self._summary()}-{self._digest()}"

    @property
    def paths(self) -> SweepPaths:
        """Every file of the sweep."""
        return SweepPaths(output_dir=self.output_dir, name=self.sweep_id)

    @property
    def drawn(self) -> dict[str, Distribution]:
        """The distributions by their field's path."""
        return {path: parse_distribution(text) for path, text in self.distributions.items()}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name is not None and (not _PLAIN_NAME.fullmatch(name) or name.endswith(".")):
            raise ValueError(
                "a plain name of 1 to 100 letters, digits, '.', '_' or '-', "
                "with a letter or digit first and no '.' last"
            )
        return name

    @field_validator("output_dir", mode="before")
    @classmethod
    def _read_output_dir(cls, path: Any) -> Any:
        return os.fspath(path) if isinstance(path, os.PathLike) else path

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, path: str) -> str:
        if not path.strip() or "\0" in path:
            raise ValueError("a folder's path, e.g. runs")
        return normalize_uri(path) if is_uri(path.strip()) else os.path.expanduser(path)

    @field_validator("search", "scheduler", mode="before")
    @classmethod
    def _read_any_case(cls, name: Any) -> Any:
        return name.strip().lower() if isinstance(name, str) else name

    @field_validator("base", mode="before")
    @classmethod
    def _check_base(cls, base: Any) -> Any:
        if isinstance(base, ExperimentConfig):
            base = base.model_dump(mode="json", exclude_unset=True, exclude=set(_NAMED_BY_SWEEP))
        if not isinstance(base, dict) or not all(isinstance(name, str) for name in base):
            raise ValueError("fields of an experiment with their values, e.g. {game_id: pong}")
        if base.get("video_every") is not None:
            raise_faults([("video_every", base["video_every"], "none, a sweep films nothing")])
        taken = [name for name in _NAMED_BY_SWEEP if base.get(name) is not None]
        raise_faults([(name, base[name], "none, the sweep names its trials") for name in taken])
        return base

    @field_validator("grid", mode="before")
    @classmethod
    def _check_grid(cls, grid: Any) -> Any:
        if not isinstance(grid, dict):
            raise ValueError("fields with lists of their values, e.g. {game_id: [pong, breakout]}")
        faults: list[tuple[str, Any, str]] = []
        for path, values in grid.items():
            if path in _NAMED_BY_SWEEP:
                faults.append((str(path), values, "none, the sweep names its trials"))
            elif not isinstance(path, str) or not isinstance(values, list | tuple) or not values:
                faults.append((str(path), values, "a list of values, e.g. [1, 2, 3]"))
            elif any(isinstance(value, dict) for value in values):
                allowed = "plain values; a section's fields are written section.field"
                faults.append((path, values, allowed))
        raise_faults(faults)
        return {path: list(values) for path, values in grid.items()}

    @field_validator("distributions", mode="before")
    @classmethod
    def _check_distributions(cls, distributions: Any, info: ValidationInfo) -> Any:
        if not isinstance(distributions, dict):
            raise ValueError("fields with what they are drawn from")
        faults: list[tuple[str, Any, str]] = []
        for path, text in distributions.items():
            if path in _NAMED_BY_SWEEP:
                faults.append((str(path), text, "none, the sweep names its trials"))
            elif path in info.data.get("grid", {}):
                faults.append((path, text, "either here or in grid, not both"))
            else:
                try:
                    parse_distribution(text)
                except ValueError as error:
                    faults.append((str(path), text, str(error)))
        raise_faults(faults)
        return distributions

    @field_validator("samples")
    @classmethod
    def _check_samples(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and info.data.get("distributions") == {}:
            raise ValueError(
                "1, because there are no distributions to draw from; to repeat a run give "
                "several seeds in grid.seed"
            )
        return samples

    @field_validator("search")
    @classmethod
    def _check_search(cls, search: str, info: ValidationInfo) -> str:
        if search == "optuna" and info.data.get("distributions") == {}:
            raise ValueError("random, because there are no distributions to search")
        if search == "optuna" and importlib.util.find_spec("optuna") is None:
            raise ValueError("random; or install Optuna: pip install 'retro_ml[optuna]'")
        return search

    @field_validator("scheduler")
    @classmethod
    def _check_scheduler(cls, scheduler: str, info: ValidationInfo) -> str:
        if scheduler != "pbt" or "distributions" not in info.data:
            return scheduler
        paths = info.data["distributions"]
        if info.data.get("search") == "optuna":
            raise ValueError("none or asha, because PBT chooses values itself; or search: random")
        if not paths or info.data.get("samples", 2) < 2:
            raise ValueError(
                "none or asha; PBT needs distributions of what it may change, and samples of 2 and "
                "more, its population"
            )
        fixed = [path for path in paths if path.rpartition(".")[2] not in PERTURBABLE]
        if fixed:
            raise ValueError(
                f"none or asha; PBT cannot change {', '.join(fixed)} in the middle of a run, only "
                f"an algorithm's {', '.join(sorted(PERTURBABLE))}"
            )
        return scheduler

    @model_validator(mode="after")
    def _expand(self) -> SweepConfig:
        trials, lines = expand(
            base=self.base,
            grid=self.grid,
            distributions=self.drawn,
            samples=self.samples,
            seed=self.seed,
            on_demand=self.search == "optuna",
            output_dir=self.paths.trials_dir,
        )
        raise_lines(lines)
        self._trials = tuple(trials)
        return self

    def _summary(self) -> str:
        """What is swept: `breakout-pong-ppo-dqn-5-seeds`."""
        parts = []
        for path, values in self.grid.items():
            if path in {"game_id", "algorithm"} and len(values) <= _MOST_NAMED:
                parts += [re.sub("[^a-z0-9]+", "-", str(v).lower()).strip("-") for v in values]
            else:
                name = path.rpartition(".")[2].removesuffix("_id").replace("_", "-")
                parts.append(f"{len(values)}-{name}s")
        if self.distributions:
            parts.append(f"{self.samples}-samples")
        return "-".join(parts)[:_LONGEST_SUMMARY].strip("-") or "sweep"

    def _digest(self) -> str:
        """Of all that decides the trials, so that the same call finds its sweep again."""
        fields = self.model_dump(mode="json", exclude={"name", "output_dir", "max_concurrent"})
        text = json.dumps(fields, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def sweep_faults(error: ValidationError) -> list[str]:
    """One line per fault of a sweep: `field: value -> what is allowed`."""
    return describe_faults(error, SweepConfig)
