"""A table as CSV with the full figures, and as HTML with rounded ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retro_ml.evaluation.statistics import Interval
from retro_ml.reporting.markup import Markup, join, tag

MAX_ROWS = 100
"""Of a table in the page; its CSV has all."""


def whole(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def one_digit(value: float) -> str:
    """`12.3`."""
    return f"{value:,.1f}"


def two_digits(value: float) -> str:
    """`12.34`."""
    return f"{value:,.2f}"


def interval_one_digit(interval: Interval) -> str:
    """`12.3 to 14.5`."""
    return f"{interval.low:,.1f} to {interval.high:,.1f}"


def interval_two_digits(interval: Interval) -> str:
    """`0.12 to 0.34`."""
    return f"{interval.low:,.2f} to {interval.high:,.2f}"


_LONG = 44
"""Characters of a text that may take several lines."""
_INTERVALS = (interval_one_digit, interval_two_digits)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its heading in the page, its name in the CSV, how a value is shown."""

    heading: str
    name: str
    show: Callable[[Any], Any] = str
    number: bool = True
    in_page: bool = True
    """Otherwise it is in the CSV alone."""

    @property
    def csv_names(self) -> list[str]:
        """An interval is two columns there."""
        return [f"{self.name}_low", f"{self.name}_high"] if self.show in _INTERVALS else [self.name]

    def csv_cells(self, value: Any) -> list[Any]:
        """As many as there are names; a missing value is empty."""
        if self.show not in _INTERVALS:
            return [_csv_cell(value)]
        return ["", ""] if value is None else [value.low, value.high]


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
        writer.writerow([name for column in self.columns for name in column.csv_names])
        for row in self.rows:
            pairs = zip(self.columns, row, strict=True)
            writer.writerow([cell for column, value in pairs for cell in column.csv_cells(value)])
        return text.getvalue().encode("utf-8", "replace")

    def as_html(self) -> Markup:
        """In a frame that scrolls by itself where the page is narrow."""
        shown = [column for column in self.columns if column.in_page]
        head = tag("tr", [tag("th", c.heading, scope="col", class_=_kind(c, "")) for c in shown])
        body = [self._row(row) for row in self.rows[:MAX_ROWS]]
        table = tag("table", tag("caption", self.title), tag("thead", head), tag("tbody", body))
        left = len(self.rows) - MAX_ROWS
        notes = [self.note] if self.note else []
        if left > 0:
            notes.append(f"{left:,} more rows are in {self.name}.csv.")
        frame = tag("div", table, class_="frame", tabindex=0, role="region", aria_label=self.title)
        return join(frame, tag("p", " ".join(notes), class_="note") if notes else None)

    def _row(self, row: tuple[Any, ...]) -> Markup:
        cells = []
        pairs = [(c, v) for c, v in zip(self.columns, row, strict=True) if c.in_page]
        for index, (column, value) in enumerate(pairs):
            shown = "" if value is None else column.show(value)
            element, scope = ("th", "row") if index == 0 else ("td", None)
            cells.append(tag(element, shown, class_=_kind(column, shown), scope=scope))
        return tag("tr", cells)


def _kind(column: TableColumn, shown: str) -> str | None:
    return "number" if column.number else "long" if len(shown) > _LONG else None


def _csv_cell(value: Any) -> Any:
    # A spreadsheet would take such a text for a formula.
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@"}:
        return "'" + value
    return "" if value is None else value
