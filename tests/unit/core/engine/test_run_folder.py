"""The run's folder: made, gone on with, or one message and nothing touched."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro_ml.core.artifacts.checkpoint_files import (
    ADOPTED,
    CheckpointFolder,
    save_checkpoint_folder,
)
from retro_ml.core.artifacts.initial_weights import InitialWeights, load_initial_weights
from retro_ml.core.artifacts.metrics_file import build_header, build_row
from retro_ml.core.artifacts.model_archive import ArchiveError, save_model_archive
from retro_ml.core.artifacts.storage import ArtifactError, temporary_path
from retro_ml.core.engine.run_faults import BadMachine, BadRunFolder, BadStorage
from retro_ml.core.engine.run_folder import OpenRun, open_run, put_back
from retro_ml.core.engine.run_lock import RunLock
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit


def make_config(output_dir: Path, **fields: Any) -> ExperimentConfig:
    given = {"game_id": "breakout", "experiment_id": "x", "total_timesteps": 5000, **fields}
    return ExperimentConfig(output_dir=str(output_dir), **given)


@contextmanager
def opened(config: ExperimentConfig, **options: Any) -> Iterator[OpenRun]:
    run = open_run(config, RunOptions(**options), notice=lambda text: None)
    try:
        yield run
    finally:
        run.lock.release()


def make_run_folder(config: ExperimentConfig) -> None:
    with opened(config):
        pass


def save_status(config: ExperimentConfig, **values: Any) -> None:
    config.status_path.write_text(json.dumps({"state": "interrupted", "step": 0, **values}))


def save_rows(config: ExperimentConfig, *steps: int) -> None:
    rows = (MetricEvent.now(EventType.TRAINING_STEP, "x", {"step": step}) for step in steps)
    with config.paths.metrics_csv_path.open("ab") as file:
        file.write((b"" if file.tell() else build_header()) + b"".join(map(build_row, rows)))


def save_model(path: Path, agent_steps: int, evaluation: float | None = None) -> None:
    weights = {"w": np.zeros(1, np.float32)}
    history = {"evaluations": [{"mean_score": evaluation}]}
    metadata = {"agent_steps": agent_steps, "history": history}
    save_model_archive(path, weights=weights, config_json="{}", metadata=metadata)


def save_checkpoint(
    config: ExperimentConfig, agent_steps: int, score: float | None = 1.0, **facts: Any
) -> Path:
    """A checkpoint and its row."""

    def write(folder: Path) -> list[Path]:
        (folder / "weights").write_bytes(b"w" * agent_steps)
        return []

    target = config.paths.checkpoint_dir(agent_steps)
    save_checkpoint_folder(
        target, write, facts={"agent_steps": agent_steps, "score": score, **facts}
    )
    save_rows(config, agent_steps)
    return target


def test_the_folder_holds_the_config_alone(tmp_path: Path) -> None:
    config = make_config(tmp_path / "a" / "b")
    make_run_folder(config)

    assert [path.name for path in config.experiment_dir.iterdir()] == ["config.json"]
    assert ExperimentConfig.model_validate_json(config.config_path.read_text()) == config


def test_an_interrupted_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with opened(config) as run:
        assert (run.restore_from, run.finished) == (None, None)
    save_checkpoint(config, 1000)
    newest = save_checkpoint(config, 2000)
    save_status(config)

    with opened(make_config(tmp_path)) as run:
        assert run.finished is None
        assert run.restore_from == CheckpointFolder(2000, newest)
        assert run.config == config  # created_at too, which is the first call's


@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest", "torn manifest"])
def test_a_damaged_checkpoint_is_never_chosen(tmp_path: Path, damage: str) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    older, newest = save_checkpoint(config, 1000), save_checkpoint(config, 2000)
    weights, manifest = newest / "weights", newest / "manifest.json"
    match damage:
        case "truncate":
            weights.write_bytes(b"w" * 1999)
        case "flip":
            weights.write_bytes(b"w" * 1999 + b"v")
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_bytes(manifest.read_bytes()[:-20])

    with opened(config) as run:
        assert getattr(run.restore_from, "path", None) == older
        (warning,) = run.notices
        assert warning.startswith("warning: a checkpoint is left aside")
        assert "step-2000" in warning
    assert not newest.exists()


@pytest.mark.parametrize("damage", ["gone", "damaged", "torn"])
def test_a_checkpoint_whose_rows_were_lost_is_not_chosen(tmp_path: Path, damage: str) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    older, newest = save_checkpoint(config, 1000), save_checkpoint(config, 2000)
    rows = config.paths.metrics_csv_path
    lines = rows.read_bytes().splitlines(keepends=True)
    with opened(config) as run:
        assert getattr(run.restore_from, "path", None) == newest
    last = {"gone": b"", "damaged": b"\0\0\0\n" + lines[2], "torn": lines[2][:9]}[damage]
    rows.write_bytes(b"".join(lines[:2]) + last)
    with opened(config) as run:
        assert getattr(run.restore_from, "path", None) == older
        assert "metrics.csv ends before it" in run.notices[0]
    # Were it left there, it would be kept as the newest instead of what the run saves next.
    assert not newest.exists()


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_rows_that_are_lost_do_not_throw_the_checkpoints_away(tmp_path: Path, damage: str) -> None:
    """To begin anew without them would be to train it all again, because of one bit."""
    config = make_config(tmp_path)
    make_run_folder(config)
    newest = save_checkpoint(config, 2000)
    rows = config.paths.metrics_csv_path
    if damage == "gone":
        rows.unlink()
    else:
        rows.write_bytes(rows.read_bytes().replace(b"\ntraining_step", b"\ntraining_stdp"))
    before = sorted(config.experiment_dir.rglob("*"))

    with pytest.raises(BadRunFolder, match=r"metrics\.csv.*put that file back.* restart") as caught:
        make_run_folder(make_config(tmp_path, total_timesteps=6000))
    assert "\n" not in str(caught.value)
    assert sorted(config.experiment_dir.rglob("*")) == before
    assert newest.is_dir()
    assert ExperimentConfig.model_validate_json(config.config_path.read_text()) == config


@pytest.mark.parametrize("damage", ["empty", "header", "torn header", "cut between lines"])
def test_rows_that_end_before_every_checkpoint_do_not_throw_them_away(
    tmp_path: Path, damage: str
) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    save_rows(config, 500)
    checkpoints = [save_checkpoint(config, steps) for steps in (1000, 2000)]
    rows = config.paths.metrics_csv_path
    lines = rows.read_bytes().splitlines(keepends=True)
    left = {"empty": b"", "header": lines[0], "torn header": lines[0][:9]}
    rows.write_bytes(left.get(damage, b"".join(lines[:2])))
    before = sorted(config.experiment_dir.rglob("*"))

    reached = 500 if damage == "cut between lines" else 0
    words = rf"metrics\.csv ends at {reached} agent steps, so no checkpoint .*put that file back"
    with pytest.raises(BadRunFolder, match=words):
        make_run_folder(config)
    assert sorted(config.experiment_dir.rglob("*")) == before
    (checkpoints[0] / "weights").unlink()  # one that is whole is enough
    with pytest.raises(BadRunFolder, match=words):
        make_run_folder(config)
    (checkpoints[1] / "weights").unlink()
    with opened(config) as run:
        assert run.restore_from is None


def test_a_checkpoint_of_an_attempt_that_the_next_one_began_anew_is_set_aside(
    tmp_path: Path,
) -> None:
    """It died before it could tell of its first one; the next attempt cut its rows."""
    config = make_config(tmp_path)
    make_run_folder(config)
    save_checkpoint(config, 1000)
    config.paths.metrics_csv_path.write_bytes(build_header())
    with opened(config) as run:
        assert run.restore_from is None
    assert [path.name for path in config.checkpoints_dir.iterdir()] == ["aside-step-1000"]


def test_rows_before_the_first_checkpoint_are_no_damage(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    save_rows(config, 500)
    with opened(config) as run:
        assert run.restore_from is None
        assert run.notices == ("no checkpoint there yet: beginning at the start",)


def test_checkpoints_that_may_not_be_read_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    newest = save_checkpoint(config, 2000)

    def refuse(root: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(newest))

    monkeypatch.setattr("retro_ml.core.engine.resume_point.choose_checkpoint", refuse)
    with pytest.raises(BadRunFolder, match=r"step-2000: Permission denied; make all in .*readable"):
        make_run_folder(config)
    assert not config.paths.lock_path.exists()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_a_machine_that_cannot_read_its_checkpoints_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    newest = save_checkpoint(config, 2000)

    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("retro_ml.core.artifacts.checkpoint_files.describe_file", refuse)
    with pytest.raises(BadMachine, match=r"weights: .*; the same command goes on once") as caught:
        make_run_folder(config)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    with opened(config) as run:
        assert getattr(run.restore_from, "path", None) == newest


def test_a_run_of_another_config_is_refused_with_the_differences(tmp_path: Path) -> None:
    make_run_folder(make_config(tmp_path, seed=1))
    before = (tmp_path / "x" / "config.json").read_bytes()
    other = make_config(tmp_path, seed=2, total_timesteps=4000, ppo={"clip": 0.2})

    with pytest.raises(BadRunFolder) as caught:
        make_run_folder(other)

    text = str(caught.value)
    assert "seed: 1 there, 2 now" in text
    assert "ppo.clip: 0.1 there, 0.2 now" in text
    assert "total_timesteps: 5,000 there, 4,000 now" in text
    assert "--restart-behavior restart" in text
    assert "\n" not in text
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["config.json"]
    assert (tmp_path / "x" / "config.json").read_bytes() == before


def test_a_finished_run_is_left_alone_unless_it_shall_be_longer(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    checkpoint = save_checkpoint(config, 5120)
    save_status(config, state="completed", step=5120, reward=3.0)
    save_model(config.model_path, 5120)

    with opened(config) as run:
        assert run.finished is not None
        assert run.finished["reward"] == 3.0
    with opened(make_config(tmp_path, total_timesteps=9000)) as run:
        assert run.finished is None
        assert getattr(run.restore_from, "path", None) == checkpoint
        assert run.config.total_timesteps == run.config.schedule_agent_steps == 9000
    stored = ExperimentConfig.model_validate_json(config.config_path.read_text())
    assert stored.total_timesteps == 9000


def test_a_run_that_was_stopped_early_goes_on_unless_its_score_is_reached(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    save_status(config, state="completed", step=1024, reward=3.0)

    with opened(config) as run:
        assert run.finished is None
    with opened(config, stop_score=2.5) as run:
        assert run.finished is not None
    with opened(config, stop_score=3.5) as run:
        assert run.finished is None


def test_a_run_killed_when_its_score_was_reached_is_only_concluded(tmp_path: Path) -> None:
    """It must not go on to an iteration that the undisturbed run has not."""
    config = make_config(tmp_path)
    make_run_folder(config)
    save_checkpoint(config, 1000, score=2.0)
    save_checkpoint(config, 2000, score=3.0)
    save_status(config, state="running", step=2000, reward=3.0)

    with opened(config, stop_score=2.5) as run:
        assert (run.complete, getattr(run.restore_from, "agent_steps", None)) == (True, 2000)
    for options in ({}, {"stop_score": 3.5}):
        with opened(config, **options) as run:
            assert not run.complete


def test_a_finished_run_without_its_model_makes_it_again(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    save_status(config, state="completed", step=5120, reward=3.0)
    save_checkpoint(config, 4096)

    with opened(config) as run:  # no checkpoint of its end
        assert run.finished is not None
        assert run.notices[0].startswith("warning: ")
        assert "model.zip is gone: it cannot be made again" in run.notices[0]
    save_checkpoint(config, 5120)
    with opened(config) as run:
        assert (run.finished, run.complete) == (None, True)
        assert "model.zip is gone: it is made again" in run.notices[0]
    save_model(config.model_path, 5120)
    with opened(config) as run:
        assert run.finished is not None
        assert run.notices == ()


def test_a_finished_run_with_an_earlier_model_makes_it_again(tmp_path: Path) -> None:
    """Killed before the last one came from another node, or before it was made."""
    config = make_config(tmp_path)
    make_run_folder(config)
    save_status(config, state="completed", step=5120, reward=3.0)
    save_checkpoint(config, 4096)
    save_model(config.model_path, 4096)
    stale = "model.zip is of 4,096 agent steps instead of 5,120: it "

    with opened(config) as run:
        assert run.finished is not None
        assert run.notices[0].startswith("warning: ")
        assert f"{stale}cannot be made again" in run.notices[0]
    save_checkpoint(config, 5120)
    with opened(config) as run:
        assert (run.finished, run.complete) == (None, True)
        assert f"{stale}is made again" in run.notices[0]
    config.model_path.write_bytes(b"torn")
    with opened(config) as run:
        assert (run.finished, run.complete) == (None, True)
        assert "no usable model.zip" in run.notices[0]


def test_a_finished_run_without_its_best_model_makes_it_again_while_it_can(tmp_path: Path) -> None:
    config = make_config(tmp_path, evaluation={"every_steps": 2048})
    make_run_folder(config)
    best = save_checkpoint(config, 2048, evaluation=9.0)
    save_checkpoint(config, 5120, evaluation=4.0)
    with config.paths.metrics_csv_path.open("ab") as file:
        for step, score in ((2048, 9.0), (5120, 4.0)):
            data = {"step": step, "reward": score, "games": 5}
            file.write(build_row(MetricEvent.now(EventType.EVALUATION_FINISHED, "x", data)))
    save_status(config, state="completed", step=5120, reward=3.0)
    save_model(config.model_path, 5120)

    with opened(config) as run:
        assert (run.finished, run.complete) == (None, True)
        assert getattr(run.restore_from, "agent_steps", None) == 5120
        assert "best_model.zip is gone: it is made again" in run.notices[0]
    save_model(config.paths.best_model_path, 5120, 4.0)
    with opened(config) as run:
        assert run.complete
        assert "best_model.zip scored 4 instead of 9" in run.notices[0]
    for score in (9.0, 9.5):  # as it should be, and of an evaluation that was gone back from
        save_model(config.paths.best_model_path, 2048, score)
        with opened(config) as run:
            assert run.finished is not None

    config.paths.best_model_path.unlink()
    save_checkpoint(config, 2048, evaluation=9.0, **{ADOPTED: True})  # another run's
    with opened(config) as run:
        assert run.finished is not None
    shutil.rmtree(best)
    with opened(config) as run:
        assert (run.finished is not None, run.notices) == (True, ())


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN"])
def test_a_run_that_was_made_longer_is_known_by_the_same_command(
    tmp_path: Path, algorithm: str
) -> None:
    """DQN's replay, warm-up and epsilon stay what they were reckoned to be for the first length."""
    first = make_config(tmp_path, algorithm=algorithm)
    make_run_folder(first)
    for total in (8000, 8000, 90_000, 90_000):
        with opened(make_config(tmp_path, algorithm=algorithm, total_timesteps=total)) as run:
            assert run.config.total_timesteps == run.config.schedule_agent_steps == total
            assert run.config.dqn.replay_size == first.dqn.replay_size
    with pytest.raises(BadRunFolder, match="total_timesteps: 90,000 there, 8,000 now"):
        make_run_folder(make_config(tmp_path, algorithm=algorithm, total_timesteps=8000))


