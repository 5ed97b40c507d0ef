"""Which checkpoint a trial that is tried again goes on from, on one disk."""

import errno
from pathlib import Path

import pytest

from retro_ml.cluster.trial_checkpoints import TrialCheckpoints
from retro_ml.core.artifacts.checkpoint_files import CheckpointError, save_checkpoint_folder
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(game_id="pong", experiment_id="x", output_dir=str(tmp_path))


def save(config: ExperimentConfig, agent_steps: int) -> Path:
    def write(into: Path) -> list[Path]:
        (into / "weights").write_bytes(b"w")
        return []

    path = config.paths.checkpoint_dir(agent_steps)
    save_checkpoint_folder(path, write, facts={"score": None})
    return path


def test_the_one_that_is_named_is_taken(config: ExperimentConfig) -> None:
    named, _ = save(config, 10), save(config, 20)
    assert TrialCheckpoints(config, str(config.checkpoints_dir)).find(named) == named


def test_a_checkpoint_that_nobody_was_told_of_takes_the_place_of_a_removed_one(
    config: ExperimentConfig,
) -> None:
    """The process saved 20, removed 10, of which one is kept, and died before it could say so."""
    newest = save(config, 20)
    checkpoints = TrialCheckpoints(config, str(config.checkpoints_dir))
    assert checkpoints.find(config.paths.checkpoint_dir(10)) == newest


def test_the_whole_one_before_takes_the_place_of_a_damaged_one(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = save(config, 10), save(config, 20)
    (damaged / "weights").write_bytes(b"v")
    checkpoints = TrialCheckpoints(config, str(config.checkpoints_dir))
    assert checkpoints.find_whole() == whole
    assert "step-20: weights is not what was saved" in caplog.text
    assert not damaged.exists()


def test_what_cannot_be_read_is_not_set_aside(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = save(config, 20)

    def refuse(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("retro_ml.core.artifacts.checkpoint_files.describe_file", refuse)
    checkpoints = TrialCheckpoints(config, str(config.checkpoints_dir))
    with pytest.raises(OSError, match="Too many open files"):
        checkpoints.find_whole()
    assert newest.is_dir()


def test_none_at_all_is_one_message(config: ExperimentConfig) -> None:
    checkpoints = TrialCheckpoints(config, str(config.checkpoints_dir))
    with pytest.raises(CheckpointError, match="step-10 is gone, and there is no other"):
        checkpoints.find(config.paths.checkpoint_dir(10))
