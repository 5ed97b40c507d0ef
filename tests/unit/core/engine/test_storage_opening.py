"""Opening a run in storage, here a folder: what a kill in the midst of it leaves."""

import os
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.engine.run_claim import Claim
from retro_ml.core.engine.storage_opening import move_aside, open_storage
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import CLAIM_NAME

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    return ExperimentConfig(
        game_id="pong", experiment_id="x", output_dir=f"file://{tmp_path}/storage"
    )


def die_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int) -> None:
    """The so-manyth call of `owner.name` never returns, and nothing comes after it."""
    calls, real = 0, getattr(owner, name)

    def die(*arguments: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(owner, name, die)


@pytest.mark.parametrize(
    ("mark", "others"),
    [
        ("config.json", ["checkpoints/step-10/manifest.json", "metrics.csv", "status.json"]),
        ("sweep.json", ["leaderboard.csv", "trial-1/config.json", "trial-2/config.json"]),
    ],
)
def test_a_restart_that_is_killed_is_known_until_all_is_moved(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, mark: str, others: list[str]
) -> None:
    run = RemoteFolder(str(config.paths.storage_uri))
    names = sorted([mark, *others])
    for name in [*names, CLAIM_NAME]:
        run.put(name, b"old")
    for moved in range(1, 4):
        with monkeypatch.context() as killing:
            die_at(killing, RemoteFolder, "move", call=2)
            with pytest.raises(KeyboardInterrupt):
                move_aside(run, "1", mark=mark)
        assert len(run.list()) == 5 - moved
        assert mark in run.list()

    aside = move_aside(run, "1", mark=mark)
    assert set(run.list()) == {CLAIM_NAME}
    assert sorted(aside.list()) == names


@pytest.mark.parametrize("call", [1, 2, 3])
def test_nothing_outdated_stays_where_its_replacement_was_killed(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The staging place holds an older driver's work; storage has a later one's."""
    run = RemoteFolder(str(config.paths.storage_uri))
    run.put("config.json", b"new")
    run.put("status.json", b"new")
    run.put(CLAIM_NAME, Claim(5, "n", "far", "m", 1, 1, released=True, complete=True).write())
    folder = config.experiment_dir
    for name in ("checkpoints/step-10/weights", "config.json", "metrics.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"old")
    with monkeypatch.context() as killing:
        die_at(killing, os, "rename", call=call)
        with pytest.raises(KeyboardInterrupt):
            open_storage(config, notice=lambda text: None)

    storage = open_storage(config, notice=lambda text: None)
    assert storage is not None
    storage.release()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.pop(CLAIM_NAME)
    assert files == {"config.json": b"new", "status.json": b"new"}


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_fetch_that_is_killed_leaves_no_run_and_nothing_to_keep(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    run = RemoteFolder(str(config.paths.storage_uri))
    for name in ("config.json", "events.log", "metrics.csv", "status.json"):
        run.put(name, b"there")
    run.put(CLAIM_NAME, Claim(5, "n", "far", "m", 1, 1, released=True).write())
    folder = config.experiment_dir
    folder.mkdir(parents=True)
    with monkeypatch.context() as killing:
        die_at(killing, os, "replace", call=call)
        with pytest.raises(KeyboardInterrupt):
            open_storage(config, notice=lambda text: None)
    assert len(list(folder.iterdir())) == call - 1
    assert not config.config_path.exists()

    told: list[str] = []
    storage = open_storage(config, notice=told.append)
    assert storage is not None
    storage.release()
    assert told == [f"fetching the run from {run.uri}"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_fetched_is_on_the_disk_before_a_claim_says_that_it_is_here(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RemoteFolder(str(config.paths.storage_uri))
    for name in ("config.json", "metrics.csv", "videos/agent.mp4"):
        run.put(name, b"there")
    run.put(CLAIM_NAME, Claim(5, "n", "far", "m", 1, 1, released=True).write())
    config.experiment_dir.mkdir(parents=True)
    unsynced: set[str] = set()
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        unsynced.discard(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def check_replace(source: Path, target: Path) -> None:
        assert str(source) not in unsynced
        if target == config.paths.claim_path:
            assert not unsynced
        replace(source, target)
        unsynced.add(str(target.parent))

    def note_download(self: RemoteFolder, name: str, target: Path) -> None:
        target.write_bytes(b"there")
        unsynced.add(str(target))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", check_replace)
    monkeypatch.setattr(RemoteFolder, "download", note_download)
    storage = open_storage(config, notice=lambda text: None)
    assert storage is not None
    storage.release()
