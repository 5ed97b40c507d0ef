"""The tables of a report, as CSV with the full figures and as HTML with rounded ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_ml.core.engine.progress_text import duration
from retro_ml.evaluation import statistics
from retro_ml.evaluation.human_scores import human_normalise
from retro_ml.reporting.groups import Group, interval_of
from retro_ml.reporting.markup import Markup, join, tag
from retro_ml.reporting.references import Reference
from retro_ml.reporting.run_records import RunRecord

MAX_ROWS = 500
"""Of a table in the page; its CSV has all."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its heading in the page, its name in the CSV, how a value is shown."""

    heading: str
    name: str
    show: Callable[[Any], Any] = str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of raw values, one for each column; None is an empty cell."""

    name: str
    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""

    def as_csv(self) -> bytes:
        """All rows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        writer.writerows([[_csv_cell(value) for value in row] for row in self.rows])
        return text.getvalue().encode("utf-8", "replace")

    def as_html(self) -> Markup:
        """In a frame that scrolls by itself where the page is narrow."""
        head = tag("tr", [tag("th", c.heading, scope="col", class_=_side(c)) for c in self.columns])
        body = [self._row(row) for row in self.rows[:MAX_ROWS]]
        table = tag("table", tag("caption", self.title), tag("thead", head), tag("tbody", body))
        left = len(self.rows) - MAX_ROWS
        notes = [self.note] if self.note else []
        if left > 0:
            notes.append(f"{left:,} more rows are in the CSV.")
        frame = tag("div", table, class_="frame", tabindex=0, role="region", aria_label=self.title)
        return join(frame, tag("p", " ".join(notes), class_="note") if notes else None)

    def _row(self, row: tuple[Any, ...]) -> Markup:
        cells = []
        for index, (column, value) in enumerate(zip(self.columns, row, strict=True)):
            shown = "–" if value is None else column.show(value)
            kind, scope = ("th", "row") if index == 0 else ("td", None)
            cells.append(tag(kind, shown, class_=_side(column), scope=scope))
        return tag("tr", cells)


def scores_table(groups: Sequence[Group]) -> Table:
    """Final scores of each group, with intervals."""
    return Table(
        "scores",
        "Final scores",
        (
            TableColumn("game", "game", number=False),
            TableColumn("what", "runs_of", number=False),
            TableColumn("runs", "runs"),
            TableColumn("agent steps", "agent_steps", _whole),
            TableColumn("score", "score", _decimal(1)),
            TableColumn("95 % from", "score_low", _decimal(1)),
            TableColumn("to", "score_high", _decimal(1)),
            TableColumn("IQM", "iqm", _decimal(1)),
            TableColumn("human = 1", "human_normalised", _decimal(2)),
            TableColumn("95 % from", "human_normalised_low", _decimal(2)),
            TableColumn("to", "human_normalised_high", _decimal(2)),
            TableColumn("score of", "score_of", number=False),
            TableColumn("interval over", "interval_over", number=False),
        ),
        tuple(_score_row(group) for group in groups),
        "Score: mean over runs of the mean unclipped score of whole games; of a single run, IQM and "
        "interval are over its games, otherwise over runs.",
    )


def aggregate_table(groups: Sequence[Group]) -> Table:
    """Human-normalised scores over runs and games, for each label."""
    labels = dict.fromkeys(group.label for group in groups)
    rows = [_aggregate_row(label, [g for g in groups if g.label == label]) for label in labels]
    shown = [row for row in rows if row is not None]
    shown.sort(key=lambda row: -row[3])
    ends = [
        (f"{heading}{end}", f"{name}{suffix}")
        for heading, name in (("IQM", "iqm"), ("mean", "mean"), ("median", "median"))
        for end, suffix in (("", ""), (" from", "_low"), (" to", "_high"))
    ]
    return Table(
        "human_normalised",
        "Human-normalised scores over all games",
        (
            TableColumn("what", "runs_of", number=False),
            TableColumn("games", "games"),
            TableColumn("runs", "runs"),
            *(TableColumn(heading, name, _decimal(2)) for heading, name in ends),
            TableColumn("optimality gap", "optimality_gap", _decimal(2)),
        ),
        tuple(shown),
        "A random agent is 0, a human 1 (Wang et al. 2016). IQM: mean of the middle half; intervals: "
        "95 %, bootstrap over runs, stratified by game (Agarwal et al. 2021); none where no game "
        "has two runs. Median: over games, of the mean over runs.",
    )


def runs_table(groups: Sequence[Group], link: Callable[[RunRecord], str]) -> Table:
    """One row a run."""
    rows = [_run_row(group, run) for group in groups for run in group.runs]
    links = {run.name: link(run) for group in groups for run in group.runs}

    def show_run(name: str) -> Markup:
        return tag("a", name, href=links[name])

    return Table(
        "runs",
        "Runs",
        (
            TableColumn("run", "experiment_id", show_run, number=False),
            TableColumn("state", "state", number=False),
            TableColumn("game", "game", number=False),
            TableColumn("what", "runs_of", number=False),
            TableColumn("seed", "seed"),
            TableColumn("agent steps", "agent_steps", _whole),
            TableColumn("games", "games", _whole),
            TableColumn("training score", "training_score", _decimal(1)),
            TableColumn("evaluation", "evaluation_score", _decimal(1)),
            TableColumn("steps/s", "steps_per_s", _whole),
            TableColumn("trained for", "training_time_s", duration),
            TableColumn("remarks", "remarks", number=False),
        ),
        tuple(rows),
        "Training score: mean of the last 100 training games. Steps/s: median over iterations.",
    )


