"""Whatever lies among checkpoints: a whole one is chosen or none, and nothing else is touched."""

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts.checkpoint_files import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    CheckpointError,
    choose_checkpoint,
    prune_checkpoints,
    save_checkpoint_folder,
    set_newer_aside,
    verify_checkpoint,
)

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]
Tree = Callable[[Path], dict[str, Any]]

Checkpoints = Callable[[Path], Path]

STEPS = (1_000, 2_000)
WEIGHTS, SHARED = b"w" * 64, b"r" * 32


@pytest.fixture(scope="module")
def make_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Makes `home/run/checkpoints` with two, beside `home/other`, which is not the run's."""
    model = tmp_path_factory.mktemp("model")
    build_checkpoints(model)

    def make(home: Path) -> Path:
        shutil.copytree(model, home, dirs_exist_ok=True)  # quicker than to save them
        return home / "run" / "checkpoints"

    return make


def build_checkpoints(home: Path) -> None:
    root = home / "run" / "checkpoints"
    (root / "replay").mkdir(parents=True)
    (home / "other" / "deep").mkdir(parents=True)
    (home / "other" / "deep" / "thesis").write_bytes(b"mine")
    for steps in STEPS:

        def write(into: Path, steps: int = steps) -> list[Path]:
            (into / "weights").write_bytes(WEIGHTS)
            (into / "trial.json").write_text("{}")
            segment = root / "replay" / f"rows-0-{steps}"
            segment.write_bytes(SHARED)
            return [segment]

        facts = {"algorithm": "DQN", "agent_steps": steps, "score": 1.5}
        save_checkpoint_folder(root / f"step-{steps}", write, facts=facts)


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST_NAME).read_bytes())
    change(manifest)
    (path / MANIFEST_NAME).write_text(json.dumps(manifest))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
manifests = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1' + b"0" * 9_000 + b"}"]),
)
listed_names = st.one_of(
    st.text(max_size=10),
    st.sampled_from(
        [
            "/etc/passwd",
            "../../../other/deep/thesis",
            "../../..",
            "",
            ".",
            "..",
            "a\0b",
            "n" * 5_000,
        ]
    )
    | st.sampled_from(
        ["../step-1000/weights", "weights/", "weights/x", "/dev/zero", "x\ny", "\udcff"]
    ),
)
damages = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 40)),
    st.tuples(st.just("flip"), st.integers(0, 500)),
    st.tuples(st.just("manifest"), manifests),
    st.tuples(
        st.just("fact"),
        st.tuples(
            st.sampled_from(["score", "files", "format_version", "agent_steps", "algorithm"]),
            json_values,
        ),
    ),
    st.tuples(st.just("list"), st.tuples(listed_names, json_values)),
    st.tuples(st.sampled_from(["remove", "folder", "file", "link out", "loop", "pipe"]), st.none()),
)
places = st.sampled_from(
    [
        "step-1000",
        "step-2000",
        "step-2000/weights",
        "step-2000/manifest.json",
        "step-3000",
        "replay",
    ]
) | st.sampled_from(
    [
        "replay/rows-0-2000",
        "aside-step-2000",
        ".step-9-x",
        "step-1000/weights",
        "mine",
        "step-9",
    ]
)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def put(root: Path, place: str, damage: tuple[str, Any]) -> None:
    path, (kind, how) = root / place, damage
    if not path.parent.is_dir():
        return
    if kind in {"fact", "list", "manifest"}:
        put_manifest(path if path.is_dir() else path.parent, kind, how)
    elif kind in {"cut", "flip"} and path.is_file():
        content = bytearray(path.read_bytes())
        if kind == "cut":
            content = content[:how]
        elif content:
            content[how % len(content)] ^= 4
        path.write_bytes(content)
    elif kind not in {"cut", "flip"}:
        remove(path)
        make: dict[str, Callable[[], object]] = {
            "folder": path.mkdir,
            "file": lambda: path.write_bytes(b"x"),
            "link out": lambda: path.symlink_to(root.parent.parent / "other"),
            "loop": lambda: path.symlink_to(path.name),
            "pipe": lambda: os.mkfifo(path),
        }
        make.get(kind, lambda: None)()


