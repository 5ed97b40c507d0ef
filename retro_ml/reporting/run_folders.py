"""Run folders: found below a folder, and each one's state told from its two small files.

Nothing here is trusted: a file may be missing, torn, foreign or hostile, and then the fault is told
in words. Only config.json, status.json and who holds the run are read, so a thousand runs take a
moment.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.given_runs import MAX_DEPTH
from retro_ml.core.engine.run_claim import is_held
from retro_ml.core.engine.run_lock import find_holder
from retro_ml.core.experiments.run_paths import RunPaths

_MAX_BYTES = 1_000_000
_ANY = RunPaths(output_dir="/", experiment_id="any")
_UNDER_WAY = frozenset({"starting", "running"})
STATES = (
    "starting", "running", "completed", "stopped", "interrupted", "failed", "lost", "unknown"
)  # fmt: skip
"""`stopped`: by the scheduler of its sweep, for good. `lost`: status.json says that it is under
way, but the process that said so is gone."""


class FileFault(Exception):
    """A run's file cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run at a glance. What its files do not tell, or tell wrongly, is None."""

    paths: RunPaths
    name: str
    """The experiment's id; the folder's name where that is all there is."""
    state: str
    """One of STATES."""
    game: str | None
    """As the config spells it."""
    algorithm: str | None
    seed: int | None
    step: int | None
    """Agent steps."""
    total_timesteps: int | None
    score: float | None
    """Mean score of the last 100 training games."""
    games: int | None
    started_at: datetime | None
    updated_at: datetime | None
    error: str | None
    faults: tuple[str, ...] = ()
    """What of its files could not be read."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.paths.experiment_dir


def is_of_summary(name: str) -> bool:
    """Whether `summarize` reads a file, by its name in the run's folder."""
    return name in {path.name for path in (_ANY.config_path, _ANY.status_path, _ANY.claim_path)}


def find_runs(folder: Path) -> Iterator[RunPaths]:
    """The runs in `folder` and below, by name; `folder` itself may be one.

    Links and hidden folders are not followed. Raises OSError where `folder` cannot be read.
    """
    if _is_run(folder):
        yield _paths(folder)
        return
    yield from _walk(folder, depth=MAX_DEPTH)


def summarize(paths: RunPaths) -> RunSummary:
    """What config.json, status.json, and the lock or the claim say."""
    faults: list[str] = []
    config = _load(paths.config_path, faults)
    status = _load(paths.status_path, faults)
    state = status.get("state") if status.get("state") in STATES else "unknown"
    if state in _UNDER_WAY and not _is_held(paths):
        state = "lost"
    return RunSummary(
        paths=paths,
        name=_text(config.get("experiment_id")) or paths.experiment_dir.name,
        state=str(state),
        game=_text(config.get("game_id")),
        algorithm=_text(config.get("algorithm")),
        seed=_whole(config.get("seed")),
        step=_whole(status.get("step")),
        total_timesteps=_whole(status.get("total_timesteps"))
        or _whole(config.get("total_timesteps")),
        score=_number(status.get("reward")),
        games=_whole(status.get("games")),
        started_at=_moment(status.get("started_at")),
        updated_at=_moment(status.get("updated_at")),
        error=_text(status.get("error")),
        faults=tuple(faults),
    )


def load_json(path: Path, *, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """A JSON object from a regular file. Raises FileFault."""
    try:
        if not path.is_file():  # a pipe would be waited for
            reason = "is missing" if not os.path.lexists(path) else "is no regular file"
            raise FileFault(f"{path.name} {reason}")
        if path.stat().st_size > max_bytes:
            raise FileFault(f"{path.name} is larger than {max_bytes:,} bytes")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise FileFault(f"{path.name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FileFault(f"{path.name} is damaged: it is no JSON") from None
    if not isinstance(document, dict):
        raise FileFault(f"{path.name} is damaged: it is no JSON object")
    return document


def _is_held(paths: RunPaths) -> bool:
    """By its lock; a run that was fetched from storage has a claim instead."""
    if os.path.lexists(paths.lock_path):
        return find_holder(paths.lock_path) is not None
    return is_held(paths.claim_path)


def _paths(folder: Path) -> RunPaths:
    folder = Path(os.path.abspath(folder))
    return RunPaths(output_dir=str(folder.parent), experiment_id=folder.name)


def _is_run(folder: Path) -> bool:
    paths = _paths(folder)
    return os.path.lexists(paths.config_path) and (
        os.path.lexists(paths.status_path) or os.path.lexists(paths.metrics_csv_path)
    )


def _walk(folder: Path, *, depth: int) -> Iterator[RunPaths]:
    with os.scandir(folder) as entries:
        below = sorted(
            entry.path
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    for path in map(Path, below):
        if _is_run(path):
            yield _paths(path)
        elif depth > 1:
            try:
                yield from _walk(path, depth=depth - 1)
            except OSError:  # somebody else's, beside the runs, or gone meanwhile
                continue


def _load(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return load_json(path)
    except FileFault as fault:
        faults.append(str(fault))
        return {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def describe_age(moment: datetime | None, *, now: datetime) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d` ago, without the word; `-` where it is unknown."""
    if moment is None:
        return "-"
    seconds = max(0.0, (now - moment).total_seconds())
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{int(seconds)} s"


def align_table(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of a table of text; the first `left` columns to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
