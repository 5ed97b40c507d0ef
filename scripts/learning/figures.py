"""Learning curves as SVG and PNG: one figure for each name of the matrix.

Thin lines are seeds, the band is from the lowest to the highest of them, the thick line their mean;
dots are published figures. Colours: Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learning.arithmetic import WINDOW, running_mean
from learning.bars import Records
from learning.matrix import Entry
from learning.records import Record
from learning.references import Reference

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
DOT_COLOUR = "#333333"
DOTS = ("o", "s", "^", "D")
GRID_POINTS = 400
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Without it every drawing of the same data would be another file.
    "svg.hashsalt": "retro_ml",
}


def figure_entries(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """Those of a name, and those that their bars are held against."""
    own = [entry for entry in entries if entry.name == name]
    beside = {bar.to for entry in own for bar in entry.bars if bar.to is not None}
    return own + [entry for entry in entries if entry.key in beside and entry not in own]


def build_curve(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`[K]` agent steps and `[K]` mean scores of the 100 games before each."""
    steps = np.array([game.step for game in record.games], np.float64)
    means = running_mean([game.score for game in record.games])
    return steps[WINDOW - 1 :], means


def build_band(
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """`[P]` agent steps that all curves reach and `[S, P]` scores there; None without any."""
    begin = max(steps[0] for steps, _ in curves)
    end = min(steps[-1] for steps, _ in curves)
    if begin >= end:
        return None
    grid = np.linspace(begin, end, GRID_POINTS)
    return grid, np.stack([np.interp(grid, steps, means) for steps, means in curves])


def describe_line(entry: Entry, *, drawn: int, averaged: bool) -> str:
    """What the legend says of an entry's thick line: how many of its seeds there are to see."""
    side = "Stable-Baselines3" if entry.side == "sb3" else "retro_ml"
    precision = "" if entry.precision == "auto" else f" {entry.precision}"
    planned = len(entry.seeds)
    seeds = "1 seed" if planned == 1 else f"{planned} seeds"
    if drawn < planned:
        seeds = f"{drawn} of {seeds}"
    return f"{side}{precision}, {seeds}{', mean and range' if averaged else ''}"


def save_figure(
    name: str,
    entries: Sequence[Entry],
    records: Records,
    *,
    references: Sequence[Reference],
    folder: Path,
) -> Path | None:
    """`learning-NAME.svg` and `.png`; the SVG's path, or None where there is no run to show."""
    shown = [entry for entry in figure_entries(name, entries) if records[entry.key]]
    if not any(entry.name == name for entry in shown):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
        for colour, entry in zip(COLOURS, shown, strict=False):
            _draw_entry(axes, entry, list(records[entry.key].values()), colour)
        first = shown[0]
        for dot, implementation in zip(DOTS, _implementations(references), strict=False):
            _draw_dots(axes, references, implementation, dot)
        axes.set_xlabel("agent steps (thousands)")
        axes.set_ylabel("score, mean of the last 100 games")
        axes.set_title(f"{first.algorithm} on {first.game}", loc="left", fontsize=12)
        axes.set_xlim(0, first.agent_steps / 1_000 * 1.02)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:  # none where no run has a hundred games
            axes.legend(frameon=False, loc="upper left", fontsize=9)
        path = folder / f"learning-{name}.svg"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    return path


def _draw_entry(axes: Any, entry: Entry, records: list[Record], colour: str) -> None:
    curves = [curve for curve in map(build_curve, records) if len(curve[1]) > 1]
    for steps, means in curves:
        axes.plot(steps / 1_000, means, color=colour, lw=0.8, alpha=0.7)
    band = build_band(curves) if len(curves) > 1 else None
    label = describe_line(entry, drawn=len(curves), averaged=band is not None)
    if band is not None:
        steps, scores = band
        ends = scores.min(axis=0), scores.max(axis=0)
        axes.fill_between(steps / 1_000, *ends, color=colour, alpha=0.15, lw=0)
        axes.plot(steps / 1_000, scores.mean(axis=0), color=colour, lw=2.2, label=label)
    elif curves:
        axes.plot(curves[0][0] / 1_000, curves[0][1], color=colour, lw=2.2, label=label)


def _draw_dots(axes: Any, references: Sequence[Reference], implementation: str, dot: str) -> None:
    rows = [row for row in references if row.implementation == implementation]
    axes.plot(
        [row.agent_steps / 1_000 for row in rows],
        [row.score for row in rows],
        dot,
        color=DOT_COLOUR,
        fillstyle="none",
        ms=6,
        label=f"{implementation}, published",
    )


def _implementations(references: Sequence[Reference]) -> list[str]:
    return list(dict.fromkeys(row.implementation for row in references))
