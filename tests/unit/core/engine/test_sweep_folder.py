"""A sweep's folder: what a kill or a failure in the midst of its opening leaves."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.artifacts.storage import temporary_path
from retro_ml.core.engine.run_faults import BadRunFolder
from retro_ml.core.engine.sweep_folder import open_sweep
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig

pytestmark = pytest.mark.unit


def make(output_dir: object, game: str = "pong") -> SweepConfig:
    return SweepConfig(
        name="s",
        output_dir=str(output_dir),
        base={"game_id": game, "total_timesteps": 20},
        grid={"seed": [1, 2]},
    )


def opened(config: SweepConfig, behavior: str = "resume") -> tuple[str, ...]:
    """Opens and leaves it; what the user is told of it."""
    options = RunOptions(restart_behavior=behavior)  # type: ignore[arg-type]
    sweep = open_sweep(config, options, notice=lambda text: None)
    sweep.lock.release()
    return sweep.notices


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_restart_that_is_killed_in_storage_leaves_no_trial_for_the_new_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    config = make(f"file://{tmp_path}/storage")
    there = RemoteFolder(str(config.paths.storage_uri))
    old = ["a-trial/config.json", "sweep.json", "trial-1/config.json", "trial-2/status.json"]
    for name in old:
        there.put(name, b"old")
    real, calls = RemoteFolder.move, 0

    def die(self: RemoteFolder, name: str, other: RemoteFolder) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(self, name, other)

    with monkeypatch.context() as killing:
        killing.setattr(RemoteFolder, "move", die)
        with pytest.raises(KeyboardInterrupt):
            opened(config, "restart")

    opened(config, "restart")
    assert there.list() == {}


@pytest.mark.parametrize("behavior", ["resume", "restart"])
def test_what_a_kill_left_of_the_beginning_is_no_obstacle(tmp_path: Path, behavior: str) -> None:
    config = make(tmp_path)
    config.paths.sweep_dir.mkdir()
    temporary_path(config.paths.spec_path).write_bytes(b"torn")

    assert opened(config, behavior) == ()
    assert [path.name for path in config.paths.sweep_dir.iterdir()] == ["sweep.json"]


def test_an_interrupt_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path)
    with monkeypatch.context() as interrupting:
        interrupting.setattr("retro_ml.core.engine.sweep_folder.fetch_past", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened(config)
    assert list(tmp_path.iterdir()) == []
    assert "run-lock" not in {thread.name for thread in threading.enumerate()}
    assert opened(config) == ()


def test_a_restart_that_cannot_begin_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(make(tmp_path))
    (tmp_path / "s" / "leaderboard.csv").write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for fail, error in ((refuse, BadRunFolder), (interrupt, KeyboardInterrupt)):
        with monkeypatch.context() as failing:
            failing.setattr(os, "replace", fail)
            with pytest.raises(error):
                opened(make(tmp_path, "qbert"), "restart")
        after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert after == before
