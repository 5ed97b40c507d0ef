"""metrics.csv and metrics.json: rows there and back."""

import csv
import io
import json
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts import metrics_file
from retro_ml.core.artifacts.metrics_file import (
    COLUMNS,
    build_header,
    build_row,
    cut_rows,
    read_rows,
    read_scores,
    save_metrics_json,
)
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit

STEP, GAME, DONE = EventType.TRAINING_STEP, EventType.EPISODE_FINISHED, EventType.RUN_COMPLETED


def row(kind: EventType, **data: object) -> bytes:
    return build_row(MetricEvent.now(kind, "a", data))


def file_of(folder: Path, *rows: bytes) -> Path:
    path = folder / "metrics.csv"
    path.write_bytes(build_header() + b"".join(rows))
    return path


def test_columns_are_documented_and_begin_with_type_and_time() -> None:
    names = [column.name for column in COLUMNS]
    assert names[:4] == ["type", "timestamp", "step", "reward"]
    assert len(set(names)) == len(names)
    assert all(column.meaning for column in COLUMNS)
    assert build_header() == (",".join(names) + "\n").encode()


def test_a_row_comes_back_with_its_types(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        row(STEP, step=np.int64(1024), reward=np.float32(1.5), games=3.0, policy_loss=-0.1),
        row(GAME, step=1024, reward=2, length=10, frames=40),
        row(DONE, step=1024, reward=1.5, games=3, time_total_s=2.5, state="completed"),
    )

    rows = list(read_rows(path))
    for read in rows:
        read.pop("timestamp")
    assert rows == [
        {"type": "training_step", "step": 1024, "reward": 1.5, "games": 3, "policy_loss": -0.1},
        {"type": "episode_finished", "step": 1024, "reward": 2.0, "length": 10, "frames": 40},
        {
            "type": "run_completed",
            "step": 1024,
            "reward": 1.5,
            "games": 3,
            "time_total_s": 2.5,
            "state": "completed",
        },
    ]
    assert [type(rows[0][key]) for key in ("step", "reward", "games")] == [int, float, int]


def test_the_reward_before_the_first_game_is_null(tmp_path: Path) -> None:
    path = file_of(tmp_path, row(STEP, step=8, reward=None))
    assert next(read_rows(path))["reward"] is None


@given(st.floats())
def test_floats_are_exact_and_never_nan_or_infinite(value: float) -> None:
    cell = (
        row(STEP, step=1, entropy=value)
        .decode()
        .split(",")[[column.name for column in COLUMNS].index("entropy")]
    )
    assert (float(cell) == value) if math.isfinite(value) else cell == ""


def values_of(kind: type) -> st.SearchStrategy[Any]:
    if kind is str:
        return st.none() | st.just("completed") | st.text(alphabet="ab ,;\"'\n\réΩ", max_size=6)
    whole = st.integers(-(2**70), 2**70)
    if kind is int:
        sizes = st.integers(-(2**63), 2**63 - 1).map(np.int64)
        return st.none() | whole | sizes | st.booleans() | st.sampled_from([3.0, -0.0, 1e16])
    narrow = st.floats(width=32).map(np.float32)
    return st.none() | st.floats() | st.floats().map(np.float64) | narrow | whole | st.booleans()


DATA = st.fixed_dictionaries(
    {}, optional={column.name: values_of(column.kind) for column in COLUMNS[2:]}
)
# What a run tells: every value of its column's type.
PLAIN_DATA = st.fixed_dictionaries(
    {"step": st.integers(0), "reward": st.none() | st.floats()},
    optional={
        column.name: st.floats() if column.kind is float else st.integers()
        for column in COLUMNS[4:]
        if column.kind is not str
    },
)
EVENTS = st.builds(
    MetricEvent,
    st.sampled_from([STEP, GAME, DONE]),
    st.just("a"),
    st.datetimes(timezones=st.just(UTC)),
    DATA | PLAIN_DATA,
)


def cell_of(kind: type, value: Any) -> str:
    if value is None:
        return ""
    if kind is str:
        return str(value)
    if kind is int:
        return str(int(value))
    return repr(float(value)) if math.isfinite(value) else ""


@given(EVENTS)
def test_a_row_is_what_the_csv_module_writes(event: MetricEvent) -> None:
    time = event.timestamp.isoformat(timespec="microseconds")
    cells = [cell_of(column.kind, event.data.get(column.name)) for column in COLUMNS[2:]]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([event.event_type.value, time, *cells])

    assert build_row(event) == text.getvalue().encode()


@given(st.lists(EVENTS, max_size=3))
def test_metrics_json_is_what_the_json_module_writes(events: list[MetricEvent]) -> None:
    lines = [build_row(e) for e in events if str(e.data.get("state")).isprintable()]
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), *lines)
        save_metrics_json(path, Path(folder) / "metrics.json", head={"experiment_id": "a"})
        written = (Path(folder) / "metrics.json").read_text()
        rows = [json.dumps(read) for read in read_rows(path)]

    between = "\n" + ",\n".join(rows) if rows else ""
    assert written == '{"experiment_id": "a", "metrics": [' + between + "\n]}\n"


def test_data_may_neither_name_the_type_nor_the_time() -> None:
    event = MetricEvent(STEP, "a", datetime(26, 1, 2, tzinfo=UTC), {"type": "x", "timestamp": "y"})
    assert build_row(event).startswith(b"training_step,0026-01-02T00:00:00.000000+00:00,,")


