"""What is kept of a finished run: its games as CSV, all else as JSON beside it.

The JSON is written last: a run that has it is done.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarking.results import save_text

from learning.arithmetic import last_mean
from learning.matrix import Run

COLUMNS = ("step", "score", "frames", "time_s")
# Of a config: where the run lay and what it was called there is nobody's business.
_PRIVATE = ("output_dir", "experiment_id")


class BadGames(ValueError):
    """A file of games that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class Game:
    """One whole game of training."""

    step: int
    """Agent steps of all games when it ended."""
    score: float
    """Unclipped."""
    frames: int
    time_s: float | None
    """Seconds of training when it ended; None where nobody noted them."""


@dataclass(frozen=True, slots=True)
class Record:
    """A finished run."""

    facts: dict[str, Any]
    """The JSON."""
    games: tuple[Game, ...]

    @property
    def last_100_mean(self) -> float:
        """Mean score of the last 100 games."""
        return float(self.facts["last_100_mean"])

    @property
    def is_timed(self) -> bool:
        """Whether it was made by this program, taking turns, so that its clock can be compared."""
        return self.facts["origin"] == "trained"


def build_facts(
    run: Run,
    games: list[Game],
    *,
    origin: str,
    source: str | None = None,
    agent_steps: int,
    wall_clock_s: float | None = None,
    config: Mapping[str, Any] | None = None,
    precision: str,
    versions: Mapping[str, Any],
    commit: str | None = None,
    machine: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of a run.

    Args:
        run: which.
        games: all of its games.
        origin: trained, adopted or imported.
        source: where an imported one is from.
        agent_steps: that it was trained for.
        wall_clock_s: of training.
        config: its settings; None where they are only told in `source`.
        precision: that it computed in.
        versions: of what did the work.
        commit: of retro_ml, where that is known.
        machine: that it ran on, where that is known.
        evaluation: of 100 games, where there is a model.
    """
    public = None if config is None else {k: v for k, v in config.items() if k not in _PRIVATE}
    return {
        "run": run.name,
        "entry": run.entry.key,
        "seed": run.seed,
        "origin": origin,
        "source": source,
        "agent_steps": agent_steps,
        "games": len(games),
        "last_100_mean": last_mean([game.score for game in games]),
        "wall_clock_s": None if wall_clock_s is None else round(wall_clock_s, 1),
        "precision": precision,
        "evaluation": evaluation,
        "versions": dict(versions),
        "commit": commit,
        "machine": machine,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": public,
    }


def save_record(facts: dict[str, Any], games: list[Game], folder: Path) -> None:
    """Both files."""
    save_games(games, folder / f"{facts['run']}.csv")
    text = json.dumps(facts, indent=1, allow_nan=False)
    save_text(text + "\n", folder / f"{facts['run']}.json")


def is_done(run: Run, folder: Path) -> bool:
    """Whether the run's record is there."""
    return (folder / f"{run.name}.json").exists()


def load_record(run: Run, folder: Path) -> Record | None:
    """What is kept of a run; None if it is not done."""
    if not is_done(run, folder):
        return None
    facts = json.loads((folder / f"{run.name}.json").read_text(encoding="utf-8"))
    return Record(facts, tuple(load_games(folder / f"{run.name}.csv")))


def save_games(games: list[Game], path: Path) -> None:
    """Replaces the file in one step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for game in games:
        time_s = "" if game.time_s is None else round(game.time_s, 1)
        score = int(game.score) if game.score.is_integer() else game.score
        writer.writerow([game.step, score, game.frames, time_s])
    save_text(text.getvalue(), path)


def load_games(path: Path) -> list[Game]:
    """The games, in the order in which they ended. Raises BadGames."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS[:3] if name not in (reader.fieldnames or ())]
        if missing:
            raise BadGames(f"{path}: no column {', '.join(missing)} -> {', '.join(COLUMNS)}")
        return [_read_game(row, path, reader.line_num) for row in reader]


def _read_game(row: dict[str, Any], path: Path, line: int) -> Game:
    try:
        time_s = float(row["time_s"]) if row.get("time_s") else None
        return Game(int(row["step"]), float(row["score"]), int(row["frames"]), time_s)
    except (TypeError, ValueError) as error:
        raise BadGames(f"{path} line {line}: {error} -> {', '.join(COLUMNS)}") from None


def describe_commit(root: Path) -> str | None:
    """The commit of the checkout, "+ changes" where more than docs/ differs; None without git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":!docs")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} + changes" if changed else head


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()
