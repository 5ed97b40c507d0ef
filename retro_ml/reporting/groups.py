"""Runs that differ in their seed alone, taken together: curves with bands, scores with intervals.

Everything over seeds counts finished runs where there are any, so that one that was stopped early
does not pull a mean down, and each seed once, because intervals are over independent runs.
Intervals: 95 %, percentile bootstrap, stratified by game (Agarwal et al. 2021, arXiv:2108.13264).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.core.experiments.differences import NOT_COMPARED
from retro_ml.evaluation import statistics
from retro_ml.evaluation.statistics import Interval
from retro_ml.reporting.run_records import RunRecord

CURVE_POINTS = 200
CURVE_REPETITIONS = 2_000
"""Resamples of a band, which has so many points; other intervals have 50,000."""
MAX_CURVE_RUNS = 200
"""Runs of a group whose single curves are drawn."""
_MAX_NAMED = 3
"""Runs that a notice names."""
# Who, when and where, and what watches a run without changing it.
_NO_SETTING = NOT_COMPARED | {"experiment_id", "seed", "game_id", "preset"}
_NO_SETTING_IN = ("checkpointing.", "evaluation.")
_NO_RESULT = frozenset({"resources.num_cpus", "resources.num_gpus", "resources.max_failures"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Mean over runs with its band, on `[P]` agent steps that all of them reach."""

    agent_steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


@dataclass
class Group:
    """Runs of one game, one algorithm and one set of settings."""

    game: str
    """ROM, with the protocol where it is v5."""
    algorithm: str
    label: str
    """The algorithm, and its settings where several groups share it."""
    settings: dict[str, Any]
    """Values by path, of those fields in which the report's runs differ."""
    runs: list[RunRecord] = field(default_factory=list)
    is_evaluated: bool = False
    """Whether the final scores are those of evaluations (`settle_scores`)."""

    @property
    def rom(self) -> str:
        """The game's ROM."""
        return self.runs[0].rom

    @cached_property
    def counted(self) -> list[RunRecord]:
        """The finished runs, or all where none is; without those that finished no game.

        Of several with the same config and seed, as a restart leaves them, the one that came
        furthest, the newest of equals.
        """
        best: dict[tuple[str, ...], RunRecord] = {}
        for run in self.runs:
            if len(run.metrics.scores):
                course = _course(run)
                best[course] = max(best.get(course, run), run, key=_rank)
        scored = list(best.values())
        return [run for run in scored if run.summary.state == "completed"] or scored

    @cached_property
    def doubles(self) -> list[RunRecord]:
        """Those that do not count because another with the same config and seed does."""
        counted = {_course(run) for run in self.counted}
        return [run for run in self.runs if run not in self.counted and _course(run) in counted]

    def run_scores(self, run: RunRecord) -> NDArray[np.float64]:
        """`[E]` scores of the games that the run's final score is the mean of."""
        if self.is_evaluated and run.evaluation is not None:
            return run.evaluation.scores
        return run.metrics.final_scores()

    def final_scores(self) -> NDArray[np.float64]:
        """`[R]`: of each counted run."""
        return np.array([self.run_scores(run).mean() for run in self.counted], np.float64)

    def score(self) -> float | None:
        """Mean over the counted runs."""
        scores = self.final_scores()
        return float(scores.mean()) if len(scores) else None

    @cached_property
    def interval(self) -> Interval | None:
        """Of the mean: over runs, or over the games of a single run."""
        runs = self.counted
        if not runs:
            return None
        scores = self.final_scores() if len(runs) > 1 else self.run_scores(runs[0])
        return interval_of(statistics.mean, scores)

    @cached_property
    def curve(self) -> Curve | None:
        """The learning curve; None where no game was finished."""
        runs = self.counted
        if not runs:
            return None
        begin = max(float(run.metrics.games["step"][0]) for run in runs)
        end = min(max(run.metrics.agent_steps, run.metrics.games["step"][-1]) for run in runs)
        if end <= begin:
            return None
        grid = np.linspace(begin, end, CURVE_POINTS)
        scores = np.stack([run.metrics.score_at(grid) for run in runs])
        low = high = None
        if len(runs) > 1:
            low, high = statistics.bootstrap(
                lambda sample: sample.mean(axis=-2), scores, repetitions=CURVE_REPETITIONS
            )
        return Curve(agent_steps=grid, mean=scores.mean(axis=0), low=low, high=high)


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups by game, then algorithm; the best of equals first."""
    differing = {
        algorithm: find_differing([run for run in runs if run.config.algorithm == algorithm])
        for algorithm in {run.config.algorithm for run in runs}
    }
    groups: dict[tuple[str, str, str], Group] = {}
    for run in runs:
        algorithm = run.config.algorithm
        settings = {name: run.fields[name] for name in differing[algorithm]}
        words = ", ".join(f"{_short(name)} {_show(value)}" for name, value in settings.items())
        label = f"{algorithm}, {words}" if words else algorithm
        game = run.config.game.label
        group = groups.setdefault((game, algorithm, label), Group(game, algorithm, label, settings))
        group.runs.append(run)
    settle_scores(groups.values())
    return sorted(groups.values(), key=_order)


def settle_scores(groups: Iterable[Group]) -> None:
    """Evaluations count where all counted runs of a game have one alike, or else training games.

    So that the scores that stand side by side are of one kind.
    """
    groups = list(groups)
    for game in {group.game for group in groups}:
        own = [group for group in groups if group.game == game]
        played = [run.evaluation for group in own for run in group.counted]
        alike = {e and (e.protocol, e.deterministic) for e in played}
        for group in own:
            group.is_evaluated = len(alike) == 1 and None not in alike


def find_differing(runs: Sequence[RunRecord]) -> list[str]:
    """Fields of the runs' own algorithms in which they differ, that may change what they reach."""
    if not runs:
        return []
    names = _find_settings(runs[0], {run.config.algorithm for run in runs})
    # What an id's protocol means is told with the game.
    by_protocol = len({run.config.game.protocol for run in runs}) > 1
    names = [name for name in names if not (by_protocol and name.startswith("environment."))]
    return [name for name in names if len({repr(run.fields[name]) for run in runs}) > 1]


