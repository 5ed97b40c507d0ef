"""Event files: read back with tensorboardX's own protocol buffers and checksums."""

import logging
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from retro_ml.core.artifacts.tensorboard import TensorBoardWriter, build_scalars
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(game_id="pong", output_dir=str(tmp_path), experiment_id="one")


def read(path: Path) -> list[Any]:
    """Every event of a file, its checksums proved."""
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        body = content[12 : 12 + length]
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        tail = content[12 + length : 16 + length]
        assert struct.unpack("<I", tail)[0] == masked_crc32c(body)
        events.append(Event.FromString(body))
        content = content[16 + length :]
    return events


def files(config: ExperimentConfig) -> list[Path]:
    return sorted(config.paths.tensorboard_dir.iterdir())


def scores(config: ExperimentConfig) -> list[tuple[int, float]]:
    """The points of the chart of the mean score."""
    return [(step, value) for step, name, value in scalars(config) if name == "rollout/ep_rew_mean"]


def scalars(config: ExperimentConfig) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for path in files(config)
        for event in read(path)
        for value in event.summary.value
    ]


def emit(
    writer: TensorBoardWriter, config: ExperimentConfig, *events: tuple[EventType, dict[str, Any]]
) -> None:
    bus = MetricEventBus()
    writer.attach(bus)
    for event_type, data in events:
        bus.emit(MetricEvent(event_type, config.experiment_id, TIME, data))


def started(step: int) -> tuple[EventType, dict[str, Any]]:
    return EventType.RUN_STARTED, {"from_step": step}


def trained(step: int, reward: float | None) -> tuple[EventType, dict[str, Any]]:
    return EventType.TRAINING_STEP, {"step": step, "reward": reward}


def test_an_event_reads_back_as_it_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(build_scalars(12.5, 300_000, {"a/b": 1.5, "c": -2.0}))

    (event,) = read(path)

    assert (event.wall_time, event.step) == (12.5, 300_000)
    assert [(v.tag, v.simple_value) for v in event.summary.value] == [("a/b", 1.5), ("c", -2.0)]


def test_names_that_people_know(config: ExperimentConfig) -> None:
    writer = TensorBoardWriter(config)
    emit(
        writer,
        config,
        started(0),
        (EventType.EPISODE_FINISHED, {"step": 90, "reward": 2.0, "length": 40, "frames": 160}),
        (EventType.EPISODE_FINISHED, {"step": 95, "reward": 3.0, "length": 60, "frames": 240}),
        (
            EventType.TRAINING_STEP,
            {"step": 128, "reward": 2.5, "steps_per_s": 640.0, "policy_loss": -0.5, "entropy": 1.25,
             "loss": None, "value_loss": float("nan")},
        ),
        (EventType.EVALUATION_FINISHED, {"step": 128, "reward": 7.0, "standard_error": 0.5}),
    )  # fmt: skip
    writer.close()

    assert read(files(config)[0])[0].file_version == "brain.Event:2"
    assert scalars(config) == [
        (90, "charts/episodic_return", 2.0),
        (90, "charts/episodic_length", 40.0),
        (95, "charts/episodic_return", 3.0),
        (95, "charts/episodic_length", 60.0),
        (128, "rollout/ep_rew_mean", 2.5),
        (128, "rollout/ep_len_mean", 50.0),
        (128, "time/fps", 640.0),
        (128, "charts/SPS", 640.0),
        (128, "time/total_timesteps", 128.0),
        (128, "train/policy_gradient_loss", -0.5),
        (128, "train/policy_loss", -0.5),
        (128, "train/entropy", 1.25),
        (128, "eval/mean_reward", 7.0),
        (128, "eval/standard_error", 0.5),
    ]


def test_an_attempt_that_goes_on_doubles_no_step(config: ExperimentConfig) -> None:
    first = TensorBoardWriter(config)
    emit(first, config, started(0), *(trained(step, step / 100) for step in (100, 200, 300)))
    first.close()
    path = files(config)[0]
    path.write_bytes(path.read_bytes() + b"\x10\x00\x00")  # torn by a kill

    second = TensorBoardWriter(config)
    emit(second, config, started(200), trained(300, 9.0))
    second.close()

    assert scores(config) == [(100, 1.0), (200, 2.0), (300, 9.0)]
    old, new = files(config)
    assert old == path
    mark = read(new)[1]
    assert (mark.step, mark.session_log.status) == (201, 1)  # START: forget what lies from here on


def test_a_run_from_its_beginning_leaves_nothing_of_before(config: ExperimentConfig) -> None:
    for reward in (1.0, 2.0):
        writer = TensorBoardWriter(config)
        emit(writer, config, started(0), trained(100, reward))
        writer.close()

    assert scores(config) == [(100, 2.0)]


def test_what_was_flushed_is_there_without_an_end(config: ExperimentConfig) -> None:
    writer = TensorBoardWriter(config)
    emit(
        writer,
        config,
        started(0),
        trained(100, 1.0),
        (EventType.CHECKPOINT_SAVED, {"step": 100, "path": "x"}),
    )

    assert scores(config) == [(100, 1.0)]


def test_a_file_that_cannot_be_written_harms_no_training(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config.paths.experiment_dir.mkdir()
    config.paths.tensorboard_dir.write_text("in the way")
    writer = TensorBoardWriter(config)

    with caplog.at_level(logging.WARNING):
        emit(writer, config, started(0), trained(100, 1.0), trained(200, 1.0))
    writer.close()

    assert writer.error is None
    assert len([r for r in caplog.records if "TensorBoard" in r.message]) == 1
