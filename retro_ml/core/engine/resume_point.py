"""What an earlier call has left of a run, and where the run goes on.

That is the newest whole checkpoint whose rows are there too, or one that was adopted from another
run (`checkpoint_files.adopt_checkpoint`), whose rows are the other's.
"""

from __future__ import annotations

import errno
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.checkpoint_files import (
    ADOPTED,
    CheckpointFolder,
    choose_checkpoint,
    find_checkpoints,
    load_manifest,
    set_newer_aside,
)
from retro_ml.core.artifacts.metrics_file import read_last_whole_step
from retro_ml.core.engine.run_storage import RunStorage
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions

MAX_BYTES = 1_000_000
"""Of config.json and status.json, which take a few thousand."""


class NoResumePoint(Exception):
    """There are checkpoints, but none that the run can go on from; the message says why."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What an earlier call has left to go on from."""

    checkpoint: CheckpointFolder | None
    """None where the run begins at its start."""
    faults: list[str]
    """What is wrong with newer checkpoints."""

    def is_end(self, config: ExperimentConfig, options: RunOptions) -> bool:
        """Whether the run was killed after its last checkpoint, before it could say so."""
        if self.checkpoint is None:
            return False
        if self.checkpoint.agent_steps >= config.total_timesteps:
            return True
        return _is_enough(load_manifest(self.checkpoint.path).get("score"), options)


def find_resume_point(config: ExperimentConfig, storage: RunStorage | None) -> ResumePoint:
    """Chooses the checkpoint; newer ones are set aside, since the run makes them anew.

    Raises:
        NoResumePoint: the rows that belong to the checkpoints are lost, and were they begun anew,
            so would be the checkpoints.
        StorageError: storage does not answer.
        OSError: a file cannot be read, or the folder not written.
    """
    rows, folder = config.paths.metrics_csv_path, config.checkpoints_dir
    # After a power failure the rows may be fewer than those of the newest checkpoint.
    reached, damage = read_last_whole_step(rows)
    checkpoint, faults = choose_checkpoint(folder, at_most=reached)
    if storage is not None and not _is_adopted(checkpoint):
        # Those of another node are only there. What an adopted one has replaced may be there still.
        checkpoint, worse = storage.fetch_checkpoint(checkpoint, at_most=reached)
        faults += worse
    if checkpoint is None:
        if damage is not None and find_checkpoints(folder):
            raise NoResumePoint(damage)
        # One alone may be of an attempt that died before it could tell of it: the next one began
        # anew, and cut the rows. It is set aside, and stays until the run has come that far.
        several = len(find_checkpoints(folder)) > 1
        if several and choose_checkpoint(folder, at_most=math.inf)[0] is not None:
            raise NoResumePoint(f"{rows} ends at {reached:,} agent steps")
    set_newer_aside(folder, checkpoint)
    return ResumePoint(checkpoint, faults)


def load_status(config: ExperimentConfig) -> dict[str, Any]:
    """Empty where the run ended before its first one, or where there is no telling."""
    try:
        status = json.loads(read_small(config.paths.status_path))
        return status if isinstance(status.get("step"), int) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def is_finished(status: dict[str, Any], config: ExperimentConfig, options: RunOptions) -> bool:
    """Whether a run of this status has nothing left to do."""
    if status.get("state") != "completed":
        return False
    return status["step"] >= config.total_timesteps or _is_enough(status.get("reward"), options)


def read_small(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """A regular file of ours; a pipe would be waited for. Raises OSError."""
    if not path.is_file() or path.stat().st_size > max_bytes:
        raise OSError(errno.EINVAL, f"no regular file of up to {max_bytes:,} bytes")
    return path.read_bytes()


def _is_adopted(checkpoint: CheckpointFolder | None) -> bool:
    return checkpoint is not None and load_manifest(checkpoint.path).get(ADOPTED) is True


def _is_enough(score: Any, options: RunOptions) -> bool:
    enough = options.stop_score
    return isinstance(score, int | float) and enough is not None and score >= enough