@pytest.mark.parametrize("value", [1.5, "many", [1], math.nan, math.inf, 10**400])
def test_a_broken_number_of_steps_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="step: "):
        row(STEP, step=value)


def file_with_reward(folder: Path, cell: bytes) -> Path:
    line = row(STEP, step=1, reward=7.25).replace(b",7.25,", b"," + cell + b",")
    return file_of(folder, line)


@pytest.mark.parametrize("cell", [b"x", b"1e999", b"nan", b"-", b"1.5.5", b"1..5", b"\xff"])
def test_a_cell_that_is_no_number_ends_metrics_json(tmp_path: Path, cell: bytes) -> None:
    json_path = tmp_path / "metrics.json"
    with pytest.raises(ArtifactError, match="line 2 is damaged"):
        save_metrics_json(file_with_reward(tmp_path, cell), json_path, head={})
    assert not json_path.exists()


@pytest.mark.parametrize("cell", [b"1_0", b" 10", b"+10.0", b"010.0", b"10", b"1e1", b"10."])
def test_a_number_that_json_spells_otherwise_is_spelt_anew(tmp_path: Path, cell: bytes) -> None:
    json_path = tmp_path / "metrics.json"
    save_metrics_json(file_with_reward(tmp_path, cell), json_path, head={})
    assert '"reward": 10.0}' in json_path.read_text()


def test_a_line_that_is_no_csv_is_damaged(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"a\rb,c\n")
    with pytest.raises(ArtifactError, match="line 2 is damaged"):
        list(read_rows(path))


def test_scores_are_read_without_parsing_the_rows_of_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    games = [row(GAME, step=8, reward=2.0, length=8, frames=32)] * 50
    steps = [
        row(STEP, step=10, reward=None),
        row(STEP, step=20, reward=1.5),
        row(STEP, step=30, reward=-2.0).replace(b"training_step", b'"training_step"'),
    ]
    path = file_of(tmp_path, *games, *steps, row(DONE, step=30, reward=9.0, state="stopped"))
    parsed: list[bytes] = []
    parse = metrics_file._row

    def count(header: list[str], line: bytes) -> dict[str, Any]:
        parsed.append(line)
        return parse(header, line)

    monkeypatch.setattr(metrics_file, "_row", count)
    assert list(read_scores(path)) == [(20, 1.5), (30, -2.0)]
    assert parsed == steps


def test_scores_are_found_in_a_file_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    lines = ["step,type,reward", "5,episode_finished,1.0", "10,training_step,2.0", "20,trai"]
    path.write_text("\n".join(lines))
    assert list(read_scores(path)) == [(10, 2.0)]


def test_a_torn_last_line_is_left_out_a_damaged_one_is_not(tmp_path: Path) -> None:
    whole, torn = row(STEP, step=1), row(STEP, step=2)[:-5]
    assert len(list(read_rows(file_of(tmp_path, whole, torn)))) == 1

    with pytest.raises(ArtifactError, match="line 2 is damaged"):
        list(read_rows(file_of(tmp_path, torn + b"\n", whole)))


@pytest.mark.parametrize("begun", [b"", b"type,timest"])
def test_a_file_that_is_just_being_made_has_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    """A reader that comes before the header is whole must not take what follows for its rows."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(begun)

    class Overtaken(io.FileIO):
        """The writer goes on right after the reader has looked at the first line."""

        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            if path.read_bytes() == begun:
                path.write_bytes(build_header() + row(STEP, step=1))
            return line

    monkeypatch.setattr("builtins.open", lambda name, mode: Overtaken(name, "r"))
    assert list(read_rows(path)) == []


@pytest.mark.parametrize(
    ("after_step", "left"), [(0, []), (10, [10, 10]), (15, [10, 10]), (20, [10, 10, 20])]
)
def test_cutting_drops_what_is_written_anew(
    tmp_path: Path, after_step: int, left: list[int]
) -> None:
    path = file_of(
        tmp_path,
        row(GAME, step=10, reward=1, length=5, frames=20),
        row(STEP, step=10, reward=1.0),
        row(DONE, step=10, state="interrupted"),
        row(STEP, step=20, reward=1.0),
        row(STEP, step=30, reward=1.0)[:-3],
    )
    before = path.read_bytes().splitlines()

    cut_rows(path, after_step=after_step)

    after = path.read_bytes().splitlines()
    assert [read["step"] for read in read_rows(path)] == left
    assert set(after) <= set(before)


def test_cutting_drops_damaged_lines_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(tmp_path, row(STEP, step=1), b"\x00\xff,,\n", b"what,is,this\n")

    cut_rows(path, after_step=5)

    assert len(list(read_rows(path))) == 1
    assert "2 damaged lines dropped" in caplog.text


def test_cutting_moves_rows_of_other_columns_to_todays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"timestamp,type,reward,step,gone\n2026,training_step,1.5,4,x\n")

    cut_rows(path, after_step=5)

    assert path.read_bytes().startswith(build_header())
    read = [{"type": "training_step", "timestamp": "2026", "step": 4, "reward": 1.5}]
    assert list(read_rows(path)) == read


@pytest.mark.parametrize("count", [0, 1, 3])
def test_metrics_json_is_the_rows_as_one_document(tmp_path: Path, count: int) -> None:
    rows = [row(STEP, step=n, reward=float("nan")) for n in range(count)]
    path = file_of(tmp_path, *rows)

    save_metrics_json(path, tmp_path / "metrics.json", head={"experiment_id": "a"})

    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document == {"experiment_id": "a", "metrics": list(read_rows(path))}