def put_manifest(folder: Path, kind: str, how: Any) -> None:
    file = folder / MANIFEST_NAME
    if folder.resolve().parts[-2:-1] == ("other",) or folder.resolve().name == "other":
        return  # through a link out: that is not the run's
    if kind == "manifest":
        remove(file)
        file.write_bytes(how)
    elif file.is_file():
        name, value = how
        try:
            manifest = json.loads(file.read_bytes())
            (manifest if kind == "fact" else manifest["files"]).update({name: value})
        except (ValueError, AttributeError, RecursionError, LookupError, TypeError):
            return  # an earlier damage was worse
        file.write_text(json.dumps(manifest))


@given(changes=st.lists(st.tuples(places, damages), min_size=1, max_size=5), keep=st.integers(1, 3))
def test_any_damage(
    changes: list[tuple[str, tuple[str, Any]]],
    keep: int,
    fresh_folder: Callable[[], Path],
    bounded: Bounded,
    read_tree: Tree,
    make_checkpoints: Checkpoints,
) -> None:
    home = fresh_folder()
    root = make_checkpoints(home)
    for place, damage in changes:
        put(root, place, damage)
    before = read_tree(home / "other")
    with bounded():
        chosen, faults = choose_checkpoint(root, at_most=math.inf)
        if chosen is not None:
            verify_checkpoint(chosen.path)
        set_newer_aside(root, chosen)
        prune_checkpoints(root, keep=keep)
    assert all("\n" not in fault for fault in faults)
    assert read_tree(home / "other") == before
    assert sorted(path.name for path in home.iterdir()) == ["other", "run"]
    assert [path.name for path in (home / "run").iterdir()] == ["checkpoints"]


@given(name=listed_names, value=json_values)
def test_any_name_in_a_manifest(
    name: str,
    value: Any,
    fresh_folder: Callable[[], Path],
    bounded: Bounded,
    make_checkpoints: Checkpoints,
) -> None:
    path = make_checkpoints(fresh_folder()) / "step-2000"
    change_manifest(path, lambda manifest: manifest["files"].update({name: value}))

    with bounded(), pytest.raises(CheckpointError) as caught:
        verify_checkpoint(path)
    assert str(caught.value).isprintable()


# Plain cases.


def test_a_deeply_nested_manifest_is_refused(tmp_path: Path, make_checkpoints: Checkpoints) -> None:
    path = make_checkpoints(tmp_path) / "step-2000"
    (path / MANIFEST_NAME).write_bytes(b"[" * 100_000)

    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        verify_checkpoint(path)


def test_a_huge_manifest_is_not_read(
    tmp_path: Path, bounded: Bounded, make_checkpoints: Checkpoints
) -> None:
    path = make_checkpoints(tmp_path) / "step-2000"
    os.truncate(path / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)

    with bounded(), pytest.raises(CheckpointError, match="too big"):
        verify_checkpoint(path)


