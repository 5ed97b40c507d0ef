"""A zip that says it is Stable-Baselines3's is read for its tensors or refused; no pickle runs."""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.artifacts.stable_baselines3 import build_members
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


def torch_zip(pickle_bytes: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


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
        (torch_zip(b"garbage"), "pickle in policy.pth is damaged"),
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
        "damaged, or": MEMBERS | {"policy.pth": torch_zip(b"\x80\2R.")},
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
