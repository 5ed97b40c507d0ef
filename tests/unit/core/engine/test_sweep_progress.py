"""What the user sees of a sweep."""

import io

import pytest
from rich.console import Console

from retro_ml.core.engine.sweep_board import SweepBoard
from retro_ml.core.engine.sweep_progress import (
    LiveSweep,
    PlainSweep,
    SweepProgress,
    build_sweep_progress,
)
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.engine.sweep_text import SweepView, summary_lines
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig

pytestmark = pytest.mark.unit


def normalise(game: str, score: float) -> float | None:
    return score / 10 if game == "pong" else None


@pytest.fixture
def board() -> SweepBoard:
    """12 trials: two completed, two running, one failed."""
    config = SweepConfig(
        name="s",
        base={"total_timesteps": 1_000},
        grid={"game_id": ["pong", "qbert"], "algorithm": ["PPO", "A2C"], "seed": [1, 2, 3]},
    )
    board = SweepBoard(config, normalise=normalise)
    for seed, score in ((1, 2.0), (2, 4.0)):
        one = board[f"pong-ppo-s{seed}"]
        one.state, one.score, one.games = "completed", score, 7
        board.set_steps(one, 1_000)
    for seed, score in ((1, 5.0), (2, None)):
        one = board[f"qbert-a2c-s{seed}"]
        one.state, one.score, one.steps_per_s = "running", score, 250.0
        board.set_steps(one, 500)
    board["pong-a2c-s1"].state = "failed"
    board["pong-a2c-s1"].error = "the learner died"
    return board


def result(board: SweepBoard, state: str = "failed", error: str | None = None) -> SweepResult:
    return SweepResult(
        state=state,
        error=error,
        exit_code=1,
        sweep_id="s",
        paths=board.config.paths,
        standings=tuple(board.standings.values()),
        took_s=65.0,
    )


def test_the_facts_of_the_whole(board: SweepBoard) -> None:
    facts = SweepView(board).facts()
    assert facts == ["3 of 12 trials ended", "2 running", "1 failed", "3,000 agent steps (25 %)"]


def test_the_summary_has_the_table_and_what_failed(board: SweepBoard) -> None:
    lines = summary_lines(result(board), normalise=normalise)
    words = "12 trials in 1 min 05 s: 7 waiting, 2 running, 2 completed, 1 failed"
    assert lines[0] == ("failed", f"sweep s, {words}")
    table = [text for heading, text in lines if heading == ""]
    assert table[0].split() == (
        ["game", "algorithm", "score", "of", "seeds", "human", "=", "1", "trials", "state"]
    )
    assert table[1].split() == [
        "pong",
        "PPO",
        "3.0",
        "2.0",
        "to",
        "4.0",
        "0.300",
        "2",
        "of",
        "3",
        "completed,",
        "waiting",
    ]
    assert table[3].split()[:3] == ["qbert", "A2C", "5.0"]
    assert len(table) == 5
    assert ("failed", "pong-a2c-s1: the learner died") in lines
    assert lines[-1][1].endswith("leaderboard.csv")


def test_plain_lines_tell_of_each_trial(board: SweepBoard) -> None:
    stream = io.StringIO()
    progress = build_sweep_progress(board, RunOptions(), stream)
    assert isinstance(progress, PlainSweep)
    with progress:
        progress.trial_began(board["qbert-a2c-s1"])
        progress.trial_began(board["pong-ppo-s3"])
        progress.trial_ended(board["pong-ppo-s1"])
        progress.trial_ended(board["pong-a2c-s1"])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sweep s: 12 trials"
    assert lines[2] == "begins: qbert-a2c-s1, going on from 500 agent steps"
    assert lines[3] == "begins: pong-ppo-s3"
    assert lines[4] == "completed: pong-ppo-s1: score 2.0, mean of 7 games, 1,000 agent steps"
    assert lines[6] == "failed: pong-a2c-s1: the learner died"


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [8, 40])
def test_the_live_table_fits_the_terminal(board: SweepBoard, width: int, height: int) -> None:
    for one in board.standings.values():
        one.state = "running"
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    progress = LiveSweep(SweepView(board), console)
    console.print(progress._render())
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 7)
    shown = sum("qbert-a2c" in line or "pong" in line or "qbert-ppo" in line for line in lines)
    assert shown == (12 if height == 40 else 3)


def test_the_live_table_names_each_running_trial_and_says_that_it_stops(board: SweepBoard) -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, height=30, force_terminal=True, color_system=None)
    progress = LiveSweep(SweepView(board), console)
    console.print(progress._render())
    text = file.getvalue()
    assert "qbert-a2c-s1" in text
    assert "score 5.0  250 steps/s" in text
    assert "pong" not in text
    progress.announce_stop()
    console.print(progress._render())
    assert "stopping after each trial's iteration" in file.getvalue()


def test_quiet_is_quiet(board: SweepBoard) -> None:
    stream = io.StringIO()
    progress = build_sweep_progress(board, RunOptions(progress="quiet"), stream)
    assert type(progress) is SweepProgress
    with progress:
        progress.trial_ended(board["pong-ppo-s1"])
        progress.summarize_sweep(result(board))
    assert stream.getvalue() == ""
