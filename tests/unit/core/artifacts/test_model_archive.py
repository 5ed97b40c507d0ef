"""model.zip: exact there and back, and nothing else is let in."""

import io
import json
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro_ml.core.artifacts.model_archive import (
    CONFIG,
    METADATA,
    WEIGHTS,
    ArchiveError,
    load_model_archive,
    save_model_archive,
)

pytestmark = pytest.mark.unit

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "scalar": np.array(3.5, dtype=np.float32),
    "big_endian": np.arange(3, dtype=">i4"),
}
INFO = {"algorithm": "PPO", "agent_steps": 5}


def saved(folder: Path) -> Path:
    path = folder / "model.zip"
    save_model_archive(path, weights=ARRAYS, config_json='{"seed": 1}', metadata=INFO)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, members: dict[str, bytes], **kwargs: Any) -> None:
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_weights_config_and_metadata_come_back(tmp_path: Path) -> None:
    archive = load_model_archive(saved(tmp_path))

    assert archive.config == {"seed": 1}
    assert archive.metadata["format_version"] == 2
    assert archive.metadata["algorithm"] == "PPO"
    assert archive.weights.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        read = archive.weights[name]
        assert read.shape == array.shape
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)


def test_equal_content_gives_equal_bytes_and_no_pickle(tmp_path: Path) -> None:
    first = saved(tmp_path).read_bytes()
    assert saved(tmp_path).read_bytes() == first
    assert set(members_of(tmp_path / "model.zip")) == {WEIGHTS, CONFIG, METADATA}
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_foreign_members_are_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", b"whatever")

    assert load_model_archive(path).config == {"seed": 1}


def change(members: dict[str, bytes], **values: Any) -> None:
    members[METADATA] = json.dumps({**json.loads(members[METADATA]), **values}).encode()


FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "missing weights": (lambda m: m.pop(WEIGHTS), "0 members weights"),
    "missing metadata": (lambda m: m.pop(METADATA), "0 members metadata"),
    "changed config": (lambda m: m.update({CONFIG: b'{"seed": 2}'}), "sha256 differs"),
    "changed weights": (lambda m: m.update({WEIGHTS: m[WEIGHTS][:-1] + b"x"}), "sha256 differs"),
    "newer": (lambda m: change(m, format_version=3), "install a newer one"),
    "no version": (lambda m: change(m, format_version=True), "no format_version"),
    "no hashes": (lambda m: change(m, sha256=[1]), "no sha256"),
    "no json": (lambda m: m.update({METADATA: b"{"}), "no JSON"),
    "not an object": (lambda m: m.update({METADATA: b"[]"}), "no JSON object"),
    "nan": (lambda m: m.update({METADATA: b'{"a": NaN}'}), "NaN is not allowed"),
    "deep": (lambda m: m.update({METADATA: b"[" * 100_000}), "no JSON"),
    "not utf-8": (lambda m: m.update({METADATA: b"\xff"}), "no JSON"),
    "huge json": (lambda m: m.update({METADATA: b" " * 2_000_000}), "more than 1,048,576 bytes"),
    "up": (lambda m: m.update({"a/../../x": b""}), "leads out"),
    "absolute": (lambda m: m.update({"/etc/x": b""}), "leads out"),
    "drive": (lambda m: m.update({"C:x": b""}), "leads out"),
    "backslash": (lambda m: m.update({"..\\x": b""}), "leads out"),
    "crowd": (lambda m: m.update({f"f{n}": b"" for n in range(64)}), "67 members"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_archive_is_refused_with_its_fault(tmp_path: Path, fault: str) -> None:
    path = saved(tmp_path)
    members = members_of(path)
    spoil, message = FAULTS[fault]
    spoil(members)
    write_zip(path, members)

    with pytest.raises(ArchiveError, match=message) as caught:
        load_model_archive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weights", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}x", pickle.dumps(print)]
)
def test_malformed_weights_of_right_hash_are_refused(tmp_path: Path, weights: bytes) -> None:
    import hashlib

    path = saved(tmp_path)
    members = members_of(path)
    hashes = json.loads(members[METADATA])["sha256"]
    change(members, sha256={**hashes, WEIGHTS: hashlib.sha256(weights).hexdigest()})
    write_zip(path, {**members, WEIGHTS: weights})

    with pytest.raises(ArchiveError, match="no safetensors"):
        load_model_archive(path)


def test_bombs_links_and_repeated_names_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    members = members_of(path)

    write_zip(path, {**members, "bomb": b"\0" * 10_000_000}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="compressed too far"):
        load_model_archive(path)

    write_zip(path, members)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link"):
        load_model_archive(path)

    write_zip(path, members)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(path, "a") as archive,
    ):
        archive.writestr(CONFIG, b"{}")
    with pytest.raises(ArchiveError, match="2 members config"):
        load_model_archive(path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)

    with pytest.raises(ArchiveError, match="encrypted"):
        load_model_archive(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x05\x06", b"text", "folder"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "model.zip"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)

    with pytest.raises(ArchiveError, match=r"model\.zip"):
        load_model_archive(path)


def test_no_cut_and_no_flipped_bit_gets_through_changed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    good = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(600):
        bad = bytearray(good)
        if draw.random() < 0.3:
            del bad[draw.randrange(len(bad)) :]
        else:
            for _ in range(draw.choice((1, 1, 2, 8))):
                bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            archive = load_model_archive(path)
        except ArchiveError:
            refused += 1
            continue
        # The flipped bit lay where nothing is read from, a member's time for example.
        assert archive.config == {"seed": 1}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(archive.weights[name], array)
    assert refused > 300


def test_an_archive_of_version_1_is_still_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    members = members_of(path)
    change(members, format_version=1)
    write_zip(path, members)

    assert load_model_archive(path).config == {"seed": 1}


def test_a_zip_of_stable_baselines3_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    write_zip(path, {"data": b"{}", "policy.pth": b""})

    with pytest.raises(ArchiveError, match=r"Stable-Baselines3 wrote it.*--init-from"):
        load_model_archive(path)


def test_a_failed_save_keeps_the_old_archive(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        save_model_archive(path, weights={}, config_json="{}", metadata={"score": float("nan")})
    assert load_model_archive(path).config == {"seed": 1}
    assert io.BytesIO(path.read_bytes()).read(2) == b"PK"