def test_a_value_that_was_given_is_no_reckoned_one(tmp_path: Path) -> None:
    make_run_folder(make_config(tmp_path, algorithm="DQN", dqn={"replay_size": 3000}))
    for total in (5000, 8000):
        with pytest.raises(BadRunFolder, match=r"dqn\.replay_size: 3,000 there"):
            make_run_folder(make_config(tmp_path, algorithm="DQN", total_timesteps=total))


def test_the_precision_that_was_chosen_stays(tmp_path: Path) -> None:
    config = make_config(tmp_path, resources={"precision": "bf16"})
    make_run_folder(config)
    with opened(make_config(tmp_path)) as run:  # auto
        assert run.config.resources.precision == "bf16"
    with pytest.raises(BadRunFolder, match=r"resources\.precision: bf16 there, fp32 now"):
        make_run_folder(make_config(tmp_path, resources={"precision": "fp32"}))


def test_a_run_can_be_taken_up_in_another_place(tmp_path: Path) -> None:
    config = make_config(tmp_path / "a")
    make_run_folder(config)
    save_checkpoint(config, 1000)
    (tmp_path / "a").rename(tmp_path / "b")

    moved = make_config(tmp_path / "b")
    with opened(moved) as run:
        assert getattr(run.restore_from, "path", None) == moved.paths.checkpoint_dir(1000)
        assert run.config.output_dir == str(tmp_path / "b")