def references_table(references: Sequence[Reference]) -> Table:
    """What was published on the games and algorithms of the report."""
    return Table(
        "references",
        "Published scores",
        (
            TableColumn("game", "game", number=False),
            TableColumn("algorithm", "algorithm", number=False),
            TableColumn("implementation", "implementation", number=False),
            TableColumn("agent steps", "agent_steps", _whole),
            TableColumn("score", "score", _decimal(1)),
            TableColumn("std", "std", _decimal(1)),
            TableColumn("seeds", "seeds"),
            TableColumn("protocol", "protocol", number=False),
            TableColumn("source", "source", number=False),
        ),
        tuple(
            (r.rom, r.algorithm, r.implementation, r.agent_steps, r.score, r.std, r.seeds,
             r.protocol, r.source)
            for r in references
        ),
        "How they were scored differs from row to row, as the protocol says.",
    )  # fmt: skip


def differences_table(groups: Sequence[Group]) -> Table | None:
    """The settings in which the groups differ; None where they do not."""
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    if not names:
        return None
    return Table(
        "settings",
        "What differs between the runs",
        (
            TableColumn("game", "game", number=False),
            TableColumn("algorithm", "algorithm", number=False),
            *(TableColumn(name, name, _value) for name in names),
            TableColumn("score", "score", _decimal(1)),
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


def _score_row(group: Group) -> tuple[Any, ...]:
    score, interval, runs = group.score(), group.interval, group.counted
    ends = (None, None) if interval is None else (interval.low, interval.high)
    pooled = group.final_scores() if len(runs) > 1 else None
    if pooled is None and runs:
        pooled = group.run_scores(runs[0])
    iqm = float(statistics.interquartile_mean(pooled[:, None])) if pooled is not None else None
    normalised = [None if v is None else human_normalise(group.rom, v) for v in (score, *ends)]
    steps = max((run.agent_steps for run in group.runs), default=None)
    over = None if interval is None else "runs" if len(runs) > 1 else "games of one run"
    counted = len(runs) or len(group.runs)
    return (group.game, group.label, counted, steps, score, *ends, iqm, *normalised,
            describe_scores(group) if runs else None, over)  # fmt: skip


def describe_scores(group: Group) -> str:
    """Which games the final score is the mean of."""
    runs = group.counted
    games = {len(group.run_scores(run)) for run in runs}
    count = f"{min(games):,}" if len(games) == 1 else f"{min(games):,} to {max(games):,}"
    evaluation = runs[0].evaluation
    if group.is_evaluated and evaluation is not None:
        greedy = ", deterministic" if evaluation.deterministic else ""
        return f"{count} evaluation games ({evaluation.protocol}{greedy})"
    return f"the last {count} training games"


def _aggregate_row(label: str, groups: Sequence[Group]) -> tuple[Any, ...] | None:
    samples = []
    for group in groups:
        scores = [human_normalise(group.rom, score) for score in group.final_scores()]
        known = np.array([score for score in scores if score is not None], np.float64)
        if len(known):
            samples.append(known)
    if not samples:
        return None
    pooled = np.concatenate(samples)
    means = np.array([sample.mean() for sample in samples])
    cells: list[float | None] = []
    for statistic, scores in (
        (statistics.interquartile_mean, pooled),
        (statistics.mean, pooled),
        (statistics.median_of_scores, means),
    ):
        interval = None
        # The median over games needs each game's own runs; it is told without an interval.
        if statistic is not statistics.median_of_scores:
            interval = interval_of(statistic, *samples)
        ends = (None, None) if interval is None else (interval.low, interval.high)
        cells += [float(statistic(scores[:, None])), *ends]
    gap = float(statistics.optimality_gap(pooled[:, None]))
    return (label, len(samples), len(pooled), *cells, gap)


def _run_row(group: Group, run: RunRecord) -> tuple[Any, ...]:
    evaluation = run.evaluation
    remarks = [run.summary.error] if run.summary.error else []
    if run not in group.counted and group.counted:
        remarks.append("not counted in means")
    if evaluation is not None and evaluation.trained_agent_steps not in {None, run.agent_steps}:
        remarks.append(f"evaluated at {evaluation.trained_agent_steps:,} agent steps")
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


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _decimal(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _side(column: TableColumn) -> str | None:
    return "number" if column.number else None


def _csv_cell(value: Any) -> Any:
    # A spreadsheet would take such a text for a formula.
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@"}:
        return "'" + value
    return "" if value is None else value
