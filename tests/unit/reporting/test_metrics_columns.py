"""metrics.csv as columns."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retro_ml.reporting.metrics_columns import read_metrics, smooth, thin

pytestmark = pytest.mark.unit

MakeRun = Callable[..., Path]


def test_rows_by_their_kind(make_run: MakeRun) -> None:
    metrics = read_metrics(make_run("a", scores=[1, 5, 3]) / "metrics.csv")

    assert metrics.fault is None
    assert metrics.scores.tolist() == [1, 5, 3]
    assert metrics.games["step"].tolist() == [100, 200, 300]
    assert metrics.iterations["reward"].tolist() == [1, 3, 3]
    assert np.isnan(metrics.iterations["epsilon"]).all()
    assert metrics.agent_steps == 300


def test_of_games_only_what_is_used_is_kept(make_run: MakeRun) -> None:
    """A run has a hundred thousand of them, a report thousands of runs."""
    metrics = read_metrics(make_run("a", scores=[1, 5, 3]) / "metrics.csv")

    assert metrics.games.keys() == {"step", "reward"}
    assert not {"length", "iteration", "frames", "games"} & metrics.iterations.keys()


def test_the_score_at_a_step_is_the_mean_of_the_last_hundred_games(make_run: MakeRun) -> None:
    scores = list(range(150))
    metrics = read_metrics(make_run("a", scores=scores) / "metrics.csv")

    at = metrics.score_at(np.array([99.0, 100.0, 250.0, 15_000.0]))

    assert np.isnan(at[0])
    assert at[1:].tolist() == [0.0, 0.5, np.mean(scores[50:])]
    # The rows themselves say the same.
    steps = metrics.iterations["step"]
    assert np.allclose(metrics.score_at(steps), metrics.iterations["reward"])


def test_a_torn_last_line_is_left_out(make_run: MakeRun) -> None:
    path = make_run("a", scores=[1, 2]) / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-20])

    metrics = read_metrics(path)

    assert metrics.fault is None
    assert metrics.scores.tolist() == [1, 2]
    assert metrics.agent_steps == 100


@pytest.mark.parametrize("damage", [b"\xff\x00,,,\n", b"1,2\n", b"nonsense\n"])
def test_rows_before_a_damaged_line_are_kept_and_the_damage_is_told(
    make_run: MakeRun, damage: bytes
) -> None:
    path = make_run("a", scores=[1, 2]) / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))

    metrics = read_metrics(path)

    assert metrics.fault is not None
    assert metrics.fault.startswith("metrics.csv line 4 is damaged")
    assert metrics.scores.tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"type,step\n", b"no newline"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)

    assert read_metrics(path).agent_steps == 0


def test_a_missing_file_and_a_folder_in_its_place(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv").fault == "metrics.csv is missing"
    assert read_metrics(tmp_path).fault is not None


def test_thinning_keeps_the_ends() -> None:
    assert thin(3, points=5).tolist() == [0, 1, 2]
    assert thin(1000, points=4).tolist() == [0, 333, 666, 999]


def test_smoothing_takes_means_of_stretches_and_leaves_empty_cells_out() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])

    smoothed = smooth(values, points=3)

    assert smoothed[:2].tolist() == [2.0, 5.0]
    assert np.isnan(smoothed[2])
