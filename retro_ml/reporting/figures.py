"""The figures of a report: learning curves, final scores, what the optimiser did.

Lines are labelled at their ends where there is room. Colours mean groups of runs and are the same
in all figures of a game.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retro_ml.evaluation.human_scores import SCORES
from retro_ml.reporting.figure_files import MUTED, OTHERS, PAPER, Figure
from retro_ml.reporting.figure_labels import (
    LineEnd,
    best_first,
    fold,
    group_colours,
    label_above,
    label_at_ends,
    label_panels,
    reference_label,
    score_words,
    short_labels,
)
from retro_ml.reporting.groups import MAX_CURVE_RUNS, Group
from retro_ml.reporting.metrics_columns import smooth, thin
from retro_ml.reporting.references import Reference, comparable_references

MAX_ROWS = 16
"""Of the figure of final scores."""
_LINE_POINTS, _GREY_POINTS = 160, 40
_WIDE_IN, _NARROW_IN = 7.6, 3.9
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MAX_LINES = 8
"""Single runs drawn in a panel of the optimiser."""
_PANEL_POINTS = 80
_FOLD_WIDE, _FOLD_NARROW = 120, 56
_CURVES_NOTE = "thick: mean over runs; band: its 95 % interval; thin: single runs"
_SCORES_NOTE = "solid line: 95 % interval; ticks below it: single runs"
_STD_NOTE = "dotted: standard deviation, as published"
_PANELS_NOTE = "thick: mean over runs; thin: single runs"
PANELS = {
    "PPO": (
        "policy_loss",
        "value_loss",
        "entropy",
        "explained_variance",
        "approx_kl",
        "clip_fraction",
        "learning_rate",
        "steps_per_s",
    ),
    "A2C": (
        "policy_loss",
        "value_loss",
        "entropy",
        "explained_variance",
        "learning_rate",
        "steps_per_s",
    ),
    "DQN": ("loss", "q_mean", "epsilon", "replay_size", "learning_rate", "steps_per_s"),
}
_PANEL_TITLES = {
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "entropy": "entropy (nats)",
    "explained_variance": "explained variance",
    "approx_kl": "approximate KL (nats)",
    "clip_fraction": "clipped ratios (share)",
    "learning_rate": "learning rate",
    "loss": "loss",
    "q_mean": "mean action value",
    "epsilon": "random actions (share)",
    "replay_size": "replay (transitions)",
    "steps_per_s": "agent steps per second",
}


def learning_curves(name: str, groups: Sequence[Group], references: Sequence[Reference]) -> Figure:
    """Score over agent steps of one game's groups, published points beside them."""
    game = groups[0].game
    colours = group_colours(groups)
    words = [f"{group.label}: {score_words(group)}" for group in groups if group.label in colours]
    return Figure(
        name=name,
        title=f"Learning curves on {game}",
        description="Mean score of the last 100 training games over agent steps. "
        + "; ".join(words),
        draw=lambda narrow: _draw_curves(groups, references, colours, narrow=narrow),
    )


def final_scores(name: str, groups: Sequence[Group], references: Sequence[Reference]) -> Figure:
    """Where each group of one game stands, with intervals, beside published scores."""
    scored = [group for group in groups if group.score() is not None]
    shown = best_first(scored)[:MAX_ROWS]
    return Figure(
        name=name,
        title=f"Final scores on {groups[0].game}"
        + (f", the best {MAX_ROWS} of {len(groups)}" if len(groups) > MAX_ROWS else ""),
        description="Scores with 95 % intervals. "
        + "; ".join(f"{group.label}: {score_words(group)}" for group in shown),
        draw=lambda narrow: _draw_scores(shown, references, group_colours(groups), narrow=narrow),
    )


def optimiser(name: str, groups: Sequence[Group]) -> Figure:
    """Losses and the like of one game's groups of one algorithm, a panel each."""
    first = groups[0]
    return Figure(
        name=name,
        title=f"Training of {first.algorithm} on {first.game}",
        description="Over agent steps: "
        + ", ".join(_PANEL_TITLES[panel] for panel in PANELS[first.algorithm]),
        draw=lambda narrow: _draw_panels(groups, group_colours(groups), narrow=narrow),
    )


