"""metrics.csv and metrics.json: the columns, rows from events, rows read back, rows cut.

metrics.csv is the source: one line a row, appended. metrics.json is the same rows as one document,
made from it without holding the rows in memory.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically, rewrite_lines
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

logger = logging.getLogger("retro_ml.artifacts")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of metrics.csv, which is one key of metrics.json's rows."""

    name: str
    kind: type[int] | type[float] | type[str]
    meaning: str


COLUMNS = (
    Column("type", str, "training_step, episode_finished or run_completed"),
    Column("timestamp", str, "when the row was recorded, UTC, ISO 8601 with microseconds"),
    Column("step", int, "agent steps of all games since the run began"),
    Column("reward", float, "training_step, run_completed: mean score of the last 100 games, "
           "empty before the first; episode_finished: the game's score"),
    Column("length", int, "agent steps of the finished game"),
    Column("iteration", int, "iterations since the run began"),
    Column("frames", int, "training_step: emulator frames since the run began; "
           "episode_finished: frames of the game"),
    Column("games", int, "games finished since the run began"),
    Column("policy_loss", float, "mean policy loss of the iteration's updates (PPO, A2C)"),
    Column("value_loss", float, "mean value loss of the iteration's updates (PPO, A2C)"),
    Column("entropy", float, "mean entropy of the policy, nats (PPO, A2C)"),
    Column("loss", float, "mean temporal-difference loss of the iteration's updates (DQN)"),
    Column("learning_rate", float, "step size at the iteration's end"),
    Column("approx_kl", float, "mean KL divergence from the acting policy, nats (PPO)"),
    Column("clip_fraction", float, "share of samples whose ratio was clipped, 0 to 1 (PPO)"),
    Column("explained_variance", float, "share of the returns' variance that the value function "
           "explains, at most 1 (PPO, A2C)"),
    Column("epsilon", float, "probability of a random action, 0 to 1 (DQN)"),
    Column("q_mean", float, "mean value of the actions in the updates (DQN)"),
    Column("replay_size", int, "transitions in the replay memory (DQN)"),
    Column("steps_per_s", float, "agent steps per second in this iteration"),
    Column("time_total_s", float, "seconds of training since the run began, all attempts"),
    Column("state", str, "run_completed: completed or interrupted"),
)  # fmt: skip

# Present in metrics.json even where empty (null); other empty cells are left out there.
_ALWAYS = {
    EventType.TRAINING_STEP.value: {"step", "reward"},
    EventType.EPISODE_FINISHED.value: {"step", "reward", "length", "frames"},
    EventType.RUN_COMPLETED.value: {"step", "reward", "games", "time_total_s", "state"},
}
ROW_TYPES = frozenset(_ALWAYS)
DATA_COLUMN_NAMES = frozenset(column.name for column in COLUMNS[2:])


def build_header() -> bytes:
    """The first line of metrics.csv."""
    return _line([column.name for column in COLUMNS])


def build_row(event: MetricEvent) -> bytes:
    """The event's line of metrics.csv; keys without a column are left out.

    Raises ValueError for a value that does not fit its column.
    """
    values = {**event.data, **event.to_dict(), "type": event.event_type.value}
    return _line([_cell(column, values.get(column.name)) for column in COLUMNS])


def read_rows(csv_path: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.csv as dicts of int, float, str or None, without its empty cells.

    A last line torn by a kill is left out, so a file being written can be read at any time.
    Raises ArtifactError for a damaged line.
    """
    with open(csv_path, "rb") as file:
        header = _cells(file.readline())
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                return
            try:
                yield _row(dict(zip(header, _cells(line), strict=True)))
            except ValueError as error:
                raise ArtifactError(f"{csv_path} line {number} is damaged: {error}") from error


def cut_rows(csv_path: Path, *, after_step: int) -> None:
    """Drop what an attempt going on from `after_step` agent steps writes anew, atomically.

    That is every row with a higher step, every run_completed row, and for 0 all rows. The rows
    kept move to today's columns if the file has others. Raises ArtifactError.
    """
    header: list[str] = []
    damaged = 0

    def keep(line: bytes) -> bytes | None:
        nonlocal header, damaged
        if not header:
            header = _cells(line)
            return build_header()
        try:
            cells = dict(zip(header, _cells(line), strict=True))
            row = _row(cells)
            kept = 0 < after_step >= row["step"] and row["type"] != EventType.RUN_COMPLETED.value
        except (ValueError, KeyError):
            damaged += 1
            return None
        return _line([cells.get(column.name, "") for column in COLUMNS]) if kept else None

    rewrite_lines(csv_path, keep)
    if damaged:
        logger.warning("%s: %d damaged lines dropped", csv_path, damaged)


def save_metrics_json(csv_path: Path, json_path: Path, *, head: dict[str, Any]) -> None:
    """Replace metrics.json by `head` and the rows of metrics.csv. Raises ArtifactError."""

    def write(file: BinaryIO) -> None:
        opening = json.dumps({**head, "metrics": []}, allow_nan=False).removesuffix("]}")
        file.write(opening.encode())
        separator = b"\n"
        for row in read_rows(csv_path):
            file.write(separator + json.dumps(row, allow_nan=False).encode())
            separator = b",\n"
        file.write(b"\n]}\n")

    replace_atomically(json_path, write)


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.kind is str:
        return str(value)
    number = float(value)
    if column.kind is float:
        return repr(number) if math.isfinite(number) else ""
    if int(value) != value:
        raise ValueError(f"{column.name}: {value!r} -> a whole number")
    return str(int(value))


def _row(cells: dict[str, str]) -> dict[str, Any]:
    row_type = cells.get("type", "")
    if row_type not in _ALWAYS:
        raise ValueError(f"type {row_type!r}")
    return {
        column.name: column.kind(cells[column.name]) if cells.get(column.name) else None
        for column in COLUMNS
        if cells.get(column.name) or column.name in _ALWAYS[row_type]
    }


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]), [])