def test_restart_keeps_the_old_folder_aside(tmp_path: Path) -> None:
    make_run_folder(make_config(tmp_path, seed=1))
    (tmp_path / "x" / "model.zip").write_text("mine")

    with opened(make_config(tmp_path, seed=2), restart_behavior="restart") as run:
        assert (run.restore_from, run.finished) == (None, None)
        assert run.config.seed == 2
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "x")
    assert aside.name.startswith("x.before-")
    assert sorted(path.name for path in aside.iterdir()) == ["config.json", "model.zip"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["config.json"]


def test_a_restart_that_cannot_begin_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run_folder(make_config(tmp_path, seed=1))
    (tmp_path / "x" / "model.zip").write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for fail, error in ((refuse, BadRunFolder), (interrupt, KeyboardInterrupt)):
        with monkeypatch.context() as failing:
            failing.setattr(os, "replace", fail)
            with (
                pytest.raises(error),
                opened(make_config(tmp_path, seed=2), restart_behavior="restart"),
            ):
                pass
        after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert after == before


def test_where_the_old_run_is_is_told_if_a_restart_cannot_be_undone(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    told: list[str] = []
    for aside in ("s3://runs/x.before-1", tmp_path / "x.before-1"):
        folder.mkdir(exist_ok=True)
        (folder / "another's").touch()
        where = f"the old run is in {aside}"
        with (
            pytest.raises(BadStorage, match=rf"no bucket; {re.escape(where)}$"),
            put_back(aside, folder, what="run", notice=told.append),
        ):
            raise BadStorage("no bucket")
        assert not told
        with (
            pytest.raises(KeyboardInterrupt),
            put_back(aside, folder, what="run", notice=told.append),
        ):
            raise KeyboardInterrupt
        assert told == [where]
        told.clear()


def test_fail_refuses_what_is_there(tmp_path: Path) -> None:
    with opened(make_config(tmp_path), restart_behavior="fail"):
        pass
    with pytest.raises(BadRunFolder, match=r"experiment_id: x -> .*exists already"):
        open_run(
            make_config(tmp_path), RunOptions(restart_behavior="fail"), notice=lambda text: None
        )


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("mine")
    with pytest.raises(BadRunFolder, match="not a run's folder"):
        make_run_folder(make_config(tmp_path))
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}', "\0\xff"])
def test_a_damaged_config_is_told(tmp_path: Path, text: str) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    config.config_path.write_text(text)
    with pytest.raises(BadRunFolder, match=r"config\.json cannot be read") as caught:
        make_run_folder(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"step": "many"}', "7"])
def test_a_damaged_status_means_interrupted(tmp_path: Path, text: str) -> None:
    config = make_config(tmp_path)
    make_run_folder(config)
    config.status_path.write_text(text)
    with opened(config) as run:
        assert run.finished is None


def test_the_second_driver_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with opened(config):
        for behavior in ("resume", "restart"):
            with pytest.raises(BadRunFolder, match=f"being trained by process {os.getpid()}"):
                open_run(config, RunOptions(restart_behavior=behavior), notice=lambda text: None)
    lock = RunLock(config.paths.lock_path)
    lock.acquire(notice=lambda text: None)
    lock.release()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadRunFolder, match=r"output_dir: .*(Not a directory|in the way)"):
            make_run_folder(make_config(output_dir))
    (tmp_path / "x").write_text("mine")
    with pytest.raises(BadRunFolder, match="in the way"):
        make_run_folder(make_config(tmp_path))

    assert {path.name for path in tmp_path.iterdir()} == {"file", "x"}


