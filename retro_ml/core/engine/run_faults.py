"""Why a run cannot be made or gone on with, in words that say what to do instead."""

from __future__ import annotations

from retro_ml.core.engine.run_lock import RunLocked
from retro_ml.core.experiments.config import ExperimentConfig


class BadRunFolder(ValueError):
    """The run cannot be made or gone on with; the message says what to do instead."""

    exit_code = 2


class BadStorage(BadRunFolder):
    """The storage that `output_dir` names cannot be used."""

    exit_code = 3


class BadMachine(BadRunFolder):
    """This machine cannot read or write what is there, for now."""

    exit_code = 3


def unreadable(config: ExperimentConfig, reason: str) -> BadRunFolder:
    """Its config.json is no config."""
    return BadRunFolder(
        f"experiment_id: {config.experiment_id} -> {config.paths.config_path} cannot be read "
        f"({reason}); mend it, or choose --restart-behavior restart to begin anew and keep that "
        "folder aside"
    )


def held(config: ExperimentConfig, holder: RunLocked) -> BadRunFolder:
    """Another process trains it."""
    return BadRunFolder(
        f"experiment_id: {config.experiment_id} -> it is being trained by {holder}; "
        "wait for its end, or choose another --experiment-id"
    )


def cannot_make(config: ExperimentConfig, error: Exception) -> BadRunFolder:
    """A folder or file that it needs cannot be made."""
    return BadRunFolder(
        f"output_dir: {config.output_dir} -> cannot make {config.paths.experiment_dir}: "
        f"{reason_of(error)}; choose a folder that can be written (--output-dir)"
    )


def reason_of(error: Exception) -> str:
    """The system's words alone where it refused, without errno and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
