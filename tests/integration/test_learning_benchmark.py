"""A short run of Stable-Baselines3 by the learning benchmark, and its evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from learning.matrix import load_matrix, order_runs
from learning.records import load_games
from learning.run_folders import read_finished
from learning.sb3_run import build_schedule
from learning.train import keep_evaluation

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
AGENT_STEPS = 2_048


def run_module(*words: str) -> str:
    paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-P", "-m", *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_step_size_falls_over_the_horizon_and_not_over_the_run() -> None:
    schedule = build_schedule(2.5e-4, 500_000, 10_000_000)

    assert schedule(1.0) == 2.5e-4
    assert schedule(0.5) == pytest.approx(2.5e-4 * 0.975)
    assert schedule(0.0) == pytest.approx(2.5e-4 * 0.95)


@pytest.mark.nightly
def test_a_run_of_stable_baselines3_is_trained_read_and_evaluated(tmp_path: Path) -> None:
    run = next(one for one in order_runs(load_matrix()) if one.entry.side == "sb3")
    arguments = ["--folder", str(tmp_path), "--game", run.entry.game, "--seed", str(run.seed)]
    arguments += ["--agent-steps", str(AGENT_STEPS), "--schedule-agent-steps", "10000000"]

    run_module("learning.sb3_run", *arguments)
    finished = read_finished(run, tmp_path)

    assert finished is not None
    assert finished.agent_steps == AGENT_STEPS
    assert finished.games == load_games(tmp_path / "games.csv")
    assert len(finished.games) >= 4
    steps = [game.step for game in finished.games]
    assert steps == sorted(steps)
    for game in finished.games:
        # Whole games of five lives, not single lives; four frames are an agent step.
        assert game.frames > 4 * 5 * 10
        assert 0 < game.step <= AGENT_STEPS
        assert game.time_s is not None
        assert 0 < game.time_s <= finished.wall_clock_s + 0.1

    model = str(tmp_path / "model.zip")
    printed = run_module(
        "learning.sb3_evaluate", "--model", model, "--run", run.name, "--episodes", "2"
    )
    kept: dict[str, Any] = keep_evaluation(json.loads(printed))
    assert kept["protocol"]["name"] == "noop"
    assert len(kept["scores"]) == 2
    assert kept["mean"]["value"] == sum(kept["scores"]) / 2
