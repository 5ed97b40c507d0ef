"""Checkpoint folders: whole or not at all, and proved before they are read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.checkpoint_files import (
    MANIFEST_NAME,
    CheckpointError,
    adopt_checkpoint,
    find_checkpoints,
    load_manifest,
    prune_checkpoints,
    save_checkpoint_folder,
    verify_checkpoint,
)
from retro_ml.core.artifacts.storage import ArtifactError

pytestmark = pytest.mark.unit


def save(root: Path, agent_steps: int, *shared: str) -> Path:
    """A checkpoint of one file, and of shared files `replay/...` that are made where missing."""
    target = root / f"step-{agent_steps}"

    def write(into: Path) -> Sequence[Path]:
        assert not (into / MANIFEST_NAME).exists(), "the manifest comes last"
        (into / "inner").mkdir()
        (into / "inner" / "weights").write_bytes(b"weights %d" % agent_steps)
        paths = [root / "replay" / name for name in shared]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.write_text(path.name, encoding="utf-8")
        return paths

    save_checkpoint_folder(target, write, facts={"algorithm": "PPO", "agent_steps": agent_steps})
    return target


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    manifest = verify_checkpoint(save(tmp_path, 5, "rows-0-5"))
    assert sorted(manifest["files"]) == ["../replay/rows-0-5", "inner/weights"]
    assert manifest["files"]["inner/weights"]["bytes"] == len("weights 5")
    assert (manifest["algorithm"], manifest["agent_steps"]) == ("PPO", 5)


@pytest.mark.parametrize("name", ["inner/weights", "../replay/rows-0-5"])
@pytest.mark.parametrize("damage", ["missing", "changed", "cut short", "longer"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 5, "rows-0-5")
    file = path / name
    content = file.read_bytes()
    changes: dict[str, Callable[[], Any]] = {
        "missing": file.unlink,
        "changed": lambda: file.write_bytes(bytes([content[0] ^ 1]) + content[1:]),
        "cut short": lambda: file.write_bytes(content[:-1]),
        "longer": lambda: file.write_bytes(content + b"x"),
    }
    changes[damage]()
    with pytest.raises(CheckpointError, match=name):
        verify_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {}}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 5)
    (path / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="step-5"):
        load_manifest(path)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        verify_checkpoint(path)


def test_another_formats_version_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    manifest = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    (path / MANIFEST_NAME).write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        verify_checkpoint(path)


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    def write(into: Path) -> Sequence[Path]:
        (into / "half").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(ArtifactError, match="disk full"):
        save_checkpoint_folder(tmp_path / "step-5", write, facts={})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    path = save(tmp_path, 5)

    def write(into: Path) -> Sequence[Path]:
        raise OSError("disk full")

    with pytest.raises(ArtifactError, match="disk full"):
        save_checkpoint_folder(path, write, facts={})
    verify_checkpoint(path)


def test_saving_again_replaces(tmp_path: Path) -> None:
    (save(tmp_path, 5) / "left over").write_text("x", encoding="utf-8")
    path = save(tmp_path, 5)
    assert not (path / "left over").exists()
    verify_checkpoint(path)


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for agent_steps in (1_000, 90, 200):
        save(tmp_path, agent_steps, "rows")
    (tmp_path / ".step-7-building").mkdir()
    (tmp_path / "step-x").mkdir()
    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [90, 200, 1_000]
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_pruning_keeps_the_newest_and_the_shared_files_they_name(tmp_path: Path) -> None:
    save(tmp_path, 90, "rows-a")
    save(tmp_path, 200, "rows-a", "rows-b")
    save(tmp_path, 1_000, "rows-b", "rows-c")
    prune_checkpoints(tmp_path, keep=2)
    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [200, 1_000]
    assert sorted(path.name for path in (tmp_path / "replay").iterdir()) == [
        "rows-a",
        "rows-b",
        "rows-c",
    ]
    prune_checkpoints(tmp_path, keep=1)
    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [1_000]
    assert sorted(path.name for path in (tmp_path / "replay").iterdir()) == ["rows-b", "rows-c"]
    verify_checkpoint(tmp_path / "step-1000")


def test_pruning_fewer_than_it_keeps_removes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 90, "rows-a")
    prune_checkpoints(tmp_path, keep=3)
    verify_checkpoint(tmp_path / "step-90")


def test_pruning_removes_what_a_killed_save_left(tmp_path: Path) -> None:
    (tmp_path / ".step-10-abcdef").mkdir()
    prune_checkpoints(tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == []


def save_one(root: Path, step: int, *, content: str, shared: str | None = None) -> Path:
    def write(folder: Path) -> list[Path]:
        (folder / "weights").write_text(content)
        if shared is None:
            return []
        path = root / "replay" / "rows-0-9.zst"
        path.parent.mkdir(exist_ok=True)
        path.write_text(shared)
        return [path]

    save_checkpoint_folder(root / f"step-{step}", write, facts={"agent_steps": step})
    return root / f"step-{step}"


def test_an_adopted_checkpoint_takes_the_place_of_all_others(tmp_path: Path) -> None:
    donor, own = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    source = save_one(donor, 20, content="theirs", shared="their rows")
    save_one(own, 10, content="mine", shared="my rows")
    save_one(own, 30, content="mine")

    adopted = adopt_checkpoint(source, own)

    assert (adopted.agent_steps, adopted.path) == (20, own / "step-20")
    assert [folder.agent_steps for folder in find_checkpoints(own)] == [20]
    verify_checkpoint(adopted.path)
    assert (own / "step-20" / "weights").read_text() == "theirs"
    assert (own / "replay" / "rows-0-9.zst").read_text() == "their rows"
    assert sorted(path.name for path in own.parent.iterdir()) == ["checkpoints"]
    # What the donor does later is its own affair.
    prune_checkpoints(donor, keep=1)
    save_one(donor, 40, content="later", shared="later rows")
    prune_checkpoints(donor, keep=1)
    verify_checkpoint(adopted.path)


def test_a_checkpoint_that_is_not_whole_is_not_adopted(tmp_path: Path) -> None:
    donor, own = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    source = save_one(donor, 20, content="theirs")
    save_one(own, 10, content="mine")
    (source / "weights").write_text("thiers")
    with pytest.raises(CheckpointError):
        adopt_checkpoint(source, own)
    with pytest.raises(CheckpointError):
        adopt_checkpoint(donor / "step-99", own)
    assert [folder.agent_steps for folder in find_checkpoints(own)] == [10]
