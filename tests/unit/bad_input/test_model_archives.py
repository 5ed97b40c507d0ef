"""Any file given as a model.zip is read or refused; no code in it runs, nothing is unpacked."""

import hashlib
import io
import json
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retro_ml import evaluate
from retro_ml.core.artifacts.model_archive import (
    CONFIG,
    METADATA,
    WEIGHTS,
    ArchiveError,
    load_model_archive,
    save_model_archive,
)
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.agent import Agent
from retro_ml.networks.nature_cnn import QNetwork

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]
Members = dict[str, bytes]

CONFIG_JSON = ExperimentConfig(game_id="pong", algorithm="DQN", experiment_id="x").model_dump_json()
SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int64)}
# As those that NatureCNN has, but nearly all zeros: the network is not to learn here.
NETWORK = {name: p.detach().numpy() * 0 for name, p in QNetwork(6).named_parameters()}
BOMB_BYTES = 10 * 1024**3


def good_archive(folder: Path, weights: dict[str, Any] = SMALL, **metadata: Any) -> bytes:
    path = folder / "good.zip"
    save_model_archive(path, weights=weights, config_json=CONFIG_JSON, metadata=metadata)
    content = path.read_bytes()
    path.unlink()
    return content


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sign(members: Members) -> Members:
    """With the sums that the members have, as somebody who means harm would."""
    metadata = json.loads(members[METADATA])
    sums = {name: hashlib.sha256(members[name]).hexdigest() for name in (CONFIG, WEIGHTS)}
    return members | {METADATA: json.dumps(metadata | {"sha256": sums}).encode()}


