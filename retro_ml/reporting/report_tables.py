"""The tables of a report: scores, runs, settings, and what was published."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.core.engine.progress_text import duration
from retro_ml.evaluation import statistics
from retro_ml.evaluation.human_scores import human_normalise
from retro_ml.evaluation.statistics import Interval
from retro_ml.reporting.groups import Group, interval_of
from retro_ml.reporting.markup import Markup, tag
from retro_ml.reporting.references import Reference, comparable_references
from retro_ml.reporting.run_records import RunRecord
from retro_ml.reporting.tables import (
    Table,
    TableColumn,
    interval_one_digit,
    interval_two_digits,
    one_digit,
    two_digits,
    whole,
)


def scores_table(groups: Sequence[Group]) -> Table:
    """Final scores of each group, with intervals."""
    return Table(
        "scores",
        "Scores with their intervals",
        (
            _game_column(groups),
            TableColumn("what", "runs_of", number=False),
            TableColumn("runs", "runs"),
            TableColumn("agent steps", "agent_steps", whole),
            TableColumn("mean score", "score", one_digit),
            TableColumn("its 95 % interval", "score", interval_one_digit),
            TableColumn("IQM", "iqm", one_digit),
            TableColumn("its 95 % interval", "iqm", interval_one_digit, in_page=False),
            TableColumn("mean, human = 1", "human_normalised", two_digits),
            TableColumn(
                "its 95 % interval", "human_normalised", interval_two_digits, in_page=False
            ),
            TableColumn("IQM, human = 1", "human_normalised_iqm", two_digits),
            TableColumn("its 95 % interval", "human_normalised_iqm", interval_two_digits),
            TableColumn("score over", "score_over", number=False),
            TableColumn("interval over", "interval_over", number=False, in_page=False),
        ),
        tuple(_score_row(group) for group in groups),
        "A run's score is the mean unclipped score of whole games. Mean and IQM (the mean of the "
        "middle half) are taken over the runs' scores, or over the games of a single run; each "
        "interval is that of the figure before it (bootstrap over the same, Agarwal et al. 2021). "
        "Human = 1: a random agent is 0, a human 1 (Wang et al. 2016).",
    )


def aggregate_table(groups: Sequence[Group]) -> Table:
    """Human-normalised scores over runs and games, for each label; the highest IQM first."""
    by_label: defaultdict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_label[group.label].append(group)
    rows = [_aggregate_row(label, own) for label, own in by_label.items()]
    shown = [row for row in rows if row is not None]
    shown.sort(key=lambda row: -row[3])
    return Table(
        "human_normalised",
        "Human-normalised scores over all games",
        (
            TableColumn("what", "runs_of", number=False),
            TableColumn("games", "games"),
            TableColumn("runs", "runs"),
            TableColumn("IQM", "iqm", two_digits),
            TableColumn("95 % interval", "iqm", interval_two_digits),
            TableColumn("mean", "mean", two_digits),
            TableColumn("95 % interval", "mean", interval_two_digits),
            TableColumn("median of games", "median_of_games", two_digits),
            TableColumn("optimality gap", "optimality_gap", two_digits),
        ),
        tuple(shown),
        "A random agent is 0, a human 1 (Wang et al. 2016). IQM: mean of the middle half. "
        "Intervals: bootstrap over runs, stratified by game (Agarwal et al. 2021); none where no "
        "game has two runs.",
    )


def runs_table(groups: Sequence[Group], link: Callable[[RunRecord], str]) -> Table:
    """One row a run."""
    rows = [_run_row(group, run) for group in groups for run in group.runs]
    links = {run.name: link(run) for group in groups for run in group.runs}

    def show_run(name: str) -> Markup:
        return tag("a", name, href=links[name])

    return Table(
        "runs",
        "Every run",
        (
            TableColumn("run", "experiment_id", show_run, number=False),
            TableColumn("state", "state", number=False),
            _game_column(groups),
            TableColumn("what", "runs_of", number=False, in_page=len(groups) > 1),
            TableColumn("seed", "seed"),
            TableColumn("agent steps", "agent_steps", whole),
            TableColumn("games", "games", whole),
            TableColumn("training score", "training_score", one_digit),
            TableColumn("evaluation", "evaluation_score", one_digit),
            TableColumn("steps/s", "steps_per_s", whole),
            TableColumn("trained for", "training_time_s", duration),
            TableColumn("remarks", "remarks", number=False),
        ),
        tuple(rows),
        "Training score: mean of the last 100 training games. Steps/s: median over iterations.",
    )


def literature_table(groups: Sequence[Group], references: Sequence[Reference]) -> Table:
    """Each game's best group, then what was published after about as long, and at the end."""
    rows: list[tuple[Any, ...]] = []
    best: dict[tuple[str, str], Group] = {}
    for group in groups:  # the best of equals comes first
        if group.counted:
            best.setdefault((group.game, group.algorithm), group)
    for (game, algorithm), group in best.items():
        steps = max(run.agent_steps for run in group.runs)
        rows.append(
            (game, f"this report: {group.label}", steps, group.score(), None, len(group.counted),
             describe_scores(group), None)
        )  # fmt: skip
        beside = [r for r in references if (r.rom, r.algorithm) == (group.rom, algorithm)]
        near = comparable_references(beside, agent_steps=steps)
        final = [r for r in beside if r.is_final and r not in near]
        rows += [
            (game, f"{r.implementation}, {r.algorithm}", r.agent_steps, r.score, r.std, r.seeds,
             r.protocol, r.source)
            for r in [*near, *final]
        ]  # fmt: skip
    urls = {f"{r.implementation}, {r.algorithm}": r.url for r in references}

    def show_name(name: str) -> Markup | str:
        return tag("a", name, href=urls[name]) if urls.get(name) else name

    return Table(
        "literature",
        "Beside published scores",
        (
            _game_column(groups),
            TableColumn("what", "what", show_name, number=False),
            TableColumn("agent steps", "agent_steps", whole),
            TableColumn("score", "score", one_digit),
            TableColumn("std", "std", one_digit),
            TableColumn("runs", "runs"),
            TableColumn("how it was scored", "protocol", number=False),
            TableColumn("source", "source", number=False, in_page=False),
        ),
        tuple(rows),
        "Published after about as many agent steps, and after a full training. How they were "
        "scored differs from row to row; references.csv has the whole published curves.",
    )


