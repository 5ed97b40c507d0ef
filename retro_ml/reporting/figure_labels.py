"""What is written into figures, and in which colour: labels of groups and of the ends of lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retro_ml.reporting.figure_files import INK, MUTED, OTHERS, PAPER, SERIES
from retro_ml.reporting.groups import Group
from retro_ml.reporting.references import Reference


@dataclass(frozen=True, slots=True)
class LineEnd:
    """Where a line, or a row of published points, ends: its label goes there."""

    x: float
    y: float
    label: str
    colour: str
    marker: str | None = None
    """Of published points."""


def group_colours(groups: Sequence[Group]) -> dict[str, str]:
    """A colour for each of the best groups, by label; the others are grey.

    In the order of their labels, so that the same groups have the same colours on every game.
    """
    scored = [group for group in groups if group.score() is not None]
    labels = sorted(group.label for group in best_first(scored)[: len(SERIES)])
    return dict(zip(labels, SERIES, strict=False))


def best_first(groups: Sequence[Group]) -> list[Group]:
    """By their scores."""
    return sorted(groups, key=lambda group: -(group.score() or 0.0))


def short_labels(groups: Sequence[Group], references: Sequence[Reference]) -> dict[str, str]:
    """Labels for a figure, by those of the groups: no word that all of them share."""
    alike = len({group.algorithm for group in groups}) == 1
    labels = {}
    for group in groups:
        label = group.label
        if alike and group.settings:
            label = label.removeprefix(f"{group.algorithm}, ")
        elif references:  # beside others' results the project is named
            label = f"retro_ml, {label}"
        labels[group.label] = label
    return labels


def reference_label(reference: Reference, references: Sequence[Reference]) -> str:
    """Whose published score it is, and of which algorithm where it could be another."""
    alike = len({r.algorithm for r in references}) == 1
    return f"{reference.implementation}, {'' if alike else f'{reference.algorithm}, '}published"


def score_words(group: Group) -> str:
    """`14.7`."""
    score = group.score()
    return "no game over yet" if score is None else f"{score:,.1f}"


def label_at_ends(axes: Any, ends: Sequence[LineEnd], *, limit: float) -> None:
    """Right of the plot, each as near to its line's end as the others let it."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    texts = [fold(end.label, 30) for end in ends]
    heights = [0.055 * (1 + text.count("\n")) + 0.02 for text in texts]
    wanted = [(end.y - low) / (high - low) for end in ends]
    for index, at in _spread(wanted, heights).items():
        end = ends[index]
        published = end.marker is not None
        axes.annotate(
            texts[index],
            xy=(end.x / limit, wanted[index]),
            xycoords="axes fraction",
            xytext=(1.035, at),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=MUTED if published else INK,
            fontweight="normal" if published else "bold",
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "lw": 1.0,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
            annotation_clip=False,
        )


def label_above(axes: Any, ends: Sequence[LineEnd]) -> None:
    """A legend over the plot: beside it there is no room on a phone."""
    from matplotlib.lines import Line2D

    handles = []
    for end in sorted(ends, key=lambda end: -end.y):
        look: dict[str, Any] = {"lw": 2.4}
        if end.marker is not None:
            look = {"ls": "", "marker": end.marker, "mfc": PAPER, "mew": 1.3}
        handles.append(Line2D([], [], color=end.colour, label=fold(end.label, 44), **look))
    if handles:
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            frameon=False,
            fontsize=9.5,
            borderaxespad=0.2,
            handlelength=1.4,
        )


def label_panels(
    figure: Any, groups: Sequence[Group], colours: dict[str, str], *, columns: int
) -> None:
    """A legend over all panels; groups without a colour are the others."""
    from matplotlib.lines import Line2D

    labels = short_labels(groups, [])
    shown = {
        labels[group.label]: colours[group.label] for group in groups if group.label in colours
    }
    if len(shown) < len(groups):
        shown["others"] = OTHERS
    handles = [
        Line2D([], [], color=colour, lw=2.4, label=fold(label, 44))
        for label, colour in shown.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9.5,
        borderaxespad=0.2,
        handlelength=1.4,
    )


def fold(text: str, width: int) -> str:
    """In lines, three at most."""
    return textwrap.fill(text, width, max_lines=3, placeholder=" ...")


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> dict[int, float]:
    """Places from 0 to 1 near the wanted ones, none over another: from below, then from above."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places: dict[int, float] = {}
    floor = -0.05
    for index in order:
        places[index] = max(wanted[index], floor + heights[index] / 2)
        floor = places[index] + heights[index] / 2
    ceiling = 1.08
    for index in reversed(order):
        places[index] = min(places[index], ceiling - heights[index] / 2)
        ceiling = places[index] - heights[index] / 2
    return places
