"""Making a run's folder, or one clear message and nothing left behind."""

import os
from pathlib import Path

from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.core.experiments.config import ExperimentConfig


class BadRunFolder(ValueError):
    """The run's folder cannot be made; the message says what to choose instead."""

    exit_code = 2


def make_run_folder(config: ExperimentConfig) -> None:
    """Make `<output_dir>/<experiment_id>` with config.json in it. Raises BadRunFolder.

    Making the last folder is atomic: of two runs with one experiment id, one is refused.
    """
    folder = config.paths.experiment_dir
    made: list[Path] = []
    try:
        for parent in reversed(list(_missing_parents(folder))):
            parent.mkdir(exist_ok=True)
            made.append(parent)
        folder.mkdir()
        made.append(folder)
        text = config.model_dump_json(indent=2) + "\n"
        replace_atomically(config.paths.config_path, lambda file: file.write(text.encode()))
    except FileExistsError as error:
        _remove_folders(made)
        raise BadRunFolder(_already_there(config, folder, error)) from None
    except (OSError, ValueError, ArtifactError) as error:
        _remove_folders(made)
        raise BadRunFolder(
            f"output_dir: {config.output_dir} -> cannot make {folder}: {_reason(error)}; "
            "choose a folder that can be written (--output-dir)"
        ) from None


def _missing_parents(folder: Path) -> list[Path]:
    return [parent for parent in folder.parents if not os.path.lexists(parent)]


def _already_there(config: ExperimentConfig, folder: Path, error: FileExistsError) -> str:
    if not folder.is_dir():
        blocked = error.filename or folder
        return f"output_dir: {config.output_dir} -> {blocked} is in the way and is no folder"
    return (
        f"experiment_id: {config.experiment_id} -> {folder} exists already; "
        "choose another --experiment-id, or move that folder away"
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _remove_folders(made: list[Path]) -> None:
    for folder in reversed(made):
        # Another run may have put its folder into one of ours: then that one stays.
        try:
            folder.rmdir()
        except OSError:
            return
