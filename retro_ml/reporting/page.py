"""report.html: one page that needs nothing else, from the parts of a report."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from retro_ml.reporting.figure_files import (
    GRID,
    INK,
    MUTED,
    OTHERS,
    SERIES,
    SERIES_DARK,
    DrawnFigure,
)
from retro_ml.reporting.markup import Markup, join, tag
from retro_ml.reporting.run_records import RunRecord
from retro_ml.reporting.tables import Table

MAX_FILM_BYTES = 16_000_000
"""A larger film is linked, not embedded. Ten milestones of 20 s are some 10 MB."""
MAX_CONFIGS = 50
"""Runs whose whole config is in the page."""
# Nothing is fetched from anywhere, and no script runs, whatever a run's files may say.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_DARK = {"ink": "#e8eaed", "muted": "#a2abb6", "grid": "#31373f", "paper": "#14171b",
         "others": "#68727e"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the answers at the top."""

    value: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A film to show: embedded or linked."""

    path: Path
    href: str
    words: str
    """What it shows; its name follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page is made of, in its order."""

    title: str
    subtitle: str
    facts: Sequence[Fact]
    notices: Sequence[str]
    film: Film | None
    curves: Sequence[DrawnFigure]
    scores: Sequence[DrawnFigure]
    optimiser: Sequence[DrawnFigure]
    tables: Sequence[Table]
    references: Table | None
    differences: Table | None
    runs: Sequence[RunRecord]
    artifacts: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
    """For each run its name, its folder, and its files as (name, address)."""
    files: Sequence[tuple[str, str]]
    """Of the report, and of the folder it is about, likewise."""
    made: str
    """When and by what."""


def build_page(page: Page) -> str:
    """The whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", page.title),
        tag("style", Markup(_style())),
    )
    sections = [
        ("Film", [_film(page.film)] if page.film else []),
        ("Learning", [_figure(figure) for figure in page.curves]),
        ("Final scores", [
            *(_figure(figure) for figure in page.scores),
            *(table.as_html() for table in page.tables if table.name != "runs"),
        ]),
        ("Beside the literature", [page.references.as_html()] if page.references else []),
        ("Training", [_figure(figure, large=True) for figure in page.optimiser]),
        ("Runs", [table.as_html() for table in page.tables if table.name == "runs"]),
        ("Settings", _settings(page)),
        ("Files", _files(page)),
        ("How this was reckoned", [_method()]),
    ]  # fmt: skip
    shown = [(title, parts) for title, parts in sections if parts]
    contents = [tag("li", tag("a", title, href=f"#{_anchor(title)}")) for title, _ in shown]
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag(
            "header",
            tag("h1", page.title),
            tag("p", page.subtitle, class_="subtitle"),
            tag("dl", [_fact(fact) for fact in page.facts], class_="facts"),
            [tag("p", notice, class_="notice", role="note") for notice in page.notices],
            tag("nav", tag("ul", contents), aria_label="Contents"),
        ),
        tag(
            "main",
            [tag("section", tag("h2", title, id=_anchor(title)), parts) for title, parts in shown],
            id="results",
        ),
        tag("footer", tag("p", page.made)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _fact(fact: Fact) -> Markup:
    return tag("div", tag("dt", fact.meaning), tag("dd", fact.value))


def _figure(figure: DrawnFigure, *, large: bool = False) -> Markup:
    return tag(
        "figure",
        tag("figcaption", figure.title),
        tag("div", Markup(figure.wide), class_="wide"),
        tag("div", Markup(figure.narrow), class_="narrow"),
        class_="large" if large else None,
    )


def _film(film: Film) -> Markup:
    link = tag("a", film.path.name, href=film.href)
    words = tag("p", film.words, link, ".", class_="note")
    try:
        if film.path.stat().st_size > MAX_FILM_BYTES:
            return words
        content = base64.b64encode(film.path.read_bytes()).decode("ascii")
    except OSError:  # it is linked; perhaps it comes back
        return words
    video = tag(
        "video",
        controls=True,
        preload="metadata",
        src=f"data:video/mp4;base64,{content}",
        aria_label=film.words + film.path.name,
    )
    return join(video, words)


def _settings(page: Page) -> list[Markup]:
    parts = [page.differences.as_html()] if page.differences else []
    for run in page.runs[:MAX_CONFIGS]:
        text = json.dumps(run.config.model_dump(mode="json"), indent=2)
        parts.append(
            tag("details", tag("summary", f"config of {run.name}"), tag("pre", tag("code", text)))
        )
    left = len(page.runs) - MAX_CONFIGS
    if left > 0:
        parts.append(
            tag("p", f"The configs of {left:,} more runs lie in their folders.", class_="note")
        )
    return parts


def _files(page: Page) -> list[Markup]:
    parts = [
        tag("h3", "This report"),
        tag("ul", [_file(name, href) for name, href in page.files], class_="files"),
    ]
    for name, folder, entries in page.artifacts:
        listed = tag("ul", [_file(*entry) for entry in entries], class_="files")
        summary = tag("summary", name)
        where = tag("p", tag("a", "the run's folder", href=folder), class_="note")
        parts.append(tag("details", summary, where, listed, open=len(page.artifacts) == 1))
    return parts


def _file(name: str, href: str) -> Markup:
    return tag("li", tag("a", name, href=href))


def _method() -> Markup:
    return tag(
        "p",
        "A score is the unclipped return of a whole game. Curves: mean of the last 100 training "
        "games, then the mean over runs; bands and intervals hold 95 % (percentile bootstrap over "
        "runs, stratified by game, Agarwal et al. 2021, ",
        _paper("2108.13264"),
        "). Runs that are not finished are left out of means where others are finished; of runs "
        "with the same config and seed one counts; an evaluation counts while its model is the "
        "run's. "
        "Human-normalised: a random agent has 0, a human 1 (Wang et al. 2016, ",
        _paper("1511.06581"),
        "). A few seeds make intervals that are too narrow to trust: five to ten are usual.",
        class_="note",
    )


def _paper(number: str) -> Markup:
    return tag("a", f"arXiv:{number}", href=f"https://arxiv.org/abs/{number}")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _style() -> str:
    light = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": "#ffffff", "others": OTHERS}
    rules = (files("retro_ml.reporting") / "data" / "report.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            f":root {{{_variables(light, SERIES)}}}",
            f"@media (prefers-color-scheme: dark) {{:root {{{_variables(_DARK, SERIES_DARK)}}}}}",
            rules,
        ]
    )


def _variables(colours: dict[str, str], series: Sequence[str]) -> str:
    named = {**colours, **{f"series-{n}": colour for n, colour in enumerate(series, start=1)}}
    return "".join(f"--{name}:{colour};" for name, colour in named.items())