def zip_of(members: Members, **how: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def safetensors_file(header: Any, data: bytes = b"\0" * 24) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def load_or_refuse(
    content: bytes, folder: Path, bounded: Bounded, load: Callable[[Path], object]
) -> bool:
    path = folder / "model.zip"
    path.write_bytes(content)
    fault = None
    with bounded():
        try:
            load(path)
        except ArchiveError as error:
            fault = str(error)
    assert fault is None or ("\n" not in fault and str(path) in fault)
    assert [found.name for found in folder.iterdir()] == ["model.zip"]
    return fault is None


# Damage.


@given(data=st.data())
def test_any_damage(
    data: st.DataObject, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    folder = fresh_folder()
    content = bytearray(good_archive(folder))
    # The table of contents at the end is where zipfile reads most from.
    places = st.one_of(
        st.integers(0, len(content) - 1), st.integers(len(content) - 300, len(content) - 1)
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = min(data.draw(places), len(content) - 1)
        match data.draw(st.sampled_from(["flip", "set", "cut", "number", "cut out"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
            case "number":
                content[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
            case "cut":
                del content[at + 1 :]
            case "cut out":
                del content[at : at + data.draw(st.integers(1, 40))]
        if not content:
            break
    load_or_refuse(bytes(content), folder, bounded, load_model_archive)


@given(content=st.binary(max_size=300) | st.binary(max_size=100).map(lambda b: b"PK\5\6" + b))
def test_any_bytes(content: bytes, fresh_folder: Callable[[], Path], bounded: Bounded) -> None:
    assert not load_or_refuse(content, fresh_folder(), bounded, load_model_archive)


# What members may be called and hold.

member_names = st.one_of(
    # Python's own writer of zips cuts names at a NUL, and can write no empty one.
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name[0] != "\0"
    ),
    st.sampled_from(
        ["../x", "/etc/x", "a/../../x", "C:\\x", "..\\x", "a/", "./config.json", "CONFIG.JSON"]
    )
    | st.sampled_from(
        ["config.json/", "config.json ", "policy.pkl", "data.pkl", "version", "x" * 60_000]
    ),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
json_members = st.one_of(
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(["format_version", "sha256", "agent_steps", "game_id", "seed"]), json_values
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"{", b"[" * 100_000, b"\xff", b'{"a": NaN}', b'{"a": 1' + b"0" * 9_000]),
    st.binary(max_size=40),
)


@given(
    extra=st.dictionaries(member_names, st.binary(max_size=30), max_size=3),
    config=json_members | st.none(),
    metadata=json_members | st.none(),
    left_out=st.sets(st.sampled_from([CONFIG, METADATA, WEIGHTS]), max_size=1),
    compression=st.sampled_from([0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    signed=st.booleans(),
)
def test_any_members(
    extra: Members,
    config: bytes | None,
    metadata: bytes | None,
    left_out: set[str],
    compression: int,
    signed: bool,
    fresh_folder: Callable[[], Path],
    bounded: Bounded,
) -> None:
    folder = fresh_folder()
    members = members_of(good_archive(folder)) | extra
    members |= {CONFIG: config} if config is not None else {}
    if signed:
        members = sign(members)
    members |= {METADATA: metadata} if metadata is not None else {}
    for name in left_out:
        del members[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names given twice
        content = zip_of(members, compression=compression)
    load_or_refuse(content, folder, bounded, load_model_archive)
    load_or_refuse(content, folder, bounded, Agent.load)


# Weights of the right sum.

dtypes = st.sampled_from(
    ["F32", "F64", "F16", "BF16", "I8", "U16", "I64", "U64", "BOOL", "F8_E4M3", "F4", "C64", "X", 3]
)
sizes = st.sampled_from([0, 1, 2, 3, 6, 24, 2**31, 2**40, 2**62, 2**63, 2**64, -1, 1.5, "6", None])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": dtypes,
        "shape": st.lists(sizes, max_size=4) | json_values,
        "data_offsets": st.lists(sizes, max_size=3) | st.just([0, 24]) | json_values,
    },
)
headers = st.one_of(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | json_values),
    st.sampled_from(
        [b"", b"{", b"[]", b"null", b"{" * 10_000, b"\xff" * 9, b'{"a":{},"a":{}}', b" " * 100_000]
    ),
    st.binary(max_size=20),
)


@given(header=headers, data=st.binary(max_size=30) | st.just(b"\0" * 24))
@example(header={"a": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}}, data=b"")
@example(header={"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 2**40]}}, data=b"")
@example(
    header={name: {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]} for name in "ab"},
    data=b"\0" * 24,
)
def test_any_header_of_the_weights(
    header: Any, data: bytes, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    folder = fresh_folder()
    weights = safetensors_file(header, data)
    members = sign(members_of(good_archive(folder)) | {WEIGHTS: weights})
    load_or_refuse(zip_of(members), folder, bounded, load_model_archive)


shapes = st.lists(st.sampled_from([0, 1, 2, 6, 7, 18, 19, 512]), max_size=2).map(tuple)
array_dtypes = st.sampled_from(["f4", "f8", "f2", "i4", "u8", "?", "u2", "i1", "c8"])


@settings(max_examples=max(10, settings.default.max_examples // 5))  # a network each time
@given(
    name=st.sampled_from([*NETWORK, "policy.bias", "q.bias", "x\ny"]),
    shape=shapes | st.none(),
    dtype=array_dtypes,
    value=st.sampled_from([0, 1, float("nan"), float("inf"), -float("inf")]),
    agent_steps=st.sampled_from([None, 5, "5", 5.5, [5], {}, True]),
)
def test_any_weights_of_the_network(
    name: str,
    shape: tuple[int, ...] | None,
    dtype: str,
    value: float,
    agent_steps: Any,
    fresh_folder: Callable[[], Path],
    bounded: Bounded,
) -> None:
    folder = fresh_folder()
    whole = NETWORK.get(name, np.zeros(1)).shape
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.full(whole if shape is None else shape, value).astype(dtype)
    content = good_archive(folder, NETWORK | {name: array}, agent_steps=agent_steps)
    accepted = load_or_refuse(content, folder, bounded, Agent.load)

    fits = name in NETWORK and array.shape == whole and array.dtype.kind == "f"
    honest = agent_steps is None or type(agent_steps) is int
    assert accepted == (fits and honest and bool(np.isfinite(array).all()))


# Plain cases.


def refuse(content: bytes, folder: Path, bounded: Bounded) -> str:
    """The one message of `retro-ml evaluate`."""
    path = folder / "model.zip"
    path.write_bytes(content)
    out, err = io.StringIO(), io.StringIO()
    with bounded(), redirect_stdout(out), redirect_stderr(err):
        exit_code = evaluate.main([str(path), "--quiet"])
    assert (exit_code, out.getvalue()) == (2, "")
    line, hint = err.getvalue().splitlines()
    assert hint.startswith("hint: ")
    assert line.startswith("error: ")
    assert {found.name for found in folder.iterdir()} == {"model.zip"}
    return line


def test_a_network_of_any_size_is_not_built(tmp_path: Path, bounded: Bounded) -> None:
    content = good_archive(tmp_path, {"q.bias": np.zeros(1_000_000, np.float32)})

    assert "not 1 to 18 values" in refuse(content, tmp_path, bounded)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bounded: Bounded) -> None:
    bias = np.array([0, 0, np.nan, 0, 0, 0], np.float32)
    content = good_archive(tmp_path, NETWORK | {"q.bias": bias})

    assert "q.bias has NaN or infinite values" in refuse(content, tmp_path, bounded)


def test_metadata_that_cannot_be_told_is_refused(tmp_path: Path, bounded: Bounded) -> None:
    content = good_archive(tmp_path, NETWORK, agent_steps="many")

    assert "agent_steps in its metadata.json" in refuse(content, tmp_path, bounded)


@pytest.mark.parametrize("member", [WEIGHTS, "policy.pkl", CONFIG, METADATA])
def test_no_pickle_is_loaded(
    member: str, tmp_path: Path, bounded: Bounded, pickle_trap: Callable[[Path], bytes]
) -> None:
    marker = tmp_path / "planted"
    bias = np.zeros(7, np.float32)  # refused in the end, whatever is in the other members
    members = members_of(good_archive(tmp_path, NETWORK | {"q.bias": bias}))
    members[member] = pickle_trap(marker)
    if member != METADATA:
        members = sign(members)

    refuse(zip_of(members), tmp_path, bounded)
    assert not marker.exists()


MEMBERS_FOR_OTHERS = ("data", "policy.pth", "policy.optimizer.pth", "README.md")


def archive_for_others(folder: Path, others: Members) -> bytes:
    path = folder / "good.zip"
    save_model_archive(path, weights=NETWORK, config_json=CONFIG_JSON, metadata={}, members=others)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("member", MEMBERS_FOR_OTHERS)
def test_members_for_others_are_never_loaded(
    member: str, tmp_path: Path, bounded: Bounded, pickle_trap: Callable[[Path], bytes]
) -> None:
    marker, path = tmp_path / "planted", tmp_path / "model.zip"
    path.write_bytes(archive_for_others(tmp_path, {member: pickle_trap(marker)}))

    with bounded():
        agent = Agent.load(path)
    assert agent.config.algorithm == "DQN"
    assert not marker.exists()


@pytest.mark.parametrize("member", MEMBERS_FOR_OTHERS)
def test_damage_in_members_for_others_is_seen(
    member: str, tmp_path: Path, bounded: Bounded
) -> None:
    others = {name: name.encode() * 9 for name in MEMBERS_FOR_OTHERS}
    content = archive_for_others(tmp_path, others)
    good = members_of(content)
    swapped, cut = good[member][:-1] + b"x", good[member][:-1]

    for bad in (swapped, cut):
        line = refuse(zip_of(good | {member: bad}), tmp_path, bounded)
        assert f"{member} is not what was written: its sha256 differs" in line
    left_out = {name: data for name, data in good.items() if name != member}
    assert f"0 members {member}" in refuse(zip_of(left_out), tmp_path, bounded)
    at = content.index(good[member])
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    assert "damaged" in refuse(flipped, tmp_path, bounded)


def test_a_bomb_in_many_members_is_refused(tmp_path: Path, bounded: Bounded) -> None:
    file = io.BytesIO(archive_for_others(tmp_path, {}))
    with zipfile.ZipFile(file, "a") as archive:
        for name in "abc":
            archive.writestr(name, b"")
            archive.getinfo(name).file_size = archive.getinfo(name).compress_size = 400 * 1024**2

    assert "1,073,741,824 bytes together" in refuse(file.getvalue(), tmp_path, bounded)


def test_objects_are_no_weights(tmp_path: Path, pickle_trap: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "planted"
    file = io.BytesIO()
    np.savez(file, a=np.zeros(1))
    trapped = zip_of(members_of(file.getvalue()) | {"a.npy": pickle_trap(marker)})
    (tmp_path / "foreign.zip").write_bytes(trapped)
    (tmp_path / "bare.pkl").write_bytes(pickle_trap(marker))

    for name in ("foreign.zip", "bare.pkl"):
        with pytest.raises(ArchiveError):
            load_model_archive(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_is_refused_before_it_goes_off(
    declared: bool, tmp_path: Path, bounded: Bounded
) -> None:
    """10 GB by the table of contents, which may say less than what unpacks."""
    squeezed = zip_of({WEIGHTS: b"\0" * 2**24}, compression=zipfile.ZIP_DEFLATED)
    members = members_of(good_archive(tmp_path))
    members[WEIGHTS] = b"\0" * 2**24
    content = bytearray(zip_of(members, compression=zipfile.ZIP_DEFLATED))
    assert len(content) < 2**20 > len(squeezed)
    entry = content.index(WEIGHTS.encode(), content.index(b"PK\1\2")) - 46
    size = min(BOMB_BYTES, 2**32 - 2) if declared else 10
    content[entry + 24 : entry + 28] = struct.pack("<I", size)

    line = refuse(bytes(content), tmp_path, bounded)
    assert "more than 536,870,912 bytes" in line if declared else "damaged" in line


def test_a_bomb_of_ten_gigabytes_in_zip64(tmp_path: Path, bounded: Bounded) -> None:
    members = members_of(good_archive(tmp_path))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        # Written at the close: the table of contents, with sizes that need zip64.
        archive.getinfo(WEIGHTS).file_size = BOMB_BYTES

    assert "more than 536,870,912 bytes" in refuse(file.getvalue(), tmp_path, bounded)


def long_table_of_contents(entries: int, *, zip64: bool, comment: bytes = b"") -> bytes:
    """Entries of 46 bytes, each of which zipfile makes an object of."""
    table = (b"PK\1\2" + b"\0" * 42) * entries
    size, count = len(table), min(entries, 0xFFFF)
    if not zip64:
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, 0, len(comment))
        return table + end + comment
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[2**32 - 1] * 2, len(comment))
    return table + end64 + locator + end + comment


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("comment", [b"", b"x" * 65_535])
def test_a_long_table_of_contents_is_not_read(
    zip64: bool, comment: bytes, tmp_path: Path, bounded: Bounded
) -> None:
    content = long_table_of_contents(100_000, zip64=zip64, comment=comment)

    line = refuse(content, tmp_path, bounded)
    assert "its table of contents is too long" in line
    short = long_table_of_contents(100, zip64=zip64, comment=comment)
    assert "100 members, at most 64 are allowed" in refuse(short, tmp_path, bounded)


def test_a_long_header_of_the_weights_is_not_read(tmp_path: Path, bounded: Bounded) -> None:
    header = {f"a{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(2_000)}
    members = members_of(good_archive(tmp_path)) | {WEIGHTS: safetensors_file(header, b"")}

    line = refuse(zip_of(sign(members)), tmp_path, bounded)
    assert "its header has more than 65,536 bytes" in line


def test_links_and_ways_out_are_refused(tmp_path: Path, bounded: Bounded) -> None:
    members = members_of(good_archive(tmp_path))
    for name in ("../planted", "/tmp/planted", "a/../../planted"):
        assert "leads out" in refuse(zip_of(members | {name: b"x"}), tmp_path, bounded)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO(zip_of(members))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "is a link" in refuse(file.getvalue(), tmp_path, bounded)
    assert not (tmp_path.parent / "planted").exists()


def test_an_archive_in_an_archive_is_foreign(tmp_path: Path, bounded: Bounded) -> None:
    inner = good_archive(tmp_path)

    assert "0 members metadata" in refuse(zip_of({"model.zip": inner}), tmp_path, bounded)


def test_a_pipe_is_not_waited_for(tmp_path: Path, bounded: Bounded) -> None:
    os.mkfifo(tmp_path / "model.zip")

    with bounded(), pytest.raises(ArchiveError, match="no regular file"):
        Agent.load(tmp_path / "model.zip")


def test_a_file_too_big_is_not_looked_into(tmp_path: Path, bounded: Bounded) -> None:
    path = tmp_path / "model.zip"
    with path.open("wb") as file:
        file.truncate(BOMB_BYTES)  # a hole, which takes no space
        file.seek(-22, 2)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65_535, 65_535, 2**32 - 2, 0, 0))

    with bounded(), pytest.raises(ArchiveError, match="more than 1,073,741,824 bytes"):
        load_model_archive(path)


def test_the_good_ones_are_good(tmp_path: Path) -> None:
    """All of the above would be refused by a reader that refuses everything."""
    path = tmp_path / "model.zip"
    path.write_bytes(good_archive(tmp_path, NETWORK, agent_steps=5))
    assert Agent.load(path).metadata["agent_steps"] == 5
    path.write_bytes(zip_of(sign(members_of(path.read_bytes()) | {"note.txt": b"mine"})))
    assert Agent.load(path).config.algorithm == "DQN"
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    assert safetensors.numpy.load(safetensors_file(header))["a"].shape == (2, 3)