def describe_uncounted(groups: Iterable[Group]) -> list[str]:
    """What is there and does not count, though its user may think so; one line for each reason."""
    groups = list(groups)
    lines = []
    doubles = [run.paths.experiment_dir.name for group in groups for run in group.doubles]
    if doubles:
        one = len(doubles) == 1
        lines.append(
            f"{_name(doubles)} {'has' if one else 'have'} the config and seed of another run and "
            f"{'does' if one else 'do'} not count: of such runs the one that came furthest does, "
            "the newest of equals."
        )
    past = [
        f"{run.paths.experiment_dir.name} ({played.trained_agent_steps:,} of {run.agent_steps:,} "
        "agent steps)"
        for group in groups
        for run in group.counted
        if (played := run.past_evaluation) is not None
    ]
    if past:
        lines.append(
            f"Evaluated before training went on, which does not count: {_name(past)}. "
            "`retro-ml evaluate` them again for the score of the model as it is now."
        )
    return lines


def interval_of(statistic: Callable[..., Any], *samples: NDArray[np.float64]) -> Interval | None:
    """Interval of a statistic of `[R]` scores, one sample a game; None where no game has two."""
    if not samples or all(len(sample) < 2 for sample in samples):
        return None
    columns = [sample[:, None] for sample in samples]

    def pooled(*drawn: NDArray[np.float64]) -> Any:
        return statistic(np.concatenate(drawn, axis=-2))

    return statistics.bootstrap_interval(pooled, *columns)


def _find_settings(run: RunRecord, algorithms: set[str]) -> list[str]:
    """Fields of those algorithms that may change what a run reaches."""
    others = tuple({"ppo.", "a2c.", "dqn."} - {f"{name.lower()}." for name in algorithms})
    return [
        name
        for name in run.fields
        if name not in _NO_SETTING | _NO_RESULT and not name.startswith((*_NO_SETTING_IN, *others))
    ]


def _course(run: RunRecord) -> tuple[str, ...]:
    """Equal for runs that play the same course: by game, settings and seed."""
    names = _find_settings(run, {run.config.algorithm})
    values = (run.config.game.label, run.config.algorithm, run.config.seed)
    return (*map(str, values), *(repr(run.fields[name]) for name in names))


def _rank(run: RunRecord) -> tuple[bool, int, float]:
    """The highest of several runs of one course counts."""
    changed = run.summary.updated_at
    return (
        run.summary.state == "completed",
        run.agent_steps,
        changed.timestamp() if changed is not None else 0.0,
    )


def _name(names: Sequence[str]) -> str:
    """`a`, `a, b`, `a, b, c and 7 more`."""
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _order(group: Group) -> tuple[Any, ...]:
    score = group.score()
    return (group.game, group.algorithm, -score if score is not None else float("inf"), group.label)


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
