"""Any files in the place of a trial's state are read or refused; no code in them runs."""

import json
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts.checkpoint_files import CheckpointError
from retro_ml.rllib.replay import FrameReplay
from retro_ml.rllib.replay_segments import FOLDER, ReplaySegments
from retro_ml.rllib.state_files import load_state, save_state

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]

STATE = {"weights": np.arange(4.0), "list": [1, (2, None)], "by number": {0: np.zeros(2)}}

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__array__", "__tuple__", "__items__", "/weights", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
damages = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["/weights", "__metadata__"]), json_values).map(
        lambda header: struct.pack("<Q", len(json.dumps(header))) + json.dumps(header).encode()
    ),
    st.sampled_from([b"", b"[" * 100_000, b"\xff" * 9, b"\x02" + b"\0" * 7 + b"{}x", None]),
)


def write(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@given(name=st.sampled_from(["state.json", "state.safetensors"]), content=damages)
def test_any_file_of_a_state(
    name: str, content: bytes | None, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    folder = fresh_folder()
    save_state(STATE, folder, "state")
    write(folder / name, content)
    fault = ""
    with bounded():
        try:
            load_state(folder, "state")
        except CheckpointError as error:
            fault = str(error)
    assert fault.isprintable()


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_no_pickle_is_loaded(
    name: str, tmp_path: Path, pickle_trap: Callable[[Path], bytes]
) -> None:
    save_state(STATE, tmp_path, "state")
    (tmp_path / name).write_bytes(pickle_trap(tmp_path / "planted"))

    with pytest.raises(CheckpointError, match="the state state cannot be read"):
        load_state(tmp_path, "state")
    assert not (tmp_path / "planted").exists()


# The replay's segments.


def make_replay() -> FrameReplay:
    return FrameReplay(size=40, num_lanes=2)


def save_replay(folder: Path) -> tuple[dict[str, Any], Path]:
    """The state that a checkpoint holds, and where it lies."""
    replay = make_replay()
    for lane in range(2):
        rows = {
            name: np.ones((9, *getattr(replay, name).shape[2:]), getattr(replay, name).dtype)
            for name in ("frames", "actions", "rewards", "kinds", "ages")
        }
        replay.put_rows(lane, 0, rows)
    checkpoint = folder / "step-18"
    state, _ = ReplaySegments().save(replay, checkpoint)
    return json.loads(json.dumps(state)), checkpoint


def load_or_refuse(state: Any, checkpoint: Path, bounded: Bounded) -> bool:
    replay, fault = make_replay(), ""
    with bounded():
        try:
            ReplaySegments().load(replay, state, checkpoint)
        except CheckpointError as error:
            fault = str(error)
    assert fault.isprintable()
    return not fault


rows = st.one_of(
    st.sampled_from([[0, 0], [9, 9], [0, 10**18], [2**62, 2**62], [2**70, 0], [-5, 9], [0], []]),
    st.lists(st.integers(0, 60), min_size=2, max_size=2),
    json_values,
)
segments = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            ["rows-0-18.zst", "../../x", "/dev/zero", "", "a\0", 3, "rows-0-9.zst"]
        )
    },
    optional={"starts": rows, "stops": rows, "more": json_values},
)
states = st.one_of(
    json_values,
    st.lists(segments, max_size=3).map(lambda some: {"segments": some}),
    st.builds(
        lambda starts, stops: {
            "segments": [{"name": "rows-0-18.zst", "starts": starts, "stops": stops}]
        },
        rows,
        rows,
    ),
)


@given(state=states)
def test_any_list_of_segments(
    state: Any, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    _, checkpoint = save_replay(fresh_folder())
    load_or_refuse(state, checkpoint, bounded)


def packed(sizes: Any, body: bytes) -> bytes:
    head = json.dumps(sizes).encode()
    return struct.pack("<Q", len(head)) + head + body


squeezed = st.sampled_from(
    [b"", pa.compress(b"\0" * 2**26, "zstd", asbytes=True), pa.compress(b"a", "zstd", asbytes=True)]
)
contents = st.one_of(
    st.binary(max_size=60),
    st.builds(packed, json_values, st.binary(max_size=20)),
    st.builds(
        packed, st.lists(st.integers(-3, 2**64), min_size=10, max_size=10), st.binary(max_size=20)
    ),
    squeezed.map(lambda part: packed([len(part)] * 10, part * 10)),
    st.sampled_from([b"", b"\xff" * 8, struct.pack("<Q", 2**63), packed([[]], b"")]),
)


@given(content=contents | st.none(), flips=st.lists(st.integers(0, 10**6), max_size=3))
def test_any_content_of_a_segment(
    content: bytes | None, flips: list[int], fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    state, checkpoint = save_replay(fresh_folder())
    path = checkpoint.parent / FOLDER / state["segments"][0]["name"]
    damaged = bytearray(path.read_bytes() if content is None else content)
    for at in flips if damaged else []:
        damaged[at % len(damaged)] ^= 16
    path.write_bytes(damaged)
    accepted = load_or_refuse(state, checkpoint, bounded)
    assert accepted or content is not None or flips


def test_a_segment_cannot_ask_for_more_than_the_replay_has(tmp_path: Path) -> None:
    state, checkpoint = save_replay(tmp_path)
    state["segments"][0]["stops"] = [10**12, 10**12]

    with pytest.raises(CheckpointError, match="does not fit this run's games"):
        ReplaySegments().load(make_replay(), state, checkpoint)


def test_a_segment_elsewhere_is_not_read(tmp_path: Path) -> None:
    state, checkpoint = save_replay(tmp_path)
    for name in ("../step-18/x", "/dev/zero", "rows-0-18.zst/../rows-0-18.zst"):
        state["segments"][0]["name"] = name
        with pytest.raises(CheckpointError, match="no such"):
            ReplaySegments().load(make_replay(), state, checkpoint)


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    state, checkpoint = save_replay(tmp_path)
    (tmp_path / FOLDER / state["segments"][0]["name"]).unlink()

    with pytest.raises(CheckpointError, match=r"rows-0-18\.zst: cannot be read: No such file"):
        ReplaySegments().load(make_replay(), state, checkpoint)