def test_a_pipe_is_not_waited_for(
    tmp_path: Path, bounded: Bounded, make_checkpoints: Checkpoints
) -> None:
    path = make_checkpoints(tmp_path) / "step-2000"
    for name in ("weights", MANIFEST_NAME):
        (path / name).unlink()
        os.mkfifo(path / name)
        with bounded(), pytest.raises(CheckpointError, match=rf"({name} is missing|no {name})"):
            verify_checkpoint(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../other/deep/thesis", "../../x"])
def test_a_name_that_leads_out_is_refused(
    name: str, tmp_path: Path, make_checkpoints: Checkpoints
) -> None:
    path = make_checkpoints(tmp_path) / "step-2000"
    change_manifest(path, lambda manifest: manifest["files"].update({name: {}}))

    with pytest.raises(CheckpointError, match="leads out"):
        verify_checkpoint(path)


@pytest.mark.parametrize("score", ["1.5", [1], {}, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_damage(
    score: Any, tmp_path: Path, make_checkpoints: Checkpoints
) -> None:
    root = make_checkpoints(tmp_path)
    change_manifest(root / "step-2000", lambda manifest: manifest.update(score=score))

    prune_checkpoints(root, keep=1)
    assert {path.name for path in root.iterdir()} == {"step-1000", "replay"}


def test_a_link_is_never_followed_to_remove(
    tmp_path: Path, read_tree: Tree, make_checkpoints: Checkpoints
) -> None:
    """A folder of the user's, linked to from among the checkpoints, loses nothing."""
    root = make_checkpoints(tmp_path)
    other = read_tree(tmp_path / "other")
    for name in ("mine", "step-500", ".step-7-x", "aside-step-6"):
        (root / name).symlink_to(tmp_path / "other")

    prune_checkpoints(root, keep=1)
    assert read_tree(tmp_path / "other") == other
    assert {path.name for path in root.iterdir()} == {"step-2000", "replay", "mine"}


def test_a_linked_checkpoint_is_not_removed_through_its_link(
    tmp_path: Path, make_checkpoints: Checkpoints
) -> None:
    root = make_checkpoints(tmp_path)
    elsewhere = tmp_path / "other" / "step-1000"
    (root / "step-1000").rename(elsewhere)
    (root / "step-1000").symlink_to(elsewhere)

    prune_checkpoints(root, keep=1)
    assert not (root / "step-1000").exists()
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "manifest.json",
        "trial.json",
        "weights",
    ]


def test_a_link_to_itself_is_no_obstacle(tmp_path: Path, make_checkpoints: Checkpoints) -> None:
    root = make_checkpoints(tmp_path)
    weights = root / "step-1000" / "weights"
    weights.unlink()
    weights.symlink_to("weights")

    prune_checkpoints(root, keep=2)
    assert (root / "replay" / "rows-0-2000").exists()
    with pytest.raises(CheckpointError, match="weights is missing"):
        verify_checkpoint(root / "step-1000")


def test_files_with_a_checkpoints_name_are_out_of_the_way(
    tmp_path: Path, make_checkpoints: Checkpoints
) -> None:
    root = make_checkpoints(tmp_path)
    for name in ("step-3000", "aside-step-3000", ".step-5-x"):
        (root / name).write_text("no folder")

    chosen, faults = choose_checkpoint(root, at_most=math.inf)
    assert chosen is not None
    assert chosen.agent_steps == 2_000
    assert len(faults) == 1
    prune_checkpoints(root, keep=2)
    assert {path.name for path in root.iterdir()} == {"step-1000", "step-2000", "replay"}


def test_a_file_in_the_way_of_a_save_is_replaced(
    tmp_path: Path, make_checkpoints: Checkpoints
) -> None:
    root = make_checkpoints(tmp_path)
    (root / "step-3000").write_text("no folder")

    save_checkpoint_folder(root / "step-3000", lambda into: [], facts={})
    assert verify_checkpoint(root / "step-3000")["files"] == {}


def test_no_pickle_is_loaded(
    tmp_path: Path, pickle_trap: Callable[[Path], bytes], make_checkpoints: Checkpoints
) -> None:
    root = make_checkpoints(tmp_path)
    for name in ("weights", MANIFEST_NAME, "algorithm_state.pkl"):
        (root / "step-2000" / name).write_bytes(pickle_trap(tmp_path / "planted"))

    chosen, _ = choose_checkpoint(root, at_most=math.inf)
    assert chosen is not None
    assert chosen.agent_steps == 1_000
    assert not (tmp_path / "planted").exists()
