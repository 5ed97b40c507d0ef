"""metrics.csv and metrics.json: the columns, rows from events, rows read back, rows cut.

metrics.csv is the source: one line a row, appended. metrics.json is the same rows as one document,
made from it without holding the rows in memory.
"""

import csv
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically, rewrite_lines
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

logger = logging.getLogger("retro_ml.artifacts")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of metrics.csv, which is one key of metrics.json's rows."""

    name: str
    kind: type[int] | type[float] | type[str]
    meaning: str


COLUMNS = (
    Column("type", str, "training_step, episode_finished, evaluation_finished or run_completed"),
    Column("timestamp", str, "when the row was recorded, UTC, ISO 8601 with microseconds"),
    Column("step", int, "agent steps of all games since the run began"),
    Column("reward", float, "training_step, run_completed: mean score of the last 100 games, "
           "empty before the first; episode_finished: the game's score; evaluation_finished: "
           "mean score of the evaluation's games"),
    Column("length", int, "agent steps of the finished game"),
    Column("iteration", int, "iterations since the run began"),
    Column("frames", int, "training_step: emulator frames since the run began; "
           "episode_finished: frames of the game"),
    Column("games", int, "games finished since the run began; evaluation_finished: games of the "
           "evaluation"),
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
    Column("state", str, "run_completed: completed, stopped or interrupted"),
)  # fmt: skip

# Present in metrics.json even where empty (null); other empty cells are left out there.
_ALWAYS = {
    EventType.TRAINING_STEP.value: {"step", "reward"},
    EventType.EPISODE_FINISHED.value: {"step", "reward", "length", "frames"},
    EventType.EVALUATION_FINISHED.value: {"step", "reward", "games"},
    EventType.RUN_COMPLETED.value: {"step", "reward", "games", "time_total_s", "state"},
}
_NO_TRAINING_STEP = tuple(
    f"{name},".encode() for name in _ALWAYS if name != EventType.TRAINING_STEP.value
)
DATA_COLUMN_NAMES = frozenset(column.name for column in COLUMNS[2:])
ONLY_IN_EVENTS = frozenset(("standard_error", "protocol", "scores"))
"""What an evaluation tells besides; events.log has it."""

_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_:.+-]*")
# Cells that JSON spells the same. With so few digits and so short an exponent no number leaves the
# range of a float; a line that does not match is parsed and told anew.
_JSON_CELLS = {
    str: rb"([A-Za-z0-9_:.+-]*)",
    int: rb"([1-9][0-9]{0,17}|0|)",
    float: rb"(-?(?:[1-9][0-9]{0,15}|0)\.[0-9]{1,20}|-?[1-9](?:\.[0-9]{1,16})?e-[0-9]{2}|)",
}
_JSON_LINE = re.compile(
    b"(" + "|".join(_ALWAYS).encode() + b"),"
    + b",".join(_JSON_CELLS[column.kind] for column in COLUMNS[1:]) + b"\n"
)  # fmt: skip
_COLUMN_NAMES = [column.name for column in COLUMNS]


def build_header() -> bytes:
    """The first line of metrics.csv."""
    return _line([column.name for column in COLUMNS])


def build_row(event: MetricEvent) -> bytes:
    """The event's line of metrics.csv; keys without a column are left out.

    Raises ValueError for a value that does not fit its column.
    """
    data = event.data
    timestamp = _iso_8601(event.timestamp)
    plan = _build_row_template(tuple(data), tuple(map(type, data.values())))
    if plan is not None:
        template, pick = plan
        values = pick(data)
        try:
            # One NaN or infinity spoils the sum; so may numbers too large, which does no harm.
            if math.isfinite(sum(values)):
                return (template % (event.event_type.value, timestamp, *values)).encode()
        except OverflowError:
            pass
    given = {**data, "type": event.event_type.value, "timestamp": timestamp}
    cells = [_cell(column, given.get(column.name)) for column in COLUMNS]
    return (",".join(cells) + "\n").encode()