@pytest.mark.parametrize("failing", ["experiment folder", "config file"])
def test_an_unwritable_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if failing == "config file":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        make = Path.mkdir
        monkeypatch.setattr(
            Path, "mkdir", lambda p, **kw: refuse() if p.name == "x" else make(p, **kw)
        )
    with pytest.raises(BadRunFolder, match=r"Permission denied.*--output-dir"):
        make_run_folder(make_config(tmp_path / "a" / "b"))

    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadRunFolder, match="No space left"):
        make_run_folder(make_config(tmp_path / "a"))

    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_name_too_long_for_the_disk_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(BadRunFolder, match="File name too long"):
        make_run_folder(make_config(tmp_path / ("n" * 300)))
    assert list(tmp_path.iterdir()) == []


# Runs that begin with another model's weights.

INITIAL = InitialWeights(
    weights={"w": np.arange(3, dtype=np.float32)},
    origin={
        "file": "/models/a.zip",
        "sha256": "0" * 64,
        "algorithm": "PPO",
        "game": "breakout",
        "agent_steps": 5,
        "not_taken_over": ["optimizer"],
    },
)


def open_with_weights(config: ExperimentConfig, **options: Any) -> OpenRun:
    run = open_run(
        config, RunOptions(**options), notice=lambda text: None, read_initial=lambda _: INITIAL
    )
    run.lock.release()
    return run


