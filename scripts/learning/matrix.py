"""The matrix: which runs there are, in which order, with which config, and the bars.

`matrix.yaml` is read into `Entry`s; a `Run` is one seed of an entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.core.experiments.fields import FrozenModel, Real, Whole

MATRIX = Path(__file__).with_name("matrix.yaml")

Side = Literal["retro_ml", "sb3"]
Measure = Literal["last_100", "ratio", "within_spread", "time_to_score"]
NEEDS_OTHER: tuple[Measure, ...] = ("ratio", "within_spread", "time_to_score")


class MatrixError(ValueError):
    """The matrix cannot be used; one line per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


class Bar(FrozenModel):
    """What an entry is held against; without a limit it is only shown."""

    measure: Measure = Field(
        description="last_100: mean over seeds of the mean score of the last 100 training games; "
        "ratio: of these to another entry's, the lower end of its one-sided 95 % interval; "
        "within_spread: each mean within the other's range, over the seeds that both have; "
        "time_to_score: ratio of the seconds until 100 games reach a mean score"
    )
    to: str | None = Field(default=None, description="the other entry, NAME/SIDE")
    above: Real | None = Field(default=None, description="met by more than this")
    goal: Real | None = Field(default=None, description="what would be good, above the bar")
    at_most: Real | None = Field(default=None, description="met by this or less")
    score: Real | None = Field(default=None, description="time_to_score: the score to reach")

    @model_validator(mode="after")
    def _check_parts(self) -> Bar:
        if (self.measure in NEEDS_OTHER) != (self.to is not None):
            raise ValueError(f"{self.measure}: `to` names another entry, except for last_100")
        if (self.measure == "time_to_score") != (self.score is not None):
            raise ValueError(f"{self.measure}: `score` belongs to time_to_score, and must be there")
        return self


class Entry(FrozenModel):
    """Runs that differ in their seed alone."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="shared by both sides")
    side: Side = Field(description="whose implementation")
    game: str = Field(description="the game's id, which decides the protocol")
    algorithm: Literal["PPO", "A2C", "DQN"] = Field(description="the algorithm")
    preset: str | None = Field(default=None, description="retro_ml's preset")
    agent_steps: Whole = Field(ge=1, description="agent steps of a run")
    schedule_agent_steps: Whole | None = Field(
        default=None, ge=1, description="horizon of the schedules; by default the algorithm's own"
    )
    fields: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the algorithm's section"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(description="arithmetic of the network")
    seeds: tuple[Whole, ...] = Field(min_length=1, description="one run each")
    hours: Real = Field(gt=0, description="of one run on two cores, until one has been timed")
    bars: tuple[Bar, ...] = Field(default=(), description="what is expected")
    tried: str | None = Field(default=None, description="what was tried where a bar is missed")

    @model_validator(mode="after")
    def _check_side(self) -> Entry:
        # learning/sb3_run.py has the published settings of PPO alone.
        if self.side == "sb3" and (self.algorithm, self.precision) != ("PPO", "fp32"):
            raise ValueError(f"{self.key}: Stable-Baselines3 is run with PPO in fp32 alone")
        if self.side == "sb3" and (self.preset is not None or self.fields):
            raise ValueError(f"{self.key}: presets and fields are retro_ml's")
        if self.side == "sb3" and self.schedule_agent_steps is None:
            raise ValueError(f"{self.key}: its schedule_agent_steps must be given")
        return self

    @property
    def key(self) -> str:
        """NAME/SIDE."""
        return f"{self.name}/{self.side}"


@dataclass(frozen=True, slots=True)
class Run:
    """One seed of an entry."""

    entry: Entry
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its files."""
        return f"{self.entry.name}-{self.entry.side}-s{self.seed}"


def load_matrix(path: Path = MATRIX) -> tuple[Entry, ...]:
    """The entries, in the file's order. Raises MatrixError with all faults."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        entries = TypeAdapter(tuple[Entry, ...]).validate_python(data)
    except ValidationError as error:
        raise MatrixError([f"{path.name}: {line}" for line in _describe(error)]) from None
    faults = list(_find_faults(entries))
    if faults:
        raise MatrixError([f"{path.name}: {line}" for line in faults])
    return entries


def order_runs(entries: Sequence[Entry]) -> list[Run]:
    """Names one after another; within a name seed by seed, the sides taking turns."""
    runs = []
    for name in dict.fromkeys(entry.name for entry in entries):
        sides = [entry for entry in entries if entry.name == name]
        for turn in range(max(len(entry.seeds) for entry in sides)):
            runs += [Run(entry, entry.seeds[turn]) for entry in sides if turn < len(entry.seeds)]
    return runs


def build_config(run: Run, *, output_dir: Path | str) -> ExperimentConfig:
    """retro_ml's config of a run; for sb3, of the games that its agent is evaluated in.

    Raises MatrixError with all faults.
    """
    entry = run.entry
    section = dict(entry.fields)
    if entry.schedule_agent_steps is not None:
        section["schedule_agent_steps"] = entry.schedule_agent_steps
    try:
        return ExperimentConfig.model_validate(
            {
                "experiment_id": run.name,
                "game_id": entry.game,
                "algorithm": entry.algorithm,
                "total_timesteps": entry.agent_steps,
                "seed": run.seed,
                "output_dir": str(output_dir),
                # Stable-Baselines3 runs on the CPU here, and a figure has one kind of machine.
                "use_gpu": False,
                "preset": entry.preset,
                "resources": {"precision": entry.precision},
                entry.algorithm.lower(): section,
            }
        )
    except ValidationError as error:
        raise MatrixError([f"{entry.key}: {line}" for line in config_faults(error)]) from None


def _find_faults(entries: Sequence[Entry]) -> Iterator[str]:
    keys = [entry.key for entry in entries]
    for key in dict.fromkeys(keys):
        if keys.count(key) > 1:
            yield f"{key}: stands there {keys.count(key)} times -> once"
    for entry in entries:
        for bar in entry.bars:
            if bar.to is not None and bar.to not in keys:
                yield f"{entry.key}: a bar is held against {bar.to} -> one of {', '.join(keys)}"
        try:
            build_config(Run(entry, entry.seeds[0]), output_dir="runs")
        except MatrixError as error:
            yield from error.faults


def _describe(error: ValidationError) -> list[str]:
    return describe_faults(error, Entry)
