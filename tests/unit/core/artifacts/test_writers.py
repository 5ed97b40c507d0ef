"""The writers: what stands in the files after events, kills, retries and disk faults."""

import errno
import json
import logging
import math
import os
import shutil
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.run_writer import RunWriter, plain
from retro_ml.core.artifacts.status import StatusWriter, installed_versions
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.writers import LogWriter, MetricsWriter, build_writers
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit

START, STEP, GAME = EventType.RUN_STARTED, EventType.TRAINING_STEP, EventType.EPISODE_FINISHED
SAVED, DONE, ERROR = EventType.CHECKPOINT_SAVED, EventType.RUN_COMPLETED, EventType.ERROR


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(game_id="breakout", total_timesteps=100, output_dir=str(tmp_path))


def tell(target: RunWriter | MetricEventBus, kind: EventType, run: str, **data: Any) -> None:
    event = MetricEvent.now(kind, run, data)
    if isinstance(target, MetricEventBus):
        target.emit(event)
    else:
        target(event)


def steps(config: ExperimentConfig) -> list[int]:
    return [row["step"] for row in read_rows(config.paths.metrics_csv_path)]


def logged(config: ExperimentConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in config.paths.events_path.read_text().splitlines()]


def test_an_iterations_row_is_in_the_file_at_once_with_its_games(config: ExperimentConfig) -> None:
    writers, run = [MetricsWriter(config), LogWriter(config)], config.experiment_id
    for writer in writers:
        tell(writer, START, run, from_step=0)
        tell(writer, GAME, run, step=9, reward=3.0, length=9, frames=36)
        tell(writer, STEP, run, step=10, reward=3.0)
    assert steps(config) == [9, 10]
    assert len(logged(config)) == 3

    for writer in writers:
        tell(writer, GAME, run, step=15, reward=3.0, length=9, frames=36)
        tell(writer, SAVED, run, step=16, path="/x")
    assert steps(config) == [9, 10, 15]
    assert len(logged(config)) == 5


