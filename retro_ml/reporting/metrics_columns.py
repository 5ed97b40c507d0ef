"""metrics.csv as columns of numbers, read at once: what figures and statistics are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from retro_ml.core.artifacts.metrics_file import COLUMNS, read_rows
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.metrics.event_bus import EventType

SCORE_WINDOW = 100
"""Games over which a training score is the mean (Machado et al. 2018, section 4.2)."""
_KINDS = {int: pa.float64(), float: pa.float64(), str: pa.string()}
_NUMBERS = [column.name for column in COLUMNS if column.kind is not str]
_UNUSED = {"length", "iteration", "frames", "games"}
_KEPT = {
    "iterations": (EventType.TRAINING_STEP, [name for name in _NUMBERS if name not in _UNUSED]),
    "games": (EventType.EPISODE_FINISHED, ["step", "reward"]),
}
"""Of each kind of rows, what figures and statistics are made of: runs may have millions of them."""


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """A run's rows by kind: `[N] float64` each, NaN where a cell is empty."""

    iterations: dict[str, NDArray[np.float64]]
    games: dict[str, NDArray[np.float64]]
    """Their agent steps and scores alone."""
    fault: str | None = None
    """Why rows are missing."""

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of the finished training games, in order."""
        return self.games["reward"]

    def final_scores(self) -> NDArray[np.float64]:
        """Those of the last 100 games, or of as many as there are."""
        return self.scores[-SCORE_WINDOW:]

    def score_at(self, agent_steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean score of the last 100 games at each of `[K]` agent steps; NaN before the first."""
        ended = np.searchsorted(self.games["step"], agent_steps, side="right")
        sums = np.concatenate([[0.0], np.cumsum(self.scores)])
        begin = np.maximum(0, ended - SCORE_WINDOW)
        counted = np.maximum(1, ended - begin)
        return np.where(ended > 0, (sums[ended] - sums[begin]) / counted, np.nan)

    @property
    def agent_steps(self) -> float:
        """Of the last iteration; 0 before the first."""
        steps = self.iterations["step"]
        return float(steps[-1]) if len(steps) else 0.0


def read_metrics(csv_path: Path) -> RunMetrics:
    """The rows of a metrics.csv; a torn last line is left out, a damaged one ends them."""
    try:
        if not csv_path.is_file():
            return _split({}, fault=f"{csv_path.name} is missing")
        return _split(_read_table(csv_path.read_bytes()))
    except OSError as error:
        return _split({}, fault=f"{csv_path.name} cannot be read: {error.strerror}")
    except (pa.ArrowInvalid, ValueError):
        return _read_until_damaged(csv_path)


def thin(count: int, *, points: int) -> NDArray[np.intp]:
    """Indices of at most `points` of `count` places, first and last among them."""
    if count <= points:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, points).round().astype(np.intp))


def smooth(values: NDArray[np.float64], *, points: int) -> NDArray[np.float64]:
    """`[N]` -> `[min(N, points)]`: means of stretches of equal length, empty cells left out."""
    if len(values) <= points:
        return values
    ends = np.linspace(0, len(values), points + 1).round().astype(np.intp)
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), ends[:-1])
    counts = np.add.reduceat(known.astype(np.float64), ends[:-1])
    return np.divide(sums, counts, out=np.full(points, np.nan), where=counts > 0)


def _read_table(content: bytes) -> dict[str, NDArray[np.float64] | NDArray[np.object_]]:
    whole = content[: content.rfind(b"\n") + 1]
    if whole.count(b"\n") < 2:
        return {}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(whole),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={column.name: _KINDS[column.kind] for column in COLUMNS},
            include_columns=["type", *_NUMBERS],
            include_missing_columns=True,
        ),
    )
    return {name: table[name].to_numpy() for name in table.column_names}


def _read_until_damaged(csv_path: Path) -> RunMetrics:
    rows: list[dict[str, Any]] = []
    fault = None
    try:
        rows.extend(read_rows(csv_path))
    except ArtifactError as error:
        fault = f"{str(error).removeprefix(f'{csv_path} ')}; that line and what follows is left out"
        fault = f"{csv_path.name} {fault}"
    nan = float("nan")
    table = {
        name: np.array([nan if row.get(name) is None else row[name] for row in rows], np.float64)
        for name in _NUMBERS
    }
    kinds = np.array([row["type"] for row in rows], np.object_)
    return _split({"type": kinds, **table}, fault=fault)


def _split(
    table: dict[str, NDArray[np.float64] | NDArray[np.object_]], *, fault: str | None = None
) -> RunMetrics:
    kinds = table.get("type", np.empty(0, np.object_))
    parts: dict[str, Any] = {}
    for key, (kind, names) in _KEPT.items():
        chosen = kinds == kind.value
        empty = np.empty(0, np.float64)
        part = {
            name: table[name][chosen].astype(np.float64) if name in table else empty
            for name in names
        }
        # A row without its step, or a game without its score, says nothing.
        usable = np.isfinite(part["step"])
        if kind is EventType.EPISODE_FINISHED:
            usable &= np.isfinite(part["reward"])
        parts[key] = {name: values[usable] for name, values in part.items()}
    return RunMetrics(**parts, fault=fault)
