"""What lies in the folder of a run under way or finished, ours or Stable-Baselines3's."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from learning.matrix import Entry, MatrixError, Run, build_config, order_runs
from learning.records import Game, Record, load_games, load_record
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.differences import describe_differences
from retro_ml.core.experiments.run_paths import RunPaths

LEAST_SHARE, MOST_SHARE = 0.9, 1.1
"""Where the last game of a run may lie, as a share of the agent steps that were asked for."""
SB3_GAMES, SB3_MODEL, SB3_DONE = "games.csv", "model.zip", "done.json"
"""The files of a run of Stable-Baselines3; the last is written last."""


class BadRunFolder(ValueError):
    """A folder that is not a finished run of the matrix; the message says why."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run's own account."""

    games: list[Game]
    agent_steps: int
    wall_clock_s: float
    precision: str
    config: Mapping[str, Any]
    versions: Mapping[str, Any]


def read_finished(run: Run, folder: Path) -> Finished | None:
    """The run in `folder`; None if it is not finished."""
    if run.entry.side == "sb3":
        return _read_sb3(folder)
    if not (folder / "config.json").exists():
        return None
    return read_retro_ml(folder)


def read_retro_ml(folder: Path) -> Finished | None:
    """A run of retro_ml; None if it is not completed. Raises BadRunFolder."""
    paths = RunPaths(str(folder.parent), folder.name)
    if not paths.status_path.exists():
        return None
    status = json.loads(paths.status_path.read_text(encoding="utf-8"))
    if status["state"] != "completed" or not paths.model_path.exists():
        return None
    config = load_config(folder)
    games, ends = _read_metrics(paths.metrics_csv_path)
    return Finished(
        games=games,
        agent_steps=status["step"],
        wall_clock_s=ends[-1][1],
        precision=config.resources.precision,
        config=config.model_dump(mode="json"),
        versions=status["versions"],
    )


def load_config(folder: Path) -> ExperimentConfig:
    """config.json. Raises BadRunFolder."""
    path = folder / "config.json"
    try:
        return ExperimentConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRunFolder(f"{path}: {error.strerror} -> the folder of a run") from None
    except ValidationError as error:
        raise BadRunFolder(f"{path}: {'; '.join(config_faults(error))}") from None


def find_entry(config: ExperimentConfig, entries: tuple[Entry, ...]) -> Run:
    """The run of the matrix that `config` is. Raises BadRunFolder with what differs otherwise."""
    nearest: tuple[list[str], Run] | None = None
    for run in order_runs(entries):
        if run.entry.side != "retro_ml":
            continue
        differences = _compare(config, run)
        if not differences:
            return run
        if nearest is None or len(differences) < len(nearest[0]):
            nearest = differences, run
    if nearest is None:
        raise BadRunFolder("the matrix has no run of retro_ml")
    told = "; ".join(nearest[0])
    raise BadRunFolder(f"no run of the matrix has this config; nearest, {nearest[1].name}: {told}")


def check_records(entries: tuple[Entry, ...], data: Path) -> None:
    """What is kept is of the matrix as it is now: it may have been changed since.

    Raises MatrixError with what differs.
    """
    faults = []
    for run in order_runs(entries):
        record = load_record(run, data)
        if record is None:
            continue
        differences = _compare_record(record, run)
        if differences:
            told = "; ".join(differences)
            faults.append(f"{run.name} is kept with another config: {told} -> remove its .json")
    if faults:
        raise MatrixError(faults)


def is_length(agent_steps: int, entry: Entry) -> bool:
    """Whether a run, or its last game, ends where the entry's runs do."""
    return LEAST_SHARE <= agent_steps / entry.agent_steps <= MOST_SHARE


def read_progress(run: Run, folder: Path) -> int:
    """Agent steps of a run so far, 0 where nothing is known."""
    try:
        if run.entry.side == "sb3":
            games = load_games(folder / SB3_GAMES)
            return games[-1].step if games else 0
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        return int(status["step"])
    except (OSError, ValueError, KeyError):  # not begun, or being written
        return 0


def read_import(path: Path) -> dict[int, list[Game]]:
    """Games by seed, from a CSV of `seed,agent_steps,score,frames`. Raises BadRunFolder."""
    found: dict[int, list[Game]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                game = Game(int(row["agent_steps"]), float(row["score"]), int(row["frames"]), None)
                found.setdefault(int(row["seed"]), []).append(game)
    except OSError as error:
        raise BadRunFolder(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        wanted = "columns seed, agent_steps, score, frames, a game each line"
        raise BadRunFolder(f"{path}: {type(error).__name__} {error} -> {wanted}") from None
    return found


def _compare(stored: ExperimentConfig, run: Run) -> list[str]:
    try:
        wanted = build_config(run, output_dir=stored.output_dir)
    except MatrixError as error:
        return error.faults
    wanted = wanted.model_copy(update={"experiment_id": stored.experiment_id})
    differences = describe_differences(stored, wanted)
    if wanted.total_timesteps > stored.total_timesteps:  # to a run itself, that is no difference
        there, now = stored.total_timesteps, wanted.total_timesteps
        differences.append(f"total_timesteps: {there:,} there, {now:,} now")
    return differences


def _compare_record(record: Record, run: Run) -> list[str]:
    steps, config = record.facts["agent_steps"], record.facts["config"]
    if run.entry.side == "retro_ml" and config is not None:
        named = {**config, "experiment_id": run.name, "output_dir": "runs"}
        try:
            return _compare(ExperimentConfig.model_validate(named), run)
        except ValidationError as error:
            return config_faults(error)
    if is_length(steps, run.entry):
        return []
    return [f"agent_steps: {steps:,} there, {run.entry.agent_steps:,} now"]


def _read_metrics(path: Path) -> tuple[list[Game], list[tuple[int, float]]]:
    """Games, and the ends of the iterations as agent steps and seconds."""
    rows = list(read_rows(path))
    ends = [(0, 0.0)]
    ends += [(r["step"], r["time_total_s"]) for r in rows if r["type"] == "training_step"]
    steps, seconds = zip(*ends, strict=True)
    games = [
        Game(row["step"], row["reward"], row["frames"],
             float(np.interp(row["step"], steps, seconds)))
        for row in rows if row["type"] == "episode_finished"
    ]  # fmt: skip
    return games, ends


def _read_sb3(folder: Path) -> Finished | None:
    done = folder / SB3_DONE
    if not done.exists():
        return None
    facts = json.loads(done.read_text(encoding="utf-8"))
    return Finished(
        games=load_games(folder / SB3_GAMES),
        agent_steps=facts["agent_steps"],
        wall_clock_s=facts["wall_clock_s"],
        precision="fp32",
        config=facts["config"],
        versions=facts["versions"],
    )
