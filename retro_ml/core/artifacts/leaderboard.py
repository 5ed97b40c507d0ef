"""leaderboard.csv and leaderboard.json: how the trials of a sweep stand, and who is ahead.

A combination is what all trials share that differ in nothing but their seed. Combinations and
trials are ranked within their game by their score, the mean of a trial's last 100 games; equal
scores share a place. A failed trial has no place, and does not count for its combination. One that
is still under way, or was interrupted, counts as long as none of its combination has ended.
"""

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from retro_ml.core.artifacts.storage import replace_atomically
from retro_ml.core.experiments.sweep_paths import SweepPaths

Normalise = Callable[[str, float], float | None]
"""The human-normalised score of a game, by its ROM's name."""

STATES = ("waiting", "running", "completed", "stopped", "interrupted", "failed")
"""stopped: by the scheduler, for good; interrupted: the next call goes on."""
_ENDED = frozenset({"completed", "stopped"})
_NO_SETTINGS = frozenset({"game_id", "algorithm", "seed"})
_COLUMNS = (
    "level",
    "rank",
    "game",
    "algorithm",
    "settings",
    "seed",
    "trials",
    "counted",
    "score",
    "score_min",
    "score_max",
    "human_normalised",
    "games",
    "agent_steps",
    "state",
    "experiment_id",
    "error",
)


@dataclass(slots=True)
class Standing:
    """How one trial stands."""

    experiment_id: str
    game: str
    """With its protocol: scores of two protocols cannot be compared."""
    rom: str
    algorithm: str
    seed: int
    values: dict[str, Any]
    """The swept fields."""
    total_timesteps: int
    state: str = "waiting"
    agent_steps: int = 0
    score: float | None = None
    games: int = 0
    error: str | None = None
    steps_per_s: float | None = field(default=None, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The swept fields but for game, algorithm and seed."""
        return {path: value for path, value in self.values.items() if path not in _NO_SETTINGS}


@dataclass(frozen=True, slots=True)
class Combination:
    """The trials that differ in their seed alone."""

    game: str
    algorithm: str
    settings: dict[str, Any]
    trials: tuple[Standing, ...]

    @property
    def scores(self) -> list[float]:
        """Of the trials that count: those that ended, or else those that have not failed."""
        found = [trial for trial in self.trials if trial.score is not None]
        ended = [trial for trial in found if trial.state in _ENDED]
        counted = ended or [trial for trial in found if trial.state != "failed"]
        return [trial.score for trial in counted if trial.score is not None]

    @property
    def score(self) -> float | None:
        """Mean over the trials that count; None where there is none."""
        return fmean(self.scores) if self.scores else None


def rank_trials(standings: Iterable[Standing]) -> list[Standing]:
    """By game, then the best first; last those that failed or have no score."""

    def order(one: Standing) -> tuple[str, bool, float, str]:
        return one.game, one.state == "failed", _descending(one.score), one.experiment_id

    return sorted(standings, key=order)


def rank_combinations(standings: Iterable[Standing]) -> list[Combination]:
    """By game, then the best first."""
    groups: defaultdict[tuple[str, str, str], list[Standing]] = defaultdict(list)
    for one in standings:
        # Exactly: as words two draws may look alike.
        exact = json.dumps(one.settings, sort_keys=True, default=str)
        groups[one.game, one.algorithm, exact].append(one)
    combinations = [
        Combination(game, algorithm, trials[0].settings, tuple(trials))
        for (game, algorithm, _), trials in groups.items()
    ]
    return sorted(combinations, key=lambda one: (one.game, _descending(one.score), one.algorithm))


def settings_words(settings: dict[str, Any]) -> str:
    """`ppo.clip 0.2, ppo.gamma 0.99`; numbers to four digits."""
    return ", ".join(f"{path} {_word(value)}" for path, value in settings.items())


def save_leaderboard(
    standings: Iterable[Standing], paths: SweepPaths, *, normalise: Normalise
) -> None:
    """Replaces both files. Raises ArtifactError."""
    trials, combinations = rank_trials(standings), rank_combinations(standings)
    rows = [
        *_ranked([_combination_row(one, normalise) for one in combinations]),
        *_ranked([_trial_row(one, normalise) for one in trials]),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_atomically(
        paths.leaderboard_csv_path, lambda file: file.write(text.getvalue().encode())
    )
    document = {
        "sweep": paths.name,
        "combinations": [
            {**_without_level(row), "settings": one.settings}
            for row, one in zip(rows, combinations, strict=False)
        ],
        "trials": [
            {**_without_level(row), "settings": one.settings}
            for row, one in zip(rows[len(combinations) :], trials, strict=True)
        ],
    }
    encoded = json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"
    replace_atomically(paths.leaderboard_json_path, lambda file: file.write(encoded))


def mean_normalised(combination: Combination, normalise: Normalise) -> float | None:
    """Where 0 is a random agent and 1 a human; None for a game without figures."""
    score = combination.score
    return None if score is None else normalise(combination.trials[0].rom, score)


def _combination_row(one: Combination, normalise: Normalise) -> dict[str, Any]:
    scores = one.scores
    return {
        "level": "combination",
        "game": one.game,
        "algorithm": one.algorithm,
        "settings": settings_words(one.settings),
        "trials": len(one.trials),
        "counted": len(scores),
        "score": one.score,
        "score_min": min(scores, default=None),
        "score_max": max(scores, default=None),
        "human_normalised": mean_normalised(one, normalise),
        "games": sum(trial.games for trial in one.trials),
        "agent_steps": sum(trial.agent_steps for trial in one.trials),
        "state": _common_state(one.trials),
    }


def _trial_row(one: Standing, normalise: Normalise) -> dict[str, Any]:
    return {
        "level": "trial",
        "game": one.game,
        "algorithm": one.algorithm,
        "settings": settings_words(one.settings),
        "seed": one.seed,
        "trials": 1,
        "counted": int(one.score is not None and one.state != "failed"),
        "score": one.score,
        "human_normalised": None if one.score is None else normalise(one.rom, one.score),
        "games": one.games,
        "agent_steps": one.agent_steps,
        "state": one.state,
        "experiment_id": one.experiment_id,
        "error": one.error,
    }


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With their place within the game, the best first; rows that count for nothing have none."""
    counted: Counter[str] = Counter()
    above: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["counted"]:
            game = row["game"]
            counted[game] += 1
            row["rank"] = counted[game]
            last = above.get(game)
            if last is not None and last["score"] == row["score"]:  # equal ones share a place
                row["rank"] = last["rank"]
            above[game] = row
    return rows


def _without_level(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in _COLUMNS if name in row and name != "level"}


def _common_state(trials: tuple[Standing, ...]) -> str:
    """`completed`, or `completed 1, failed 1`."""
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    found = {state: count for state, count in counts.items() if count}
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{state} {count}" for state, count in found.items())


def _descending(score: float | None) -> float:
    return math.inf if score is None else -score


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
