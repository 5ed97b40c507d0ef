"""model.zip and best_model.zip: of which checkpoint they are, and what they hold."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from retro_ml.core.artifacts.checkpoint_files import adopt_checkpoint, save_checkpoint_folder
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.writers import MetricsWriter, ModelWriter
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit

KINDS = ("weight", "bias")
START, STEP, SAVED = EventType.RUN_STARTED, EventType.TRAINING_STEP, EventType.CHECKPOINT_SAVED
EVALUATED = EventType.EVALUATION_FINISHED


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(game_id="breakout", total_timesteps=100, output_dir=str(tmp_path))


def tell(writer: RunWriter, kind: EventType, run: str, **data: Any) -> None:
    writer(MetricEvent.now(kind, run, data))


def save_module(folder: Path, weights: dict[str, np.ndarray]) -> list[Path]:
    safetensors.numpy.save_file(weights, folder / "module.safetensors")
    return []


def save_checkpoint(config: ExperimentConfig, step: int) -> Path:
    """One whose weights say which it is."""
    folder = config.paths.checkpoint_dir(step)
    weights = {"w": np.full((2, 2), step, np.float32)}
    facts = {"action_meanings": ["NOOP", "FIRE"], "score": step / 10}
    save_checkpoint_folder(folder, lambda into: save_module(into, weights), facts=facts)
    return folder


def evaluate_and_save(
    writers: list[RunWriter], config: ExperimentConfig, step: int, score: float
) -> None:
    folder = save_checkpoint(config, step)
    for writer in writers:
        tell(writer, STEP, config.experiment_id, step=step, reward=step / 10)
        tell(writer, EVALUATED, config.experiment_id, step=step, reward=score, games=2)
        tell(writer, SAVED, config.experiment_id, step=step, path=str(folder))


def best_step(config: ExperimentConfig) -> int:
    archive = load_model_archive(config.paths.best_model_path)
    assert archive.weights["w"][0, 0] == archive.metadata["agent_steps"]
    assert (
        archive.metadata["history"]["evaluations"][-1]["agent_steps"] == archive.weights["w"][0, 0]
    )
    step: int = archive.metadata["agent_steps"]
    return step


def test_the_model_is_that_of_the_last_checkpoint(config: ExperimentConfig) -> None:
    writer, run = ModelWriter(config), config.experiment_id
    for step in (10, 20):
        tell(writer, SAVED, run, step=step, path=str(save_checkpoint(config, step)))

    archive = load_model_archive(config.model_path)
    np.testing.assert_array_equal(archive.weights["w"], np.full((2, 2), 20, np.float32))
    assert ExperimentConfig.model_validate(archive.config) == config
    assert archive.metadata["agent_steps"] == 20
    assert archive.metadata["score"] == 2.0
    assert archive.metadata["game"] == {
        "rom": "breakout",
        "protocol": config.game.protocol,
        "action_meanings": ["NOOP", "FIRE"],
    }
    assert archive.metadata["observation"] == {"shape": [4, 84, 84], "dtype": "uint8"}


def test_the_model_has_a_card_its_history_and_members_for_others(
    config: ExperimentConfig,
) -> None:
    # The shapes do not matter here, the names do.
    layers = ("body.conv1", "body.conv2", "body.conv3", "body.linear", "policy", "value")
    weights = {f"{layer}.{kind}": np.ones(4, np.float32) for layer in layers for kind in KINDS}
    writer, run = ModelWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    tell(writer, STEP, run, step=5, reward=2.5, games=3)
    folder = config.paths.checkpoint_dir(5)
    facts = {"action_meanings": ["NOOP", "FIRE"], "score": 2.5}
    save_checkpoint_folder(folder, lambda into: save_module(into, weights), facts=facts)
    tell(writer, SAVED, run, step=5, path=str(folder))

    metadata = load_model_archive(config.model_path).metadata
    with zipfile.ZipFile(config.model_path) as archive:
        names, card = archive.namelist(), archive.read("README.md").decode()
    assert set(names) - {"metadata.json"} == metadata["sha256"].keys()
    assert {"data", "policy.pth", "policy.optimizer.pth"} < set(names)
    assert metadata["stable_baselines3"]["class"] == "stable_baselines3.PPO"
    assert metadata["history"]["curve"] == [{"agent_steps": 5, "score": 2.5}]
    assert metadata["protocol"]["noop_max"] == 30
    assert metadata["preprocessing"]["stack_order"] == "oldest first"
    for part in ("# PPO on ", "| score | 2.5 |", "0 NOOP, 1 FIRE", "PPO.load", "- clip: 0.1"):
        assert part in card
    assert "{" not in card


def test_a_checkpoint_without_weights_is_an_error(config: ExperimentConfig) -> None:
    writer = ModelWriter(config)
    with pytest.raises(ArtifactError, match=r"module\.safetensors"):
        tell(writer, SAVED, config.experiment_id, step=1, path="/nowhere")
    assert writer.error is not None


def test_the_best_model_is_that_of_the_best_evaluation(config: ExperimentConfig) -> None:
    writer, run = ModelWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    for step, score, best in ((10, 3.0, 10), (20, 5.0, 20), (30, 4.0, 20), (40, 5.0, 40)):
        evaluate_and_save([writer], config, step, score)
        assert best_step(config) == best
        assert load_model_archive(config.model_path).metadata["agent_steps"] == step

    tell(writer, SAVED, run, step=50, path=str(save_checkpoint(config, 50)))
    assert best_step(config) == 40, "nobody knows how good the last one is"


def test_without_evaluations_there_is_no_best_model(config: ExperimentConfig) -> None:
    writer, run = ModelWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    tell(writer, SAVED, run, step=10, path=str(save_checkpoint(config, 10)))

    assert config.model_path.exists()
    assert not config.paths.best_model_path.exists()


def test_a_resumed_run_knows_its_best_and_makes_up_for_a_model_it_did_not_come_to(
    config: ExperimentConfig,
) -> None:
    run, rows = config.experiment_id, MetricsWriter(config)
    writers = [rows, ModelWriter(config)]
    tell(rows, START, run, from_step=0)
    evaluate_and_save(writers, config, 10, 3.0)
    evaluate_and_save([rows], config, 20, 5.0)  # killed before the models
    evaluate_and_save([rows], config, 30, 4.0)
    assert best_step(config) == 10
    rows.close()

    writer = ModelWriter(config)
    tell(writer, START, run, from_step=30)
    assert best_step(config) == 20
    evaluate_and_save([writer], config, 40, 4.5)
    assert best_step(config) == 20
    evaluate_and_save([writer], config, 50, 6.0)
    assert best_step(config) == 50


def test_a_damaged_best_checkpoint_is_told_and_ends_nothing(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run, rows = config.experiment_id, MetricsWriter(config)
    tell(rows, START, run, from_step=0)
    evaluate_and_save([rows], config, 10, 3.0)
    rows.close()
    (config.paths.checkpoint_dir(10) / "module.safetensors").write_bytes(b"x")

    writer = ModelWriter(config)
    tell(writer, START, run, from_step=10)
    assert "best_model.zip is not made" in caplog.text
    assert writer.error is None


def test_an_adopted_agent_is_not_taken_for_the_one_evaluated_after_as_many_steps(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    writer, run = ModelWriter(config), config.experiment_id
    other = config.model_copy(update={"output_dir": str(tmp_path / "other")})
    weights = {"w": np.full((2, 2), 7, np.float32)}
    facts = {"action_meanings": ["NOOP", "FIRE"], "score": 9.0}
    theirs = other.paths.checkpoint_dir(10)
    save_checkpoint_folder(theirs, lambda into: save_module(into, weights), facts=facts)
    tell(writer, START, run, from_step=0)
    evaluate_and_save([writer], config, 10, 3.0)
    adopted = adopt_checkpoint(theirs, config.paths.checkpoints_dir)
    tell(writer, SAVED, run, step=10, path=str(adopted.path))

    assert load_model_archive(config.model_path).weights["w"][0, 0] == 7
    assert best_step(config) == 10


def test_a_trial_that_went_back_keeps_the_best_it_ever_had(config: ExperimentConfig) -> None:
    run, rows = config.experiment_id, MetricsWriter(config)
    writers = [rows, ModelWriter(config)]
    tell(rows, START, run, from_step=0)
    evaluate_and_save(writers, config, 10, 3.0)
    evaluate_and_save(writers, config, 20, 5.0)
    for writer in writers:
        tell(writer, START, run, from_step=10)  # the row of 5.0 is cut
    evaluate_and_save(writers, config, 20, 4.0)
    assert best_step(config) == 20
    assert (
        load_model_archive(config.paths.best_model_path).metadata["history"]["evaluations"][-1][
            "mean_score"
        ]
        == 5.0
    )
    evaluate_and_save(writers, config, 30, 5.5)
    assert best_step(config) == 30