def references_table(references: Sequence[Reference]) -> Table:
    """All that was published on the games and algorithms of the report; a CSV only."""
    names = ("game", "algorithm", "implementation", "agent_steps", "score", "std", "seeds",
             "protocol", "source", "url")  # fmt: skip
    rows = tuple(
        (r.rom, r.algorithm, r.implementation, r.agent_steps, r.score, r.std, r.seeds, r.protocol,
         r.source, r.url)
        for r in references
    )  # fmt: skip
    return Table("references", "", tuple(TableColumn(name, name) for name in names), rows)


def differences_table(groups: Sequence[Group]) -> Table | None:
    """The settings in which the groups differ; None where they do not."""
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    if not names:
        return None
    return Table(
        "settings",
        "What differs between the runs",
        (
            _game_column(groups),
            TableColumn("algorithm", "algorithm", number=False),
            *(TableColumn(name, name, _value, number=_is_number(groups, name)) for name in names),
            TableColumn("score", "score", one_digit),
        ),
        tuple(
            (g.game, g.algorithm, *(g.settings.get(name) for name in names), g.score())
            for g in groups
        ),
    )


def curves_table(groups: Sequence[Group], *, name: str) -> Table:
    """The points of the learning curves of one game; a CSV only."""
    rows: list[tuple[Any, ...]] = []
    for group in groups:
        curve = group.curve
        if curve is None:
            continue
        nothing = [None] * len(curve.mean)
        low = nothing if curve.low is None else curve.low.tolist()
        high = nothing if curve.high is None else curve.high.tolist()
        points = zip(curve.agent_steps.tolist(), curve.mean.tolist(), low, high, strict=True)
        rows += [(group.label, round(step), *values) for step, *values in points]
    names = ("runs_of", "agent_steps", "score", "score_low", "score_high")
    return Table(name, "", tuple(TableColumn(name, name) for name in names), tuple(rows))


