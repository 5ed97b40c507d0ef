"""Checkpoint folders: whole or not at all, and proved before they are read."""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.checkpoint_files import (
    MANIFEST_NAME,
    CheckpointError,
    adopt_checkpoint,
    choose_checkpoint,
    choose_kept,
    describe_file,
    find_checkpoints,
    load_manifest,
    prune_checkpoints,
    save_checkpoint_folder,
    set_newer_aside,
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


def test_the_best_is_kept_by_its_evaluation_or_else_by_its_score() -> None:
    manifests: dict[int, dict[str, Any]] = {
        10: {"score": 1.0, "evaluation": 8.0},
        20: {"score": 9.0, "evaluation": None},
        30: {"score": 2.0, "evaluation": 5.0},
        40: {"score": 3.0},
    }
    assert choose_kept(manifests, keep=1) == {10, 40}
    unevaluated = {step: {"score": facts["score"]} for step, facts in manifests.items()}
    assert choose_kept(unevaluated, keep=1) == {20, 40}
    equals = {step: {"score": 1.0, "evaluation": 2.0} for step in (10, 20, 30)}
    assert choose_kept(equals, keep=1) == {30}
    assert choose_kept({10: {"score": None}, 20: {}}, keep=1) == {20}


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
    # Whose rows are the donor's.
    assert choose_checkpoint(own, at_most=10) == (adopted, [])
    assert choose_checkpoint(donor, at_most=10)[0] is None
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


# Kills in the midst of it.


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int) -> None:
    """Whoever calls `owner.name` for the so-manyth time is gone, as by SIGKILL."""
    calls = 0
    real = getattr(owner, name)

    def die(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os._exit(9)
        return real(*args, **how)

    monkeypatch.setattr(owner, name, die)


def in_a_process_of_its_own(work: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("rename", [1, 2])
def test_a_save_that_is_killed_never_takes_the_checkpoint_that_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    save(tmp_path, 5, "rows-0-5")
    with monkeypatch.context() as killing:
        kill_at(killing, os, "rename", call=rename)
        in_a_process_of_its_own(lambda: save(tmp_path, 5, "rows-0-5"))

    chosen, faults = choose_checkpoint(tmp_path, at_most=math.inf)
    assert chosen is not None
    assert (chosen.path, faults) == (tmp_path / "step-5", [])
    prune_checkpoints(tmp_path, keep=1)
    verify_checkpoint(tmp_path / "step-5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay", "step-5"]


def test_a_save_that_is_killed_before_the_last_rename_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    with monkeypatch.context() as killing:
        kill_at(killing, os, "rename", call=1)
        in_a_process_of_its_own(lambda: save(tmp_path, 9))
    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [5]

    chosen, faults = choose_checkpoint(tmp_path, at_most=math.inf)
    assert chosen is not None
    assert (chosen.agent_steps, faults) == (9, [])


def test_a_checkpoint_that_is_being_removed_is_none_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent_steps in (5, 9):
        save(tmp_path, agent_steps)
    with monkeypatch.context() as killing:
        kill_at(killing, shutil, "rmtree", call=1)
        in_a_process_of_its_own(lambda: prune_checkpoints(tmp_path, keep=1))

    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        load_manifest(tmp_path / "step-5")


def test_an_adoption_that_is_killed_leaves_the_own_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, own = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    source = save_one(donor, 20, content="theirs")
    save_one(own, 10, content="mine")
    with monkeypatch.context() as killing:
        kill_at(killing, os, "rename", call=2)
        in_a_process_of_its_own(lambda: adopt_checkpoint(source, own))
    assert not own.exists()

    chosen, _ = choose_checkpoint(own, at_most=math.inf)
    assert chosen is not None
    assert chosen.agent_steps == 10


# Checkpoints that a run does not go on from.


def test_checkpoints_ahead_of_where_a_run_goes_on_do_not_take_the_place_of_its_own(
    tmp_path: Path,
) -> None:
    for agent_steps in (5, 20, 30):
        save(tmp_path, agent_steps)
    chosen, _ = choose_checkpoint(tmp_path, at_most=12)
    assert chosen is not None
    set_newer_aside(tmp_path, chosen)
    save(tmp_path, 10)
    prune_checkpoints(tmp_path, keep=1)

    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [10]


def test_what_was_set_aside_goes_once_the_run_is_there_again(tmp_path: Path) -> None:
    """Until then it is whole, with the files that checkpoints share: it may be all there is."""
    for agent_steps in (5, 20, 30):
        save(tmp_path, agent_steps, f"rows-0-{agent_steps}")
    chosen, _ = choose_checkpoint(tmp_path, at_most=12)
    set_newer_aside(tmp_path, chosen)
    save(tmp_path, 20, "rows-0-5")
    prune_checkpoints(tmp_path, keep=1)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "aside-step-30",
        "replay",
        "step-20",
    ]
    verify_checkpoint(tmp_path / "aside-step-30")
    save(tmp_path, 31)
    prune_checkpoints(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay", "step-31"]
    assert not list((tmp_path / "replay").iterdir())


MACHINE_FAULTS = [
    getattr(errno, name)
    for name in ("EACCES", "EMFILE", "ENFILE", "EIO", "ESTALE", "ENOMEM", "ETIMEDOUT")
]


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """No file of that name can be opened."""
    real = Path.open

    def refuse(self: Path, *args: Any, **how: Any) -> Any:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **how)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "weights"])
@pytest.mark.parametrize("number", MACHINE_FAULTS)
def test_what_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """It belongs to another user, or there are too many open files; it may be whole."""
    for agent_steps in (5, 9):
        save(tmp_path, agent_steps)
    (tmp_path / "step-9").rename(tmp_path / ".step-9-killed")
    refuse_to_open(monkeypatch, name, number)

    for read in (
        lambda: verify_checkpoint(tmp_path / "step-5"),
        lambda: choose_checkpoint(tmp_path, at_most=math.inf),
    ):
        with pytest.raises(OSError, match=name) as caught:
            read()
        assert caught.value.errno == number
    (tmp_path / ".step-9-killed").rename(tmp_path / "step-9")
    with pytest.raises(OSError, match=name):
        choose_checkpoint(tmp_path, at_most=math.inf)


def test_pruning_removes_nothing_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent_steps in (5, 9):
        save(tmp_path, agent_steps)
    refuse_to_open(monkeypatch, MANIFEST_NAME, errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        prune_checkpoints(tmp_path, keep=1)
    assert [folder.agent_steps for folder in find_checkpoints(tmp_path)] == [5, 9]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_file_that_goes_while_it_is_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save(tmp_path, 5)
    refuse_to_open(monkeypatch, "weights", number)
    assert choose_checkpoint(tmp_path, at_most=math.inf)[0] is None


def test_others_may_read_a_checkpoint_where_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 5)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_what_is_known_of_a_shared_file_is_believed(tmp_path: Path) -> None:
    """Its writer has just proved it; read for the manifest, the file would only prove itself."""
    segment = tmp_path / "replay" / "rows-0-5"
    segment.parent.mkdir()
    segment.write_bytes(b"rows")
    known = {segment: describe_file(segment)}
    segment.write_bytes(b"rowz")
    save_checkpoint_folder(tmp_path / "step-5", lambda _: [segment], facts={}, known=known)

    with pytest.raises(CheckpointError, match="rows-0-5 is not what was saved"):
        verify_checkpoint(tmp_path / "step-5")