def read_rows(csv_path: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.csv as dicts of int, float, str or None, without its empty cells.

    A last line torn by a kill is left out, so a file being written can be read at any time.
    Raises ArtifactError for a damaged line.
    """
    return _read_lines(csv_path, _row)


def read_scores(csv_path: Path) -> Iterator[tuple[int, float]]:
    """(agent steps, reward) of every training_step with both, read without parsing other rows.

    Most of a long run's rows are games. A damaged one among them goes unnoticed; otherwise as
    `read_rows`.
    """

    def read(header: list[str], line: bytes) -> tuple[int, float] | None:
        if header[:1] == ["type"] and line.startswith(_NO_TRAINING_STEP):
            return None
        row = _row(header, line)
        if row["type"] != EventType.TRAINING_STEP.value or None in (row["step"], row["reward"]):
            return None
        return row["step"], row["reward"]

    return (score for score in _read_lines(csv_path, read) if score is not None)


def read_last_whole_step(csv_path: Path) -> tuple[int, str | None]:
    """Agent steps of the last training_step before the first damaged line; 0 where none is.

    Returns:
        The steps, and what is wrong with the file where it is damaged or missing.

    Raises:
        OSError: it cannot be read.
    """
    step = 0
    try:
        for row in read_rows(csv_path):
            if row["type"] == EventType.TRAINING_STEP.value and row["step"] is not None:
                step = row["step"]
    except FileNotFoundError:
        return 0, f"{csv_path} is gone"
    except ArtifactError as error:
        return step, str(error)
    return step, None


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
            row = _row(header, line)
            kept = 0 < after_step >= row["step"] and row["type"] != EventType.RUN_COMPLETED.value
        except (ValueError, KeyError, TypeError):  # TypeError: no step where there must be one
            damaged += 1
            return None
        if not kept:
            return None
        cells = dict(zip(header, _cells(line), strict=True))
        return _line([cells.get(column.name, "") for column in COLUMNS])

    rewrite_lines(csv_path, keep)
    if damaged:
        logger.warning("%s: %d damaged lines dropped", csv_path, damaged)


def save_metrics_json(csv_path: Path, json_path: Path, *, head: dict[str, Any]) -> None:
    """Replace metrics.json by `head` and the rows of metrics.csv. Raises ArtifactError."""

    def write(file: BinaryIO) -> None:
        opening = json.dumps({**head, "metrics": []}, allow_nan=False).removesuffix("]}")
        file.write(opening.encode())
        separator = b"\n"
        for text in _read_lines(csv_path, _row_json):
            file.write(separator + text)
            separator = b",\n"
        file.write(b"\n]}\n")

    replace_atomically(json_path, write)


@lru_cache(maxsize=64)
def _build_row_template(
    names: tuple[str, ...], types: tuple[type, ...]
) -> tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]] | None:
    """A template for data with those keys, and what picks the values for it.

    None unless every value is None or a number of exactly its column's type, whose repr is then
    its cell.
    """
    given = {name: kind for name, kind in zip(names, types, strict=True) if kind is not type(None)}
    columns = [column for column in COLUMNS[2:] if column.name in given]
    numbers = all(column.kind is given[column.name] is not str for column in columns)
    if not numbers or len(columns) < 2:  # itemgetter makes a tuple of two and more
        return None
    cells = ["%s", "%s", *("%r" if column in columns else "" for column in COLUMNS[2:])]
    return ",".join(cells) + "\n", itemgetter(*(column.name for column in columns))


def _iso_8601(moment: datetime) -> str:
    """As isoformat tells a UTC time, with microseconds."""
    start = _in_whole_seconds(moment.date(), moment.hour, moment.minute, moment.second)
    return f"{start}.{moment.microsecond:06}+00:00"


@lru_cache(maxsize=4)  # rows that come fast share their second
def _in_whole_seconds(day: date, hour: int, minute: int, second: int) -> str:
    return f"{day.isoformat()}T{hour:02}:{minute:02}:{second:02}"


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.kind is str:
        text = str(value)
        return text if _PLAIN_TEXT.fullmatch(text) else _line([text])[:-1].decode()
    try:
        number = float(value)
        if column.kind is float:
            return repr(number) if math.isfinite(number) else ""
        whole = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{column.name}: {value!r} -> a number") from error
    if whole != value:
        raise ValueError(f"{column.name}: {value!r} -> a whole number")
    return str(whole)


def _read_lines(csv_path: Path, convert: Callable[[list[str], bytes], _T]) -> Iterator[_T]:
    with open(csv_path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n"):  # just being made: what follows would pass for its rows
            return
        try:
            header = _cells(first)
        except ValueError as error:
            raise ArtifactError(f"{csv_path} line 1 is damaged: {error}") from error
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                return
            try:
                yield convert(header, line)
            except ValueError as error:
                raise ArtifactError(f"{csv_path} line {number} is damaged: {error}") from error


def _row(header: list[str], line: bytes) -> dict[str, Any]:
    cells = dict(zip(header, _cells(line), strict=True))
    row_type = cells.get("type", "")
    if row_type not in _ALWAYS:
        raise ValueError(f"type {row_type!r}")
    return {
        column.name: column.kind(cells[column.name]) if cells.get(column.name) else None
        for column in COLUMNS
        if cells.get(column.name) or column.name in _ALWAYS[row_type]
    }


def _row_json(header: list[str], line: bytes) -> bytes:
    """What json.dumps makes of the row, from the cells' own text where that is the same."""
    match = _JSON_LINE.fullmatch(line) if header == _COLUMN_NAMES else None
    if match is None:
        return json.dumps(_row(header, line), allow_nan=False).encode()
    cells = match.groups()
    return _build_json_template(cells[0], tuple(map(bool, cells))) % tuple(filter(None, cells))


@lru_cache(maxsize=64)
def _build_json_template(row_type: bytes, present: tuple[bool, ...]) -> bytes:
    """A row's JSON with a place for each cell that is not empty."""
    always = _ALWAYS[row_type.decode()]
    places = [
        f'"{column.name}": ' + (('"%b"' if column.kind is str else "%b") if there else "null")
        for column, there in zip(COLUMNS, present, strict=True)
        if there or column.name in always
    ]
    return ("{" + ", ".join(places) + "}").encode()


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode()]), [])
    except csv.Error as error:
        raise ValueError(error) from error