def test_games_wait_for_a_second_at_most(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    writer, run = MetricsWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    tell(writer, GAME, run, step=1, reward=3.0, length=9, frames=36)
    assert steps(config) == []

    clock[0] += 1.0
    tell(writer, GAME, run, step=2, reward=3.0, length=9, frames=36)
    assert steps(config) == [1, 2]

    tell(writer, GAME, run, step=3, reward=3.0, length=9, frames=36)
    writer.close()
    assert steps(config) == [1, 2, 3]


@pytest.mark.parametrize("last", [False, True])
def test_rows_are_on_the_disk_before_their_checkpoint(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Or a power failure could take them and leave the checkpoint, which is worthless then."""
    monkeypatch.setattr("time.monotonic", lambda: 100.0)  # no second passes
    every = 3 * config.iteration_agent_steps
    total = (5 if last else 9) * config.iteration_agent_steps
    config = config.model_copy(
        update={
            "total_timesteps": total,
            "checkpointing": config.checkpointing.model_copy(update={"every_steps": every}),
        }
    )
    writer, run = MetricsWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    syncs: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (syncs.append(iteration), fsync(fd)))
    for iteration in range(1, 6):
        tell(writer, STEP, run, step=iteration * config.iteration_agent_steps)
        if iteration == 3:
            assert syncs == [3]
            tell(writer, SAVED, run, step=iteration * config.iteration_agent_steps, path="/x")
    assert syncs == ([3, 5] if last else [3])
    writer.close()


def test_an_evaluations_row_is_on_the_disk_before_its_checkpoint_which_moves_no_other(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune counts iterations from the start, whatever is saved in between, and on in a retry."""
    monkeypatch.setattr("time.monotonic", lambda: 100.0)  # no second passes
    each = config.iteration_agent_steps
    checkpointing = config.checkpointing.model_copy(update={"every_steps": 3 * each})
    config = config.model_copy(
        update={"total_timesteps": 99 * each, "checkpointing": checkpointing}
    )
    writer, run = MetricsWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    syncs: list[str] = []
    now = ""
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (syncs.append(now), fsync(fd)))

    def train(*iterations: int) -> None:
        nonlocal now
        for iteration in iterations:
            now = f"training {iteration}"
            tell(writer, STEP, run, step=iteration * each)

    train(1, 2)
    assert syncs == []
    now = "evaluation 2"
    tell(writer, EventType.EVALUATION_FINISHED, run, step=2 * each, reward=3.0, games=5)
    assert syncs == ["evaluation 2"]
    tell(writer, SAVED, run, step=2 * each, path="/x")
    train(3, 4)
    assert syncs == ["evaluation 2", "training 3"]

    tell(writer, START, run, from_step=2 * each)  # tried again from the last checkpoint
    syncs.clear()
    train(3, 4, 5, 6, 7)
    assert syncs == ["training 3", "training 6"]
    writer.close()


def test_metrics_json_has_the_games_that_waited(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, run = MetricsWriter(config), config.experiment_id
    tell(writer, START, run, from_step=0)
    writer._json_due_s = 0.0
    monkeypatch.setattr(writer, "_sync", lambda event: None)
    tell(writer, GAME, run, step=1, reward=3.0, length=9, frames=36)

    assert [row["step"] for row in json.loads(config.metrics_path.read_text())["metrics"]] == [1]


def test_a_new_attempt_tells_how_far_the_run_was_until_it_has_begun(
    config: ExperimentConfig,
) -> None:
    for content, step, reward in (
        (None, 0, None),
        ('{"step": 40, "reward": 2.5, "games": 3, "state": "running"}', 40, 2.5),
        ("{torn", 0, None),
        ('{"step": "many"}', 0, None),
    ):
        config.experiment_dir.mkdir(exist_ok=True)
        if content is not None:
            config.status_path.write_text(content)
        StatusWriter(config).attach(MetricEventBus()).close()
        status = json.loads(config.status_path.read_text())
        assert (status["state"], status["step"], status["reward"]) == ("starting", step, reward)
        assert status["progress"] == step / 100


def test_a_removed_folder_is_one_clear_error(config: ExperimentConfig) -> None:
    writer, run = MetricsWriter(config), config.experiment_id
    tell(writer, STEP, run, step=1)
    shutil.rmtree(config.paths.experiment_dir)

    with pytest.raises(ArtifactError, match=r"metrics\.json: No such file"):
        tell(writer, DONE, run, step=1, state="completed")
    tell(writer, DONE, run, step=1, state="completed")
    writer.close()
    assert not config.paths.experiment_dir.exists()


def test_events_of_other_experiments_pass_by(config: ExperimentConfig) -> None:
    bus = MetricEventBus()
    writers = [writer.attach(bus) for writer in build_writers(config)]
    tell(bus, START, config.experiment_id, from_step=0)
    tell(bus, STEP, "another", step=10)
    for writer in writers:
        writer.close()

    assert steps(config) == []
    assert len(logged(config)) == 1


def test_subscribed_by_hand_metrics_are_complete_at_the_end(config: ExperimentConfig) -> None:
    bus, run = MetricEventBus(), config.experiment_id
    bus.subscribe(None, MetricsWriter(config))
    tell(bus, STEP, run, step=10, reward=None)
    tell(bus, DONE, run, step=10, reward=None, games=0, time_total_s=1.0, state="completed")

    document = json.loads(config.metrics_path.read_text())
    assert [row["type"] for row in document["metrics"]] == ["training_step", "run_completed"]
    assert document["experiment_id"] == run
    assert document["game_id"] == "breakout"
    assert document["algorithm"] == "PPO"
    assert document["total_timesteps"] == 100


def test_an_attempt_from_a_checkpoint_cuts_and_repeats_exactly(config: ExperimentConfig) -> None:
    run = config.experiment_id
    writers = [MetricsWriter(config), LogWriter(config)]
    for writer in writers:
        tell(writer, START, run, from_step=0)
        for step in (10, 20, 30):
            tell(writer, GAME, run, step=step, reward=1.0, length=5, frames=20)
            tell(writer, STEP, run, step=step, reward=1.0)
            tell(writer, SAVED, run, step=step, path="/x") if step == 20 else None
        # The same process tries again, its files still open.
        tell(writer, START, run, from_step=20)
        tell(writer, STEP, run, step=30, reward=1.0)

    assert steps(config) == [10, 10, 20, 20, 30]
    assert json.loads(config.metrics_path.read_text())["metrics"][-1]["step"] == 20
    kinds = [(event["event_type"], event["data"].get("step")) for event in logged(config)]
    assert kinds == [
        ("run_started", None),
        ("episode_finished", 10),
        ("training_step", 10),
        ("episode_finished", 20),
        ("training_step", 20),
        ("checkpoint_saved", 20),
        ("run_started", None),
        ("training_step", 30),
    ]


def test_a_killed_process_loses_no_row_and_its_torn_line_is_mended(
    config: ExperimentConfig,
) -> None:
    run = config.experiment_id
    pid = os.fork()
    if pid == 0:
        for writer in build_writers(config)[:2]:
            tell(writer, START, run, from_step=0)
            for step in (10, 20):
                tell(writer, STEP, run, step=step, reward=1.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert steps(config) == [10, 20]
    for path in (config.paths.metrics_csv_path, config.paths.events_path):
        with path.open("ab") as file:
            file.write(b'{"training_step,20')

    for writer in (MetricsWriter(config), LogWriter(config)):
        tell(writer, START, run, from_step=10)
        tell(writer, STEP, run, step=20, reward=1.0)

    assert steps(config) == [10, 20]
    assert [event["data"].get("step") for event in logged(config)] == [None, 10, None, 20]


def test_a_fresh_start_leaves_nothing_of_before(config: ExperimentConfig) -> None:
    run = config.experiment_id
    writer = MetricsWriter(config)
    tell(writer, STEP, run, step=10)
    writer.close()

    tell(writer, START, run, from_step=0)

    assert steps(config) == []
    assert json.loads(config.metrics_path.read_text())["metrics"] == []


def test_metrics_json_is_rewritten_as_it_grows_not_at_every_row(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    saves: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    writer, run = MetricsWriter(config), config.experiment_id
    save = writer._save_json

    def save_and_note(**kwargs: Any) -> None:
        saves.append(clock[0])
        save(**kwargs)

    monkeypatch.setattr(writer, "_save_json", save_and_note)
    tell(writer, START, run, from_step=0)
    for second in range(1, 1001):
        clock[0] = second
        tell(writer, STEP, run, step=second)

    assert saves[:3] == [0.0, 2.0, 7.0]
    assert len(saves) < 35  # log(1000) / log(1.25) = 31
    assert all(late > 1.15 * early for early, late in pairwise(saves[5:]))


def test_a_key_without_a_column_is_told_once_and_kept_in_the_log(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run = config.experiment_id
    for writer in (MetricsWriter(config), LogWriter(config)):
        for step in (1, 2):
            tell(writer, STEP, run, step=step, novelty=0.5)

    assert caplog.text.count("no column for novelty") == 1
    assert logged(config)[0]["data"] == {"step": 1, "novelty": 0.5}


def test_the_log_holds_plain_json_and_words(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="retro_ml.run"):
        writer = LogWriter(config)
        data = {"step": np.int64(1024), "reward": float("nan"), "path": Path("/x"), "loss": 0.25}
        tell(writer, STEP, config.experiment_id, **data)

    assert logged(config)[0]["data"] == {"step": 1024, "reward": None, "path": "/x", "loss": 0.25}
    assert logged(config)[0]["timestamp"].endswith("+00:00")
    assert "training_step: step 1024" in caplog.text


class Colour(str, Enum):
    RED = "red"


@pytest.mark.parametrize(
    "data",
    [
        {"step": 1, "reward": 0.1, "state": "é\n", "more": None, "flag": True},
        {"step": np.int64(1), "reward": np.float64(0.1), "loss": np.float32(0.1)},
        {"reward": math.nan, "loss": math.inf},
        {"deep": {"a": (1, math.nan), 2: Path("/x"), None: {True: 1}}},
        {"colour": Colour.RED, "set": [np.array([1.5, math.nan])]},
        {1: 2, None: 3},
        {},
    ],
)
def test_events_log_is_what_the_json_module_writes(
    config: ExperimentConfig, data: dict[Any, Any]
) -> None:
    event = MetricEvent.now(STEP, config.experiment_id, data)
    LogWriter(config)(event)

    expected = json.dumps(plain(event.to_dict())).encode() + b"\n"
    assert config.paths.events_path.read_bytes() == expected


def test_finished_games_are_put_into_words_for_debugging_only(
    config: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    writer, run = LogWriter(config), config.experiment_id
    with caplog.at_level(logging.INFO, logger="retro_ml.run"):
        tell(writer, GAME, run, step=10, reward=3.0)
        tell(writer, STEP, run, step=20)
        tell(writer, ERROR, run, message="it broke")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("INFO", "training_step: step 20"), ("ERROR", "error: message it broke")]

    with caplog.at_level(logging.DEBUG, logger="retro_ml.run"):
        tell(writer, GAME, run, step=30, reward=3.0)
    writer.close()
    assert caplog.messages[2:] == ["episode_finished: step 30, reward 3"]
    assert len(logged(config)) == 4


def test_a_full_disk_is_kept_as_error_and_ends_the_file_whole(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, run = MetricEventBus(), config.experiment_id
    writer = MetricsWriter(config).attach(bus)
    tell(bus, STEP, run, step=1)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    tell(bus, STEP, run, step=2)
    monkeypatch.undo()
    tell(bus, STEP, run, step=3)
    writer.close()

    assert isinstance(writer.error, ArtifactError)
    assert "metrics.csv" in str(writer.error)
    assert steps(config) == [1]


def test_closing_leaves_the_bus(config: ExperimentConfig) -> None:
    bus = MetricEventBus()
    writer = MetricsWriter(config).attach(bus)
    writer.close()
    tell(bus, STEP, config.experiment_id, step=1)

    assert not config.paths.metrics_csv_path.exists()


def test_status_follows_the_run(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    bus, run = MetricEventBus(), config.experiment_id

    def status() -> dict[str, Any]:
        whole: dict[str, Any] = json.loads(config.status_path.read_text())
        return whole

    StatusWriter(config).attach(bus)
    assert (status()["state"], status()["pid"]) == ("starting", os.getpid())
    assert status()["versions"] == installed_versions()
    tell(bus, START, run, from_step=20)
    assert (status()["state"], status()["progress"]) == ("running", 0.2)
    tell(bus, STEP, run, step=30, reward=1.5)
    assert status()["step"] == 20, "at most once a second"
    clock[0] += 1.0
    tell(bus, STEP, run, step=40, reward=float("nan"))
    assert (status()["step"], status()["reward"]) == (40, None)
    tell(bus, ERROR, run, message="it broke")
    assert (status()["state"], status()["error"]) == ("failed", "it broke")
    tell(bus, START, run, from_step=20)
    assert (status()["state"], status()["error"]) == ("running", None)
    tell(bus, DONE, run, step=104, reward=2.0, state="interrupted")
    assert (status()["state"], status()["progress"]) == ("interrupted", 1.0)


def test_versions_are_read_without_importing() -> None:
    versions = installed_versions()
    assert versions.keys() == {"retro_ml", "ray", "torch", "ale-py", "python"}
    assert versions["ale-py"]


def test_plain_makes_json_types() -> None:
    value = {"a": (np.float32(0.5), np.array([1, 2])), 3: float("inf"), "n": np.float64("nan")}
    assert plain(value) == {"a": [0.5, [1, 2]], "3": None, "n": None}
    assert type(plain(np.float64(2.0))) is float
    assert plain(True) is True
