"""The leaderboard's places; what it ranks is tested with the sweep engine."""

import csv
from pathlib import Path

import pytest

from retro_ml.core.artifacts.leaderboard import Standing, save_leaderboard
from retro_ml.core.experiments.sweep_paths import SweepPaths

pytestmark = pytest.mark.unit


class CountedScore(float):
    """A score that counts how often it is compared with another."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedScore.comparisons += isinstance(other, CountedScore)
        return float(self) == other

    __hash__ = float.__hash__


def test_a_place_takes_one_comparison_however_many_trials_there_are(tmp_path: Path) -> None:
    paths = SweepPaths(str(tmp_path), "s")
    paths.sweep_dir.mkdir()
    standings = [
        Standing(
            f"{game}-{number:03}",
            game,
            game,
            "PPO",
            number,
            {},
            total_timesteps=20,
            state="completed",
            score=CountedScore(number // 2),
        )
        for game in ("pong", "qbert")
        for number in range(100)
    ]
    save_leaderboard(standings, paths, normalise=lambda game, score: None)
    assert CountedScore.comparisons < len(standings)

    with paths.leaderboard_csv_path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["level"] == "trial"]
    for game in ("pong", "qbert"):
        ranks = [int(row["rank"]) for row in rows if row["game"] == game]
        assert ranks == [1 + 2 * (number // 2) for number in range(100)]
