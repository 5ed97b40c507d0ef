"""A sweep's trials: which there are, what they are called, and what is wrong with them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.distributions import Distribution, draw_value
from retro_ml.core.experiments.layers import merge_layers

MAX_TRIALS = 100_000
_SECTIONS = {"ppo": "PPO", "a2c": "A2C", "dqn": "DQN"}
_IN_EVERY_NAME = frozenset({"game_id", "algorithm", "seed"})
_LONGEST_NAME = 90  # a folder's name may have 100
_PLACEHOLDER = "trial"


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial of a sweep, as it is known before it begins."""

    experiment_id: str
    values: dict[str, Any]
    """The swept fields by their path, those that were drawn included."""
    config: ExperimentConfig
    """Where a search chooses values, with stand-ins for them until then."""
    open: dict[str, Distribution] = field(default_factory=dict)
    """What a search chooses when the trial begins."""

    @property
    def task(self) -> str:
        """The game and algorithm: within it hyperparameters can be compared."""
        return f"{self.config.game.label}/{self.config.algorithm}"

    def choose(self, values: dict[str, Any]) -> PlannedTrial:
        """The trial with what a search chose. Raises: pydantic's ValidationError."""
        config = apply_values(self.config, values)
        return PlannedTrial(self.experiment_id, self.values | values, config, self.open)


def apply_values(config: ExperimentConfig, values: dict[str, Any]) -> ExperimentConfig:
    """The config with other values of some fields, by their path. Raises: ValidationError."""
    fields = merge_layers(config.model_dump(mode="json"), _nest(values))
    return ExperimentConfig.model_validate(fields)


def read_value(config: ExperimentConfig, path: str) -> Any:
    """The value of the field at `path`, e.g. `ppo.clip`."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def expand(
    *,
    base: dict[str, Any],
    grid: dict[str, list[Any]],
    distributions: dict[str, Distribution],
    samples: int,
    seed: int,
    on_demand: bool,
    output_dir: str,
) -> tuple[list[PlannedTrial], list[str]]:
    """Every trial of a sweep, and every fault, one line each.

    Args:
        base: fields of all trials.
        grid: values by field; all are combined.
        distributions: by field.
        samples: draws for each combination of the grid.
        seed: of the draws.
        on_demand: a search chooses the values later; here only their bounds are tried.
        output_dir: the sweep's own folder.
    """
    count = samples
    for values in grid.values():
        count *= len(values)
    if count > MAX_TRIALS:
        return [], [f"grid: {count:,} trials -> {MAX_TRIALS:,} at most"]
    plan = _Plan(base, grid, distributions, output_dir)
    for cell, number in itertools.product(_cells(grid), range(samples)):
        plan.add(cell, number=number, seed=seed, on_demand=on_demand)
    # The first draw of every combination before the second of any.
    trials = sorted(plan.trials, key=lambda pair: pair[0])
    return [trial for _, trial in trials], plan.describe_faults()


class _Plan:
    def __init__(
        self,
        base: dict[str, Any],
        grid: dict[str, list[Any]],
        distributions: dict[str, Distribution],
        output_dir: str,
    ) -> None:
        self._given = {"experiment_id": _PLACEHOLDER, "output_dir": output_dir}
        self._given["created_at"] = datetime.now(UTC).isoformat()
        self._base, self._grid, self._distributions = base, grid, distributions
        self._names: dict[str, dict[str, Any]] = {}
        self._faults: dict[str, list[str]] = {}
        self._tried = 0
        self.trials: list[tuple[int, PlannedTrial]] = []

    def add(self, cell: dict[str, Any], *, number: int, seed: int, on_demand: bool) -> None:
        algorithm = str(cell.get("algorithm", self._base.get("algorithm", "PPO"))).strip().upper()
        values = {path: value for path, value in cell.items() if _applies(path, algorithm)}
        drawn = {p: d for p, d in self._distributions.items() if _applies(p, algorithm)}
        if on_demand:
            low = {path: distribution.values[0] for path, distribution in drawn.items()}
            high = {path: distribution.values[-1] for path, distribution in drawn.items()}
            self._build(values | high)
            config = self._build(values | low)
        else:
            values |= {
                path: draw_value(distribution, seed=seed, number=number, path=path)
                for path, distribution in drawn.items()
            }
            config = self._build(values)
        if config is None or (not drawn and number > 0):
            return
        name = self._name(config, {p: values[p] for p in values if p not in drawn})
        if drawn:
            name += f"-t{number:04d}"
        if name in self._names:
            if self._names[name] != values:
                self._faults.setdefault(f"grid: two trials would be called {name}", []).append(name)
            return
        self._names[name] = values
        config = config.model_copy(update={"experiment_id": name})
        trial = PlannedTrial(name, values, config, drawn if on_demand else {})
        self.trials.append((number, trial))

    def describe_faults(self) -> list[str]:
        """Each once; with a combination where it is the base's and only some have it."""
        return [
            f"{line} (with {where[0]})"
            if line.startswith("base.") and len(where) < self._tried
            else line
            for line, where in self._faults.items()
        ]

    def _build(self, values: dict[str, Any]) -> ExperimentConfig | None:
        self._tried += 1
        fields = merge_layers(self._base, _nest(values)) | self._given
        try:
            return ExperimentConfig.model_validate(fields)
        except ValidationError as error:
            where = ", ".join(f"{path} {value}" for path, value in values.items()) or "every trial"
            for line in config_faults(error):
                self._faults.setdefault(self._origin(line) + line, []).append(where)
            return None

    def _origin(self, line: str) -> str:
        path = line.partition(":")[0]
        if path in self._grid:
            return "grid."
        return "distributions." if path in self._distributions else "base."

    def _name(self, config: ExperimentConfig, values: dict[str, Any]) -> str:
        name = f"{config.game.rom.replace('_', '-')}-{config.algorithm.lower()}-s{config.seed}"
        more = {path: value for path, value in values.items() if path not in _IN_EVERY_NAME}
        if "game_id" in self._grid and config.game.protocol != "noframeskip-v4":
            name = name.replace(config.algorithm.lower(), f"v5-{config.algorithm.lower()}", 1)
        for path, value in more.items():
            name += f"-{_plain(path.rpartition('.')[2])}-{_plain(value)}"
        if len(name) <= _LONGEST_NAME:
            return name
        return f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _cells(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _applies(path: str, algorithm: str) -> bool:
    """Whether a field means anything to a trial of this algorithm."""
    section = _SECTIONS.get(path.partition(".")[0])
    return section is None or section == algorithm


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    """`{"ppo.clip": 0.2}` as `{"ppo": {"clip": 0.2}}`."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        part: Any = value
        for name in reversed(path.split(".")):
            part = {name: part}
        nested = merge_layers(nested, part)
    return nested


def _plain(value: Any) -> str:
    """Fit for a folder's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(value).lower()).strip("-.") or "none"