def refuse_to_read(config: ExperimentConfig) -> InitialWeights:
    raise ArchiveError("/models/a.zip has 4 actions")


def test_the_weights_are_kept_in_the_run_with_where_they_came_from(tmp_path: Path) -> None:
    config = make_config(tmp_path, init_from="/models/a.zip")
    run = open_with_weights(config)

    stored = ExperimentConfig.model_validate_json(config.config_path.read_text())
    assert stored == run.config == config.model_copy(update={"init_sha256": "0" * 64})
    kept = load_initial_weights(config.paths.initial_weights_path)
    np.testing.assert_array_equal(kept.weights["w"], INITIAL.weights["w"])
    assert kept.origin == INITIAL.origin
    assert run.notices == (INITIAL.description,)
    assert "PPO on breakout, 5 agent steps; not taken over: optimizer" in INITIAL.description


def test_going_on_needs_the_named_file_no_more(tmp_path: Path) -> None:
    config = make_config(tmp_path, init_from="/models/a.zip")
    open_with_weights(config)
    run = open_run(config, RunOptions(), notice=lambda text: None, read_initial=refuse_to_read)
    run.lock.release()

    assert run.config.init_sha256 == "0" * 64
    assert run.notices == ("no checkpoint there yet: beginning at the start",)
    config.paths.initial_weights_path.unlink()
    with pytest.raises(BadRunFolder, match="is gone"), opened(config):
        pass


