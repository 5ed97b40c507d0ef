"""A zip that says it is Stable-Baselines3's is read for its tensors or refused; no pickle runs."""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts.guarded_zip import ZipFault
from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.artifacts.pickle_bytes import Call, Global, Persistent, write_pickle
from retro_ml.core.artifacts.stable_baselines3 import build_members
from retro_ml.core.artifacts.state_dict import read_state_dict
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.initial_weights import read_initial_weights
from retro_ml.evaluation.stable_baselines3 import read_model
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]

CONFIG = ExperimentConfig(game_id="pong", experiment_id="x")
# Nearly all zeros: the network is not to learn here.
NETWORK = {name: p.detach().numpy() * 0 for name, p in ActorCriticNetwork(6).named_parameters()}
MEMBERS = build_members(CONFIG, NETWORK, agent_steps=77, versions={})


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """As Stable-Baselines3 would save it."""
    return write_zip(tmp_path / "theirs.zip", MEMBERS)


def torch_zip(pickle_bytes: bytes, *, compression: int = 0, **members: bytes) -> bytes:
    """As torch.save makes it; `_` stands for `/` in the members' names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", b"3\n")
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", content)
    return file.getvalue()


def storage(kind: str = "FloatStorage", *, key: str = "0", count: int = 4) -> Persistent:
    return Persistent(("storage", Global("torch", kind), key, "cpu", count))


def tensor(
    values: Any = None,
    *,
    offset: Any = 0,
    shape: Any = (4,),
    strides: Any = (1,),
    grad: bool = False,
) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(rebuild, (values or storage(), offset, shape, strides, grad, hooks))


def policy(value: Any, **members: bytes) -> bytes:
    """A policy.pth of one tensor, whose storage has 4 values."""
    return torch_zip(write_pickle({"a": value}), **{"data_0": b"\0" * 16, **members})


def test_no_pickle_of_theirs_is_loaded(
    saved: Path, tmp_path: Path, pickle_trap: Callable[[Path], bytes]
) -> None:
    marker, members = tmp_path / "planted", members_of(saved)
    trap = pickle_trap(marker)
    evil = {":type:": "x", ":serialized:": base64.b64encode(trap).decode()}
    data = dict.fromkeys(json.loads(members["data"]), evil)
    bad = {"data": json.dumps(data).encode(), "pytorch_variables.pth": trap, "x.pkl": trap}

    model = read_model(write_zip(saved, members | bad))

    assert "policy.weight" in model.weights
    assert model.num_timesteps is None
    assert not marker.exists()
    for policy in (trap, torch_zip(trap), torch_zip(trap[:-1])):
        with pytest.raises(ArchiveError, match=r"policy\.pth|damaged"):
            read_model(write_zip(saved, members | {"policy.pth": policy}))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch_zip(pickle.dumps(bytearray, 2)), "names __builtin__.bytearray|builds objects"),
        (torch_zip(b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR."), "names builtins.bytearray"),
        (torch_zip(pickle.dumps({"a": 1}, 2)), "something else than tensors"),
        (torch_zip(pickle.dumps([], 2)), "something else than tensors"),
        (torch_zip(pickle.dumps({"a": 1}, 4)), "protocol 4"),
        (torch_zip(b"garbage"), "policy.pth: its pickle is damaged"),
        (torch_zip(b"}." + b"\0" * 2**20), "more than 1,048,576 bytes"),
        (b"", "damaged"),
        (b"PK\5\6" + b"\0" * 18, "no file of torch.save"),
    ],
)
def test_a_policy_made_on_purpose_gets_one_message(
    content: bytes, message: str, saved: Path
) -> None:
    members = members_of(saved) | {"policy.pth": content}

    with pytest.raises(ArchiveError, match=message) as refused:
        read_model(write_zip(saved, members))
    assert "\n" not in str(refused.value)


TEXT = b"X\1\0\0\0a"  # the opcode of the text "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Tensors that are larger than what is there.
        (policy(tensor(shape=(10**6, 10**6), strides=(0, 0))), "not contiguous"),
        (policy(tensor(shape=(2**31 - 1,) * 8, strides=(0,) * 8)), "not contiguous"),
        (policy(tensor(shape=(10**6, 4), strides=(4, 1))), "larger than its values"),
        (policy(tensor(shape=(5,))), "larger than its values"),
        (policy(tensor(offset=1)), "larger than its values"),
        (policy(tensor(shape=(2,), strides=(2,))), "not contiguous"),
        (policy(tensor(offset=-1)), "a tensor of no shape"),
        (policy(tensor(shape=(-4,))), "a tensor of no shape"),
        (policy(tensor(shape=(4,), strides=())), "a tensor of no shape"),
        (policy(tensor(shape=(True,) * 9, strides=(1,) * 9)), "a tensor of no shape"),
        (policy(tensor(shape=("4",))), "a tensor of no shape"),
        # Storages that are not what they say.
        (policy(tensor(storage(count=5))), "a storage of 5 values has 4"),
        (policy(tensor(storage(count=-1))), "a storage of -1 values has 4"),
        (policy(tensor(), data_0=b"\0" * 15), "its pickle is damaged"),
        (policy(tensor(storage(key="1"))), "0 members archive/data/1"),
        (policy(tensor(storage(key="../0\n"))), "0 members"),
        (policy(tensor(storage("DoubleStorage"))), "names torch.DoubleStorage"),
        (policy(tensor(storage("FloatStorage", key=7))), "something else than a storage"),
        (policy(tensor(), byteorder=b"big"), "not little-endian"),
        # Other things in place of tensors.
        (policy(storage()), "something else than tensors"),
        (policy((1, 2)), "something else than tensors"),
        (policy([tensor()]), "something else than tensors"),
        (policy(Call(Global("torch", "FloatStorage"), (4,))), "a call that is no tensor's"),
        (policy(Call(Global("torch._utils", "_rebuild_tensor_v2"))), "a call that is no tensor's"),
        # What PyTorch before 2.10 took for dicts (CVE-2026-24747).
        (torch_zip(b")(" + TEXT + b"K\1u."), "items of something else than a dict"),
        (torch_zip(b")" + TEXT + b"K\1s."), "items of something else than a dict"),
        (torch_zip(b"](" + TEXT + b"K\1u."), "something else than tensors"),
        (torch_zip(b"}K\1K\1s."), "items of something else than a dict"),
        (torch_zip(b"}(" + TEXT + b"u."), "its pickle is damaged"),
        (torch_zip(b")}b."), "attributes of something else than a dict"),
        # Nested so deep that a comparison would end the process, and in itself.
        (torch_zip(b")" + b"\x85" * 10**6 + b"."), "something else than tensors"),
        (torch_zip(b"})" + b"\x85" * 10**6 + b"K\1s."), "items of something else than a dict"),
        (torch_zip(b")" + b"\x85" * 10**6 + b")R."), "a call that is no tensor's"),
        (torch_zip(b"}q\0" + TEXT + b"h\0s."), "something else than tensors"),
        (torch_zip(b"h\7."), "its pickle is damaged"),
        (torch_zip(b"}"), "its pickle is damaged"),
        (torch_zip(b"."), "its pickle is damaged"),
        # Sizes.
        (b"\0" * (32 * 1024**2 + 1), "more than 33,554,432 bytes"),
        (
            torch_zip(b"}.", compression=zipfile.ZIP_DEFLATED, data_0=b"0123456789" * 150),
            "bytes together",
        ),
    ],
)
def test_tensors_made_on_purpose_get_one_message(
    content: bytes, message: str, saved: Path, bounded: Bounded
) -> None:
    path = write_zip(saved, MEMBERS | {"policy.pth": content})

    with bounded(), pytest.raises(ArchiveError, match=message) as refused:
        read_model(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_what_is_refused_above_is_read_where_it_is_right() -> None:
    values = np.arange(4, dtype="<f4").tobytes()

    state = read_state_dict(
        policy(tensor(offset=1, shape=(1, 3), strides=(77, 1), grad=True), data_0=values)
    )

    assert state["a"].tolist() == [[1.0, 2.0, 3.0]]
    assert read_state_dict(torch_zip(b"}.")) == {}
    assert read_state_dict(torch_zip(PICKLES[0], data_0=values)).keys() == {"weight"}


opcodes = st.sampled_from(
    [b"\x80\2", b"(", b"}", b")", b"]", b"\x85", b"\x86", b"\x87", b"t", b"R", b"Q", b"b", b"s"]
    + [b"u", b"q\0", b"h\0", b"q\1", b"h\1", b"K\0", b"K\4", b"\x88", TEXT, b"N", b"."]
    + [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nmkdir\n"]
    + [write_pickle(value)[2:-1] for value in ("0", storage(), tensor(), {"a": tensor()})]
)


@given(parts=st.lists(opcodes, max_size=30))
def test_any_opcodes(parts: list[bytes], bounded: Bounded) -> None:
    content = torch_zip(b"".join(parts) + b".", data_0=b"\0" * 16)
    state: dict[str, Any] = {}
    words = ""
    with bounded():
        try:
            state = read_state_dict(content)
        except ZipFault as fault:
            words = str(fault)
    assert "\n" not in words
    assert all(array.shape == (4,) and array.dtype == np.float32 for array in state.values())


def pickle_of_torch() -> bytes:
    file = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2, bias=False).state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(name)


PICKLES = [pickle_of_torch(), write_pickle({"a": tensor(), "b": tensor()})]
edits = st.tuples(
    st.sampled_from(["set", "cut out", "repeat"]),
    st.integers(0, 400),
    st.sampled_from(b"(}])tRQbsuqhKJ.0\0\1\4\x85\x86\x87\x88\x7f\xff") | st.integers(0, 40),
)


@given(content=st.sampled_from(PICKLES), changes=st.lists(edits, min_size=1, max_size=4))
def test_any_damage_of_the_pickle(
    content: bytes, changes: list[tuple[str, int, int]], bounded: Bounded
) -> None:
    """The zip around it is right, so that nothing but its reader can find it."""
    damaged = bytearray(content)
    for kind, place, number in changes:
        at = place % max(1, len(damaged))
        match kind:
            case "set":
                damaged[at : at + 1] = bytes([number])
            case "cut out":
                del damaged[at : at + number]
            case "repeat":
                damaged[at:at] = damaged[at : at + number]
    state: dict[str, Any] = {}
    words = ""
    with bounded():
        try:
            state = read_state_dict(torch_zip(bytes(damaged), data_0=b"\0" * 16))
        except ZipFault as fault:
            words = str(fault)
    assert "\n" not in words
    assert all(array.size <= 4 and array.dtype == np.float32 for array in state.values())


def test_a_bomb_in_the_zip_in_the_zip_is_refused(saved: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", b"\0" * 2**24)

    with pytest.raises(ArchiveError, match="compressed too far"):
        read_model(write_zip(saved, members_of(saved) | {"policy.pth": file.getvalue()}))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_a_policy_cut_short_is_refused(cut: float, saved: Path) -> None:
    members = members_of(saved)
    policy = members["policy.pth"]

    with pytest.raises(ArchiveError, match="damaged"):
        read_model(write_zip(saved, members | {"policy.pth": policy[: int(len(policy) * cut)]}))


@given(data=st.data())
def test_any_damage(
    data: st.DataObject, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    folder = fresh_folder()
    member = data.draw(st.sampled_from(["data", "policy.pth"]))
    content = bytearray(MEMBERS[member])
    # The description of the tensors is at the beginning, the table of contents at the end.
    places = st.one_of(st.integers(0, 3_000), st.integers(len(content) - 3_000, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        at = max(0, min(data.draw(places), len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x28, 0x52, 0x63, 0x7F, 0x80, 0xFF]))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = write_zip(folder / "theirs.zip", MEMBERS | {member: bytes(content)})
    fault = ""
    with bounded():
        try:
            read_model(path)
        except ArchiveError as error:
            fault = str(error)
    assert "\n" not in fault
    assert [found.name for found in folder.iterdir()] == ["theirs.zip"]


def test_what_begins_a_run_is_read_as_carefully(
    tmp_path: Path, bounded: Bounded, pickle_trap: Callable[[Path], bytes]
) -> None:
    marker, path = tmp_path / "planted", tmp_path / "m.zip"
    nan = NETWORK | {"policy.bias": np.full(6, np.nan, np.float32)}
    faults = {
        "no such file": None,
        "damaged": b"PK\3\4 text",
        "neither a model.zip nor": {"x": b"y"},
        "leads out": MEMBERS | {"../policy.pth": b""},
        "NaN or infinite": build_members(CONFIG, nan, agent_steps=1, versions={}),
        "names": MEMBERS | {"policy.pth": torch_zip(b"cos\nmkdir\n(X\1\0\0\0xtR.")},
        "its pickle is damaged": MEMBERS | {"policy.pth": torch_zip(b"\x80\2R.")},
        r"policy\.pth|damaged": MEMBERS | {"policy.pth": pickle_trap(marker)},
    }
    for message, content in faults.items():
        path.unlink(missing_ok=True)
        if isinstance(content, dict):
            write_zip(path, content)
        elif content is not None:
            path.write_bytes(content)
        config = CONFIG.model_copy(update={"init_from": str(path)})
        with bounded(), pytest.raises(ArchiveError, match=message):
            read_initial_weights(config)
    assert not marker.exists()
    folder = CONFIG.model_copy(update={"init_from": str(tmp_path)})
    with pytest.raises(ArchiveError, match="it is a folder"):
        read_initial_weights(folder)
