"""Runs through the whole path, from run_experiment to the files, and what may go wrong on it."""

import csv
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from retro_ml import EventType, ExperimentConfig, MetricEvent, MetricEventBus, run_experiment
from retro_ml.core.experiments.options import RunOptions

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]
Build = Callable[..., ExperimentConfig]
QUIET = RunOptions(progress="quiet")


def rows_without_clock(config: ExperimentConfig) -> list[dict[str, str]]:
    with config.paths.metrics_csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    clock = {"timestamp", *(name for name in rows[0] if name.endswith("_s"))}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_a_killed_trial_goes_on_from_its_checkpoint_and_leaves_the_same_rows(
    small_config: Build,
) -> None:
    fields: dict[str, Any] = {"total_timesteps": 5000, "checkpointing": {"every_steps": 2080}}
    undisturbed = small_config("A2C", experiment_id="undisturbed", **fields)
    assert run_experiment(undisturbed, options=QUIET).success

    disturbed = small_config("A2C", experiment_id="disturbed", **fields)
    events: list[MetricEvent] = []
    bus = MetricEventBus()
    bus.subscribe(None, events.append)

    def kill_once(event: MetricEvent) -> None:
        attempts = [e for e in events if e.event_type is EventType.RUN_STARTED]
        if event.data["step"] == 3120 and len(attempts) == 1:
            os.kill(attempts[0].data["pid"], signal.SIGKILL)

    bus.subscribe(EventType.TRAINING_STEP, kill_once)
    result = run_experiment(disturbed, event_bus=bus, options=QUIET)

    assert result.success, result.error
    attempts = [e.data["from_step"] for e in events if e.event_type is EventType.RUN_STARTED]
    assert attempts == [0, 2080]
    steps = [e.data["step"] for e in events if e.event_type is EventType.TRAINING_STEP]
    assert steps == [1040, 2080, 3120, 3120, 4160, 5200]
    assert rows_without_clock(disturbed) == rows_without_clock(undisturbed)


def test_a_resumed_trial_that_dies_does_without_the_checkpoint_it_began_with(
    small_config: Build,
) -> None:
    fields: dict[str, Any] = {"experiment_id": "r", "checkpointing": {"every_steps": 1, "keep": 1}}
    assert run_experiment(
        small_config("A2C", total_timesteps=1000, **fields), options=QUIET
    ).success

    longer = small_config("A2C", total_timesteps=4000, **fields)
    attempts: list[MetricEvent] = []
    bus = MetricEventBus()
    bus.subscribe(EventType.RUN_STARTED, attempts.append)

    def kill_once(event: MetricEvent) -> None:
        if event.data["step"] == 3120 and len(attempts) == 1:
            assert not longer.paths.checkpoint_dir(1040).exists()
            os.kill(attempts[0].data["pid"], signal.SIGKILL)

    bus.subscribe(EventType.CHECKPOINT_SAVED, kill_once)
    result = run_experiment(longer, event_bus=bus, options=QUIET)
    assert result.success, result.error
    assert [event.data["from_step"] for event in attempts] == [1040, 3120]


def test_a_trial_that_keeps_dying_ends_the_run_with_one_message(small_config: Build) -> None:
    config = small_config("A2C", resources={"max_failures": 1})
    bus = MetricEventBus()
    bus.subscribe(EventType.RUN_STARTED, lambda event: os.kill(event.data["pid"], signal.SIGKILL))
    result = run_experiment(config, event_bus=bus, options=QUIET)
    assert (result.success, result.exit_code, result.state) == (False, 1, "failed")
    assert result.error
    assert "\n" not in result.error
    assert [e.event_type for e in bus.history(EventType.ERROR)] == [EventType.ERROR]


def test_a_score_or_the_time_end_a_run_as_completed(small_config: Build) -> None:
    for options in (
        RunOptions(progress="quiet", stop_score=-1.0),
        RunOptions(progress="quiet", max_hours=1e-6),
    ):
        result = run_experiment(small_config("A2C", total_timesteps=50_000), options=options)
        assert result.success
        assert result.agent_steps < 10_000
        assert result.model_path.exists()


def test_an_env_runner_of_its_own_plays_on_our_own_ray(small_config: Build) -> None:
    resources = {"num_cpus": 1, "num_env_runners": 1, "games_per_env_runner": 16}
    config = small_config("A2C", total_timesteps=1000, resources=resources)
    result = run_experiment(config, options=QUIET)
    assert (result.success, result.agent_steps) == (True, 1040), result.error


def test_what_can_never_be_placed_is_said_at_once(small_config: Build) -> None:
    resources = {"num_env_runners": 64, "games_per_env_runner": 1}
    result = run_experiment(small_config("A2C", resources=resources), options=QUIET)
    assert (result.success, result.exit_code) == (False, 3)
    assert result.error is not None
    assert "lower resources.num_env_runners" in result.error


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "here", "127.0.0.1:x"])
def test_a_cluster_that_is_not_there_is_said_at_once(small_config: Build, address: str) -> None:
    options = RunOptions(progress="quiet", ray_address=address)
    result = run_experiment(small_config("A2C"), options=options)
    assert (result.success, result.exit_code) == (False, 3)
    assert result.error is not None
    assert address in result.error