def test_the_same_file_may_lie_elsewhere_on_another_machine(tmp_path: Path) -> None:
    moved = tmp_path / "b.zip"
    moved.write_bytes(b"weights")
    config = make_config(tmp_path, init_from="/models/a.zip")
    open_with_weights(config)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    config.config_path.write_text(config.config_path.read_text().replace("0" * 64, sha256))

    with opened(make_config(tmp_path, init_from=str(moved))) as run:
        assert run.config.init_from == "/models/a.zip"
    moved.write_bytes(b"others")
    with pytest.raises(BadRunFolder, match=r"init_from: /models/a\.zip there"):
        make_run_folder(make_config(tmp_path, init_from=str(moved)))


def test_another_file_is_another_run(tmp_path: Path) -> None:
    open_with_weights(make_config(tmp_path, init_from="/models/a.zip"))
    for fields in (
        {},
        {"init_from": "/models/b.zip"},
        {"init_from": "/models/a.zip", "init_sha256": "1" * 64},
    ):
        with pytest.raises(BadRunFolder, match="init_"), opened(make_config(tmp_path, **fields)):
            pass


@pytest.mark.parametrize("restart_behavior", ["resume", "restart"])
def test_weights_that_are_refused_leave_all_as_it_was(
    tmp_path: Path, restart_behavior: str
) -> None:
    if restart_behavior == "restart":
        make_run_folder(make_config(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    config = make_config(tmp_path, init_from="/models/a.zip")
    options = RunOptions(restart_behavior=restart_behavior)  # type: ignore[arg-type]
    with pytest.raises(BadRunFolder, match=r"^init_from: /models/a\.zip has 4 actions$"):
        open_run(config, options, notice=lambda text: None, read_initial=refuse_to_read)

    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_kill_left_of_the_beginning_is_no_obstacle(tmp_path: Path) -> None:
    config = make_config(tmp_path, init_from="/models/a.zip")
    open_with_weights(config)
    config.config_path.unlink()  # it is written last
    for path in (config.config_path, config.paths.initial_weights_path, config.paths.claim_path):
        temporary_path(path).write_bytes(b"torn")

    assert open_with_weights(config).notices == (INITIAL.description,)


def test_damaged_initial_weights_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "initial-weights.safetensors"
    path.write_bytes(b"\0" * 20)
    with pytest.raises(ArtifactError, match="begin anew"):
        load_initial_weights(path)
    with pytest.raises(ArtifactError, match="begin anew"):
        load_initial_weights(tmp_path / "none")