def _new_axes(width_in: float, height_in: float, rows: int = 1, columns: int = 1) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_curves(
    groups: Sequence[Group],
    references: Sequence[Reference],
    colours: dict[str, str],
    *,
    narrow: bool,
) -> Any:
    figure, grid = _new_axes(_NARROW_IN if narrow else _WIDE_IN, 3.7)
    axes = grid[0][0]
    labels = short_labels(groups, references)
    ends: list[LineEnd] = []
    for group in reversed(groups):
        colour = colours.get(group.label, OTHERS)
        _draw_group(axes, group, colour)
        curve = group.curve
        if curve is not None and group.label in colours:
            ends.append(LineEnd(curve.agent_steps[-1], curve.mean[-1], labels[group.label], colour))
    last = max((group_end(group) for group in groups), default=0.0) or 1.0
    near = [point for point in references if point.agent_steps <= 1.02 * last]
    ends += _draw_references(axes, near)
    axes.set_xlim(0, last)
    _format_steps(axes)
    axes.set_xlabel("agent steps")
    axes.set_ylabel("score, mean of the last 100 games")
    axes.margins(y=0.08)
    if any(len(group.runs) > 1 for group in groups):
        _write_note(figure, _CURVES_NOTE, narrow=narrow)
    if narrow:
        label_above(axes, ends)
    else:
        label_at_ends(axes, ends, limit=last)
    return figure


def group_end(group: Group) -> float:
    """Agent steps of the group's longest run."""
    return max(float(run.agent_steps) for run in group.runs)


def _draw_group(axes: Any, group: Group, colour: str) -> None:
    grey = colour == OTHERS
    curve = group.curve
    if len(group.runs) > 1 and not grey:
        for run in group.runs[:MAX_CURVE_RUNS]:
            steps = run.metrics.games["step"]
            if len(steps):
                at = steps[thin(len(steps), points=_LINE_POINTS)]
                axes.plot(at, run.metrics.score_at(at), color=colour, lw=0.7, alpha=0.45)
    if curve is None:
        return
    if curve.low is not None and curve.high is not None and not grey:
        axes.fill_between(
            curve.agent_steps, curve.low, curve.high, color=colour, alpha=0.18, lw=0, zorder=2
        )
    width, order = (0.9, 1.5) if grey else (2.2, 3)
    shown = thin(len(curve.mean), points=_GREY_POINTS if grey else len(curve.mean))
    axes.plot(curve.agent_steps[shown], curve.mean[shown], color=colour, lw=width, zorder=order)


def _draw_references(axes: Any, references: Sequence[Reference]) -> list[LineEnd]:
    ends = []
    names = list(dict.fromkeys((r.implementation, r.algorithm) for r in references))
    for (name, algorithm), marker in zip(names, _MARKERS, strict=False):
        points = [r for r in references if (r.implementation, r.algorithm) == (name, algorithm)]
        points.sort(key=lambda point: point.agent_steps)
        axes.plot(
            [point.agent_steps for point in points],
            [point.score for point in points],
            marker,
            color=MUTED,
            mfc=PAPER,
            mew=1.3,
            ms=6,
            clip_on=False,
            zorder=4,
        )
        last = points[-1]
        label = reference_label(last, references)
        ends.append(LineEnd(last.agent_steps, last.score, label, MUTED, marker))
    return ends


