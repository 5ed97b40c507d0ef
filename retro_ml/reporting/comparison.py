"""Two runs and more side by side: what differs in their configs, and in what they reached.

A side is a run, or a folder of runs that are taken together. Scores are compared game by game, at
the agent steps that all of them reached and at their ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retro_ml.core.experiments.differences import NOT_COMPARED
from retro_ml.evaluation import statistics
from retro_ml.evaluation.human_scores import human_normalise
from retro_ml.evaluation.statistics import Interval
from retro_ml.reporting.groups import Group, describe_uncounted, settle_scores
from retro_ml.reporting.report_tables import describe_scores
from retro_ml.reporting.run_folders import FileFault, find_runs
from retro_ml.reporting.run_records import RunRecord, load_run

_ITS_OWN = NOT_COMPARED | {"experiment_id"}


class BadSide(ValueError):
    """A side cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Side:
    """Runs that are taken together, under the name of their folder."""

    name: str
    folder: Path
    runs: tuple[RunRecord, ...]
    left_out: tuple[str, ...]
    """Runs that could not be read, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One side on one game. Scores are None where no game is over."""

    side: str
    game: str
    runs: int
    states: tuple[str, ...]
    agent_steps: int
    """Of its longest run."""
    equal_agent_steps: int | None
    """What all sides reached."""
    score_at_equal: float | None
    score: float | None
    interval: Interval | None
    """Over runs, or over the games of a single one."""
    human_normalised: float | None
    score_over: str | None
    probability_of_improvement: float | None
    """Over the first side, a draw counting half; where both have several runs."""
    probability_interval: Interval | None
    steps_per_s: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    sides: tuple[str, ...]
    differences: dict[str, tuple[Any, ...]]
    """By field, a value for each side; a list where its runs differ among themselves."""
    standings: tuple[Standing, ...]
    left_out: tuple[str, ...]
    notices: tuple[str, ...]
    """What does not count, and why."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {
            "sides": list(self.sides),
            "differences": {name: list(values) for name, values in self.differences.items()},
            "standings": [asdict(standing) for standing in self.standings],
            "left_out": list(self.left_out),
            "notices": list(self.notices),
        }


def load_side(folder: Path) -> Side:
    """The run in a folder, or all runs below. Raises BadSide."""
    try:
        if not folder.is_dir():
            raise BadSide(f"{folder} -> no such folder; give that of a run, or one with runs")
        found = list(find_runs(folder))
    except OSError as error:
        raise BadSide(f"{folder} -> cannot be read: {error.strerror}") from None
    runs, left_out = [], []
    for paths in found:
        try:
            runs.append(load_run(paths))
        except FileFault as fault:
            left_out.append(f"{paths.experiment_dir.name}: {fault}")
    if not runs:
        reason = "; ".join(left_out) or "no run is in it"
        raise BadSide(f"{folder} -> {reason}")
    return Side(folder.resolve().name, folder, tuple(runs), tuple(left_out))


def compare(sides: Sequence[Side]) -> Comparison:
    """Compares the sides, of which the first is what the others are held against."""
    sides = _tell_apart(sides)
    games = dict.fromkeys(run.config.game.label for side in sides for run in side.runs)
    by_game = [_group(game, sides) for game in games]
    return Comparison(
        tuple(side.name for side in sides),
        _find_differences(sides),
        tuple(standing for groups in by_game for standing in _compare_on(groups, sides)),
        tuple(text for side in sides for text in side.left_out),
        tuple(describe_uncounted(group for groups in by_game for group in groups)),
    )


def _tell_apart(sides: Sequence[Side]) -> list[Side]:
    """Folders of the same name by their paths, and one that is given twice by numbers."""
    count = Counter(side.name for side in sides)
    named = [
        side if count[side.name] == 1 else replace(side, name=str(side.folder)) for side in sides
    ]
    seen: Counter[str] = Counter()
    for index, side in enumerate(named):
        seen[side.name] += 1
        if seen[side.name] > 1:
            named[index] = replace(side, name=f"{side.name} ({seen[side.name]})")
    return named


def _find_differences(sides: Sequence[Side]) -> dict[str, tuple[Any, ...]]:
    algorithms = {run.config.algorithm.lower() for side in sides for run in side.runs}
    unused = tuple(f"{name}." for name in {"ppo", "a2c", "dqn"} - algorithms)
    names = sides[0].runs[0].fields
    table = {
        name: tuple(_values(side, name) for side in sides)
        for name in names
        if name not in _ITS_OWN and not name.startswith(unused)
    }
    return {name: values for name, values in table.items() if len(set(map(repr, values))) > 1}


def _values(side: Side, name: str) -> Any:
    values: list[Any] = []
    for run in side.runs:
        if run.fields[name] not in values:
            values.append(run.fields[name])
    return values[0] if len(values) == 1 else values


def _group(game: str, sides: Sequence[Side]) -> list[Group]:
    """The runs of one game, a group for each side that has any."""
    groups = []
    for side in sides:
        runs = [run for run in side.runs if run.config.game.label == game]
        if runs:
            groups.append(Group(game, runs[0].config.algorithm, side.name, {}, runs))
    settle_scores(groups)
    return groups


def _compare_on(groups: Sequence[Group], sides: Sequence[Side]) -> list[Standing]:
    equal = _equal_agent_steps(groups)
    first = groups[0] if groups[0].label == sides[0].name else None
    return [_stand(group, equal=equal, first=first) for group in groups]


def _equal_agent_steps(groups: Sequence[Group]) -> int | None:
    reached = [run.agent_steps for group in groups for run in group.counted]
    return min(reached) if reached and all(group.counted for group in groups) else None


def _stand(group: Group, *, equal: int | None, first: Group | None) -> Standing:
    runs, score = group.counted, group.score()
    at_equal = None
    if equal is not None:
        at = np.array([equal], np.float64)
        values = np.array([run.metrics.score_at(at)[0] for run in runs])
        at_equal = float(values.mean()) if np.isfinite(values).all() else None
    better, better_interval = _improvement(group, first)
    rates = [run.steps_per_s for run in group.runs if run.steps_per_s is not None]
    return Standing(
        side=group.label,
        game=group.game,
        runs=len(runs) or len(group.runs),
        states=tuple(sorted({run.summary.state for run in group.runs})),
        agent_steps=max(run.agent_steps for run in group.runs),
        equal_agent_steps=equal,
        score_at_equal=at_equal,
        score=score,
        interval=group.interval,
        human_normalised=None if score is None else human_normalise(group.rom, score),
        score_over=describe_scores(group) if runs else None,
        probability_of_improvement=better,
        probability_interval=better_interval,
        steps_per_s=float(np.median(rates)) if rates else None,
    )


def _improvement(group: Group, first: Group | None) -> tuple[float | None, Interval | None]:
    if first is None or first is group or min(len(first.counted), len(group.counted)) < 2:
        return None, None
    ours, theirs = group.final_scores()[:, None], first.final_scores()[:, None]
    probability = float(statistics.probability_of_improvement(ours, theirs))
    interval = statistics.bootstrap_interval(statistics.probability_of_improvement, ours, theirs)
    return probability, interval
