"""Sweeps on real Ray: several trials at once, what may happen to them, ASHA and PBT."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro_ml import EventType, MetricEvent, MetricEventBus, SweepConfig, run_sweep
from retro_ml.core.artifacts.checkpoint_files import find_checkpoints, verify_checkpoint
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions

pytestmark = pytest.mark.integration
QUIET = RunOptions(progress="quiet")
TIMEOUT_S = 300.0
BASE: dict[str, Any] = {
    "game_id": "breakout",
    "algorithm": "A2C",
    "use_gpu": False,
    # Few games, so that some are over within an iteration's 1,000 agent steps.
    "resources": {"games_per_env_runner": 4, "max_failures": 1},
}


# DQN, made to learn within a few hundred agent steps.
BASE["dqn"] = {"replay_size": 5_000, "warmup_agent_steps": 200, "agent_steps_per_update": 16}
EACH_ALGORITHM = [
    "A2C",
    pytest.param("PPO", marks=pytest.mark.nightly),
    pytest.param("DQN", marks=pytest.mark.nightly),
]


def training_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.csv"
    return [row for row in read_rows(path) if row["type"] == "training_step"]


def status(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return document


@pytest.mark.usefixtures("own_ray")
def test_one_failing_trial_harms_no_other(tmp_path: Path) -> None:
    sweep = SweepConfig(
        name="s",
        output_dir=str(tmp_path),
        base=BASE | {"total_timesteps": 1_000},
        grid={"game_id": ["pong", "breakout"]},
    )
    events: list[MetricEvent] = []
    bus = MetricEventBus()
    bus.subscribe(None, events.append)

    def kill_pong(event: MetricEvent) -> None:
        if event.experiment_id.startswith("pong"):
            os.kill(event.data["pid"], signal.SIGKILL)

    bus.subscribe(EventType.RUN_STARTED, kill_pong)
    result = run_sweep(sweep, bus, options=QUIET)

    assert (result.state, result.exit_code, result.success) == ("failed", 1, False)
    assert [one.experiment_id for one in result.failed] == ["pong-a2c-s0"]
    attempts = [e.experiment_id for e in events if e.event_type is EventType.RUN_STARTED]
    assert sorted(attempts) == ["breakout-a2c-s0", "pong-a2c-s0", "pong-a2c-s0"]
    breakout = tmp_path / "s" / "breakout-a2c-s0"
    assert status(breakout)["state"] == "completed"
    assert (breakout / "model.zip").exists()
    assert "run_completed" in (breakout / "training.log").read_text()
    assert status(tmp_path / "s" / "pong-a2c-s0")["state"] == "failed"
    assert status(tmp_path / "s")["trials"]["failed"] == 1
    with (tmp_path / "s" / "leaderboard.csv").open(newline="") as file:
        board = {row["experiment_id"]: row for row in csv.DictReader(file)}
    assert float(board["breakout-a2c-s0"]["score"]) == status(breakout)["reward"]
    assert board["pong-a2c-s0"]["state"] == "failed"
    assert "has died" in board["pong-a2c-s0"]["error"]


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("algorithm", EACH_ALGORITHM)
def test_asha_stops_the_trials_that_fall_behind(algorithm: str, tmp_path: Path) -> None:
    sweep = SweepConfig(
        name="s",
        output_dir=str(tmp_path),
        base=BASE | {"total_timesteps": 3_000, "algorithm": algorithm},
        # A game that is cut off after 75 agent steps scores less than a whole one.
        grid={"environment.max_frames": [108_000, 300]},
        scheduler="asha",
        asha={"grace_agent_steps": 1_000, "reduction_factor": 2},
        max_concurrent=1,  # one after the other, so that what was known at each rung is known here
    )
    result = run_sweep(sweep, options=QUIET)
    assert result.success, result.error

    rungs: dict[int, list[float]] = {1_000: [], 2_000: []}
    states = {}
    for one in result.standings:
        folder = tmp_path / "s" / one.experiment_id
        rows = training_rows(folder)
        states[one.experiment_id] = expected = play_asha(rows, rungs)
        assert rows[-1]["step"] == one.agent_steps, "it ends where the rule says"
        assert status(folder)["state"] == expected
        assert (folder / "model.zip").exists()
    assert {one.experiment_id: one.state for one in result.standings} == states
    assert list(states.values()) == ["completed", "stopped"]

    again = run_sweep(sweep, options=QUIET)
    assert {one.experiment_id: one.state for one in again.standings} == states
    assert again.success


def play_asha(rows: list[dict[str, Any]], rungs: dict[int, list[float]]) -> str:
    """What becomes of a trial with these rows, by Li et al. 2020: the better half goes on.

    Args:
        rows: those that it left, which end where it was stopped.
        rungs: what others had there; this one's are added.
    """
    passed: set[int] = set()
    for number, row in enumerate(rows, start=1):
        reached = [rung for rung in rungs if rung <= row["step"] < 3_000]
        if not reached or row["reward"] is None or max(reached) in passed:
            continue
        passed.add(max(reached))
        others = list(rungs[max(reached)])
        rungs[max(reached)].append(row["reward"])
        if others and row["reward"] < np.percentile(others, 50):
            assert number == len(rows), "nothing comes after it was stopped"
            return "stopped"
    return "completed"


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("algorithm", EACH_ALGORITHM)
def test_pbt_changes_the_step_size_that_the_optimizer_uses(algorithm: str, tmp_path: Path) -> None:
    section = algorithm.lower()
    field = f"{section}.learning_rate"
    sweep = SweepConfig(
        name="s",
        output_dir=str(tmp_path),
        base=BASE | {"total_timesteps": 4_000, "algorithm": algorithm},
        distributions={field: {"log_uniform": [1e-5, 1e-2]}},
        samples=2,
        scheduler="pbt",
        pbt={"interval_agent_steps": 1_000, "quantile": 0.5, "resample_probability": 0},
    )
    events: list[MetricEvent] = []
    bus = MetricEventBus()
    bus.subscribe(None, events.append)
    result = run_sweep(sweep, bus, options=QUIET)
    assert result.success, result.error

    changes = [e for e in events if e.event_type is EventType.HYPERPARAMETERS_CHANGED]
    assert changes
    configs = {
        one.experiment_id: ExperimentConfig.model_validate_json(
            (tmp_path / "s" / one.experiment_id / "config.json").read_text()
        )
        for one in result.standings
    }
    planned = {trial.experiment_id: trial.config for trial in sweep.trials}
    rates = {name: config.settings.learning_rate for name, config in planned.items()}
    shares: dict[int, float] = {}  # of the rate that the schedule leaves, by agent step
    for event in events:
        name = event.experiment_id
        if event.event_type is EventType.HYPERPARAMETERS_CHANGED:
            old, donor = event.data["before"][field], event.data["from_experiment"]
            assert old == rates[name]
            rates[name] = event.data["values"][field]
            assert rates[name] / rates[donor] in (pytest.approx(0.8), pytest.approx(1.2))
            assert find_checkpoints(tmp_path / "s" / name / "checkpoints")
        if event.event_type is EventType.TRAINING_STEP and event.data.get("learning_rate"):
            share = event.data["learning_rate"] / rates[name]
            # The same for both trials, whatever was changed of which.
            assert share == pytest.approx(shares.setdefault(event.data["step"], share), rel=1e-4)
    ordered = [shares[step] for step in sorted(shares)]
    assert 0 <= min(ordered) <= max(ordered) <= 1 + 1e-6
    assert ordered == sorted(ordered, reverse=True)
    for name, config in configs.items():
        assert config.settings.learning_rate == rates[name]
        told = (tmp_path / "s" / name / "events.log").read_text()
        changed = [e for e in changes if e.experiment_id == name]
        assert told.count("hyperparameters_changed") >= bool(changed)
        for folder in find_checkpoints(tmp_path / "s" / name / "checkpoints"):
            verify_checkpoint(folder.path)


def start(spec: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retro_ml.sweep", str(spec), *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end_s
        time.sleep(0.05)


def state_of(folder: Path) -> str:
    try:
        return str(status(folder)["state"])
    except FileNotFoundError:
        return "waiting"


def test_a_killed_sweep_goes_on_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    base = BASE | {"total_timesteps": 2_000, "checkpointing": {"every_steps": 1_000}}
    spec = tmp_path / "killed.json"
    fields = {"base": base, "grid": {"seed": [1, 2]}, "output_dir": str(tmp_path)}
    spec.write_text(json.dumps(fields | {"max_concurrent": 1}))
    first, second = (folder / f"breakout-a2c-s{seed}" for seed in (1, 2))

    process = start(spec)
    wait_until((second / "checkpoints" / "step-1000").exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    assert status(first)["state"] == "completed"
    untouched = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}

    process = start(spec)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "begins: breakout-a2c-s2, going on from 1,000 agent steps" in errors
    assert "begins: breakout-a2c-s1" not in errors
    assert "Traceback" not in errors
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert [row["step"] for row in training_rows(second)] == [1000, 2000]
    assert status(folder)["state"] == "completed"
    board = json.loads((folder / "leaderboard.json").read_text())
    (combination,) = board["combinations"]
    scores = [training_rows(trial)[-1]["reward"] for trial in (first, second)]
    assert combination["score"] == pytest.approx(math.fsum(scores) / 2)
    assert not list(folder.rglob("*.lock"))


@pytest.mark.nightly
def test_a_killed_search_neither_forgets_nor_repeats(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "searched"
    spec = tmp_path / "searched.json"
    fields = {
        "base": BASE | {"total_timesteps": 1_000},
        "distributions": {"a2c.learning_rate": {"log_uniform": [1e-5, 1e-2]}},
        "samples": 4,
        "search": "optuna",
        "max_concurrent": 1,
        "output_dir": str(tmp_path),
    }
    spec.write_text(json.dumps(fields))
    trials = [folder / f"breakout-a2c-s0-t{number:04d}" for number in range(4)]

    def rate(trial: Path) -> float:
        return float(json.loads((trial / "config.json").read_text())["a2c"]["learning_rate"])

    process = start(spec)
    wait_until(lambda: state_of(trials[1]) == "running", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    before = [rate(trial) for trial in trials[:2]]
    assert state_of(trials[0]) == "completed"

    process = start(spec)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "Warning" not in errors
    assert "begins: breakout-a2c-s0-t0000" not in errors
    rates = [rate(trial) for trial in trials]
    assert rates[:2] == before
    assert len(set(rates)) == 4
    assert [state_of(trial) for trial in trials] == ["completed"] * 4
    board = json.loads((folder / "leaderboard.json").read_text())
    found = {one["experiment_id"]: one["settings"] for one in board["trials"]}
    assert found == {
        trial.name: {"a2c.learning_rate": rate} for trial, rate in zip(trials, rates, strict=True)
    }