def describe_scores(group: Group) -> str:
    """Which games the final score is the mean of."""
    runs = group.counted
    games = {len(group.run_scores(run)) for run in runs}
    count = f"{min(games):,}" if len(games) == 1 else f"{min(games):,} to {max(games):,}"
    evaluation = runs[0].evaluation
    if group.is_evaluated and evaluation is not None:
        greedy = ", deterministic" if evaluation.deterministic else ""
        games_word = "game" if count == "1" else "games"
        return f"{count} evaluation {games_word} ({evaluation.protocol}{greedy})"
    return "the only training game" if count == "1" else f"the last {count} training games"


def score_iqm(group: Group) -> tuple[float, Interval | None]:
    """IQM of the scores of the counted runs, or of the games of a single one; its interval."""
    runs = group.counted
    scores = group.final_scores() if len(runs) > 1 else group.run_scores(runs[0])
    iqm = float(statistics.interquartile_mean(scores[:, None]))
    return iqm, interval_of(statistics.interquartile_mean, scores)


def normalise_interval(rom: str, interval: Interval | None) -> Interval | None:
    """Human-normalised: the scale is linear and rises, so it carries an interval's ends over."""
    if interval is None:
        return None
    low, high = human_normalise(rom, interval.low), human_normalise(rom, interval.high)
    return None if low is None or high is None else Interval(low, high)


def _game_column(groups: Sequence[Group]) -> TableColumn:
    """Where there is one game only, the page's title has it."""
    several = len({group.game for group in groups}) > 1
    return TableColumn("game", "game", number=False, in_page=several)


def _is_number(groups: Sequence[Group], name: str) -> bool:
    return not any(isinstance(group.settings.get(name), str) for group in groups)


def _score_row(group: Group) -> tuple[Any, ...]:
    score, interval, runs = group.score(), group.interval, group.counted
    steps = max(run.agent_steps for run in group.runs)
    if score is None:
        return (group.game, group.label, len(group.runs), steps, *[None] * 10)
    several = len(runs) > 1
    iqm, iqm_interval = score_iqm(group)
    over = None if interval is None else "runs" if several else "games of one run"
    return (
        group.game,
        group.label,
        len(runs),
        steps,
        score,
        interval,
        iqm,
        iqm_interval,
        human_normalise(group.rom, score),
        normalise_interval(group.rom, interval),
        human_normalise(group.rom, iqm),
        normalise_interval(group.rom, iqm_interval),
        describe_scores(group),
        over,
    )


def _aggregate_row(label: str, groups: Sequence[Group]) -> tuple[Any, ...] | None:
    samples: list[NDArray[np.float64]] = []
    for group in groups:
        scores = [human_normalise(group.rom, score) for score in group.final_scores()]
        known = np.array([score for score in scores if score is not None], np.float64)
        if len(known):
            samples.append(known)
    if not samples:
        return None
    pooled = np.concatenate(samples)[:, None]
    means = np.array([sample.mean() for sample in samples])[:, None]
    return (
        label,
        len(samples),
        len(pooled),
        float(statistics.interquartile_mean(pooled)),
        interval_of(statistics.interquartile_mean, *samples),
        float(statistics.mean(pooled)),
        interval_of(statistics.mean, *samples),
        float(statistics.median_of_scores(means)),
        float(statistics.optimality_gap(pooled)),
    )


def _run_row(group: Group, run: RunRecord) -> tuple[Any, ...]:
    past = run.past_evaluation
    evaluation = run.evaluation or past
    remarks = [run.summary.error] if run.summary.error else []
    if run in group.doubles:
        remarks.append("not counted: config and seed of another run")
    elif group.counted and run not in group.counted:
        remarks.append("not counted in means")
    if past is not None:
        remarks.append(f"evaluated at {past.trained_agent_steps:,} agent steps")
    return (
        run.name,
        run.summary.state,
        group.game,
        group.label,
        run.config.seed,
        run.agent_steps,
        len(run.metrics.scores),
        run.training_score(),
        None if evaluation is None else float(evaluation.scores.mean()),
        run.steps_per_s,
        run.training_time_s,
        "; ".join([*remarks, *run.faults]) or None,
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
