"""From a matplotlib figure to files and to SVG that lives inside a page.

The same drawing is saved as PNG and SVG on white, and embedded with its colours as CSS variables,
so that it follows the page into dark mode, and its words as text, so that they can be read out,
searched and set in the page's own type. `import matplotlib` happens here and in `figures` only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

INK, MUTED, GRID, PAPER = "#1b1f24", "#59616b", "#dfe3e8", "#fefefe"
# Okabe and Ito 2008, "Color Universal Design": told apart with any common colour blindness. The
# three that are dark enough on white come first, those that are light enough on black in the dark.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
SERIES_DARK = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442")
OTHERS = "#a3abb5"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    OTHERS: "--others",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "text.parse_math": False,
    "svg.fonttype": "none",
    # Without it every drawing of the same data would be another file.
    "svg.hashsalt": "retro_ml",
}
_PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that is yet to be drawn."""

    name: str
    """Of its files, without suffix."""
    title: str
    description: str
    """What it shows, for those who cannot see it."""
    draw: Callable[[bool], Any]
    """Takes whether the page is narrow, gives a matplotlib figure."""


@dataclass(frozen=True, slots=True)
class DrawnFigure:
    """A figure as files and as markup."""

    name: str
    title: str
    png: bytes
    svg: bytes
    wide: str
    """Markup for a page as wide as a desktop's."""
    narrow: str
    """For a phone's."""


def render(figure: Figure) -> DrawnFigure:
    """Draws it for both widths."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(_STYLE):
        wide, narrow = figure.draw(False), figure.draw(True)
        for drawn in (wide, narrow):
            FigureCanvasAgg(drawn)
            drawn.draw_without_rendering()
            drawn.set_layout_engine("none")  # it is laid out, which takes longer than drawing
        svg = _save(wide, "svg", facecolor="none", metadata={"Date": None}).decode()
        phone = _save(narrow, "svg", facecolor="none", metadata={"Date": None}).decode()
        # By itself a figure needs the title that is its caption in the page: above its edge.
        wide.text(0.01, 1.0, figure.title, va="bottom", fontweight="bold", fontsize=11)
        alone: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12}
        png = _save(
            wide, "png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None}, **alone
        )
        file = _save(wide, "svg", facecolor="none", metadata={"Date": None}, **alone).decode()
    return DrawnFigure(
        name=figure.name,
        title=figure.title,
        png=png,
        svg=file.replace("<svg ", '<svg style="background: white" ', 1).encode(),
        wide=_embed(svg, figure, "w"),
        narrow=_embed(phone, figure, "n"),
    )


def _save(drawn: Any, kind: str, **words: Any) -> bytes:
    file = io.BytesIO()
    drawn.savefig(file, format=kind, **words)
    return file.getvalue()


def _embed(svg: str, figure: Figure, variant: str) -> str:
    text = svg[svg.index("<svg") :]
    # Its style would be the whole page's.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    prefix = f"{figure.name}-{variant}-"
    text = re.sub(r'(<[^<>]*? id=")', rf"\g<1>{prefix}", text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", text)
    head, _, body = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    label, described = f"{prefix}title", f"{prefix}desc"
    head += f' role="img" aria-labelledby="{label} {described}"'
    words = f'<title id="{label}">{escape(figure.title)}</title>'
    words += f'<desc id="{described}">{escape(figure.description)}</desc>'
    return re.sub(r"\n\s*", "\n", f"{head}>{words}{body}")