def _draw_scores(
    groups: Sequence[Group],
    references: Sequence[Reference],
    colours: dict[str, str],
    *,
    narrow: bool,
) -> Any:
    steps = max((group_end(group) for group in groups), default=0.0)
    beside = comparable_references(references, agent_steps=steps)[: len(_MARKERS)]
    count = len(groups) + len(beside)
    short = short_labels(groups, beside)
    labels = [
        *(short[group.label] for group in groups),
        *(reference_label(reference, references) for reference in beside),
    ]
    labels = [fold(label, 19 if narrow else 44) for label in labels]
    lines = max(1 + label.count("\n") for label in labels)
    figure, grid = _new_axes(
        _NARROW_IN if narrow else _WIDE_IN, 0.95 + (0.22 + 0.17 * lines) * max(count, 2)
    )
    axes = grid[0][0]
    for row, group in enumerate(groups):
        colour = colours.get(group.label, OTHERS)
        interval, score = group.interval, group.score() or 0.0
        if interval is not None:
            axes.plot([interval.low, interval.high], [row, row], color=colour, lw=2.6)
        runs = group.final_scores()
        if len(runs) > 1:
            axes.plot(runs, np.full(len(runs), row + 0.26), "|", color=colour, ms=6, mew=1.2)
        axes.plot(score, row, "o", color=colour, ms=8)
        _write_value(axes, max(score, interval.high if interval else score), row, f"{score:,.1f}")
    for row, reference in enumerate(beside, start=len(groups)):
        if reference.std is not None:
            ends = [reference.score - reference.std, reference.score + reference.std]
            axes.plot(ends, [row, row], color=MUTED, lw=1.0, ls=(0, (2, 2)))
        axes.plot(reference.score, row, "o", color=MUTED, mfc=PAPER, mew=1.4, ms=7)
        _write_value(axes, reference.score + (reference.std or 0.0), row, f"{reference.score:,.1f}")
    axes.set_yticks(range(count), labels)
    axes.set_ylim(count - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _mark_scale(axes, groups[0].rom)
    axes.margins(x=0.12)
    axes.set_xlabel("score")
    notes = [_SCORES_NOTE] if any(len(group.counted) > 1 for group in groups) else []
    notes += [_STD_NOTE] if any(reference.std is not None for reference in beside) else []
    if notes:
        _write_note(figure, "; ".join(notes), narrow=narrow)
    return figure


def _write_value(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9.5
    )


def _mark_scale(axes: Any, rom: str) -> None:
    if rom not in SCORES:
        return
    low, high = axes.get_xlim()
    for word, score in zip(("random", "human"), SCORES[rom], strict=True):
        # Far away it would press all else together.
        if low - (high - low) <= score <= high + (high - low):
            axes.axvline(score, color=MUTED, lw=1.0, ls=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{word} {score:,g}",
                (score, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=MUTED,
            )


def _draw_panels(groups: Sequence[Group], colours: dict[str, str], *, narrow: bool) -> Any:
    names = PANELS[groups[0].algorithm]
    columns = 1 if narrow else 3 if len(names) % 3 == 0 else 4
    rows = -(-len(names) // columns)
    width = _NARROW_IN if narrow else 9.6
    figure, grid = _new_axes(width, (1.55 if narrow else 1.95) * rows + 0.3, rows, columns)
    last = max(group_end(group) for group in groups) or 1.0
    flat = [axes for line in grid for axes in line]
    for name, axes in zip(names, flat, strict=False):
        for group in reversed(groups):
            _draw_panel(axes, group, name, colours.get(group.label, OTHERS))
        axes.set_title(_PANEL_TITLES[name], loc="left", fontsize=10)
        axes.set_xlim(0, last)
        _format_steps(axes, ticks=3)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(8.5)
        axes.tick_params(labelsize=9)
        if name == "steps_per_s":
            axes.set_ylim(bottom=0)
        if name == "learning_rate":
            axes.margins(y=0.2)
    for axes in flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("agent steps", fontsize=9.5)
    if len(groups) > 1:
        label_panels(figure, groups, colours, columns=1 if narrow else 3)
    if any(len(group.counted) > 1 for group in groups):
        _write_note(figure, _PANELS_NOTE, narrow=narrow)
    return figure


def _draw_panel(axes: Any, group: Group, name: str, colour: str) -> None:
    grey = colour == OTHERS
    lines = [
        (
            smooth(run.metrics.iterations["step"], points=_PANEL_POINTS),
            smooth(run.metrics.iterations[name], points=_PANEL_POINTS),
        )
        for run in group.counted[: 1 if grey else _MAX_LINES]
        if len(run.metrics.iterations["step"])
    ]
    single = {"lw": 0.6, "alpha": 0.5} if len(lines) > 1 or grey else {"lw": 1.5}
    for steps, values in lines:
        axes.plot(steps, values, color=colour, **single)
    if len(lines) > 1:
        # What all of them reached.
        at = np.linspace(0, min(steps[-1] for steps, _ in lines), _PANEL_POINTS)
        means = np.mean([np.interp(at, steps, values, left=np.nan) for steps, values in lines], 0)
        axes.plot(at, means, color=colour, lw=1.8)


def _write_note(figure: Any, note: str, *, narrow: bool) -> None:
    """How to read it, below all else."""
    text = fold(note, _FOLD_NARROW if narrow else _FOLD_WIDE)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color=MUTED)


def _format_steps(axes: Any, *, ticks: int = 6) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
