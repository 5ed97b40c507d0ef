"""Whether a finished run's models are those of its end and of its best evaluation.

Killed, or told nothing more by a lost node, between a checkpoint and its model, a driver leaves an
earlier one behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.checkpoint_files import ADOPTED, CheckpointError, load_manifest
from retro_ml.core.artifacts.model_archive import (
    ArchiveError,
    read_agent_steps,
    read_last_evaluation,
)
from retro_ml.core.artifacts.remote_folder import StorageError
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.training_history import TrainingHistory
from retro_ml.core.engine.run_storage import RunStorage
from retro_ml.core.experiments.config import ExperimentConfig


def find_model_faults(
    config: ExperimentConfig, storage: RunStorage | None, *, agent_steps: int
) -> list[str]:
    """What is wrong with model.zip, and with best_model.zip where that could be made again.

    Args:
        config: of a finished run.
        storage: where its checkpoints are too.
        agent_steps: at its end.
    """
    faults = [_find_fault(config.model_path, agent_steps)]
    best = _find_best(config, agent_steps)
    if best is not None and _has_own_checkpoint(config, storage, best["agent_steps"]):
        faults.append(_find_best_fault(config.paths.best_model_path, best["mean_score"]))
    return [fault for fault in faults if fault is not None]


def _find_fault(path: Path, agent_steps: int) -> str | None:
    if not path.exists():
        return f"{path} is gone"
    try:
        found = read_agent_steps(path)
    except ArchiveError as error:
        return str(error)
    if found == agent_steps:
        return None
    return f"{path} is of {found:,} agent steps instead of {agent_steps:,}"


def _find_best_fault(path: Path, score: float) -> str | None:
    """A higher score is no fault: PBT lets a trial go back, and its best model stays."""
    if not path.exists():
        return f"{path} is gone"
    try:
        found = read_last_evaluation(path)
    except ArchiveError as error:
        return str(error)
    return f"{path} scored {found:g} instead of {score:g}" if found < score else None


def _find_best(config: ExperimentConfig, agent_steps: int) -> dict[str, Any] | None:
    if config.evaluation.every_steps is None:
        return None
    try:
        return TrainingHistory.load(config, up_to_step=agent_steps).best_evaluation
    except ArtifactError:  # a row is damaged: there is no telling
        return None


def _has_own_checkpoint(
    config: ExperimentConfig, storage: RunStorage | None, agent_steps: int
) -> bool:
    """Whether there is one that is no other run's, here or in storage."""
    folder = config.paths.checkpoint_dir(agent_steps)
    try:
        if folder.exists() or storage is None:
            manifest = load_manifest(folder)
        else:
            manifest = storage.fetch_manifest(agent_steps)
    except (CheckpointError, StorageError, OSError):
        return False
    return manifest.get(ADOPTED) is not True
