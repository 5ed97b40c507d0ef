"""A run's folder: made, gone on with, or one clear message and nothing touched.

`open_run` decides by what it finds there: nothing is a new run; an interrupted run of the same
config goes on from its newest whole checkpoint; a finished one is left alone; one of another config
is refused. All of it happens under the run's lock, which the caller releases.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro_ml.core.artifacts.checkpoint_files import CheckpointFolder
from retro_ml.core.artifacts.initial_weights import InitialWeights, is_moved, save_initial_weights
from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically, temporary_path
from retro_ml.core.engine.model_faults import find_model_faults
from retro_ml.core.engine.resume_point import (
    NoResumePoint,
    ResumePoint,
    find_resume_point,
    is_finished,
    load_status,
    read_small,
)
from retro_ml.core.engine.run_claim import outlive, read_claim
from retro_ml.core.engine.run_faults import (
    BadMachine,
    BadRunFolder,
    BadStorage,
    cannot_make,
    held,
    reason_of,
    unreadable,
)
from retro_ml.core.engine.run_lock import RunLock, RunLocked
from retro_ml.core.engine.run_storage import PATIENCE_S, RunStorage
from retro_ml.core.engine.storage_opening import find_run, move_aside, open_storage
from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.differences import continue_config, describe_differences
from retro_ml.core.experiments.options import RunOptions

logger = logging.getLogger("retro_ml.engine")

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

ReadInitial = Callable[[ExperimentConfig], InitialWeights | None]
"""What gives the weights that `init_from` names; raises ArchiveError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run that this process holds the lock of."""

    config: ExperimentConfig
    """As it goes on: what was stored, with the folder and the length that were given."""
    lock: RunLock
    restore_from: CheckpointFolder | None = None
    """The checkpoint to go on from."""
    complete: bool = False
    """That checkpoint is the run's end already, which only has to be told."""
    finished: dict[str, Any] | None = None
    """status.json of a run that has nothing left to do."""
    notices: tuple[str, ...] = ()
    """What the user should know about it."""
    storage: RunStorage | None = None
    """Where the run's files are sent to; released with the lock."""

    def release(self) -> None:
        """Gives storage and lock back."""
        try:
            if self.storage is not None:
                self.storage.release()
        finally:
            self.lock.release()


def open_run(
    config: ExperimentConfig,
    options: RunOptions,
    *,
    notice: Callable[[str], None],
    read_initial: ReadInitial | None = None,
    is_new: bool = False,
    patience_s: float = PATIENCE_S,
) -> OpenRun:
    """Locks the run's folder, made if need be, and tells how to go on.

    Args:
        config: as it was given.
        options: `restart_behavior`, `stop_score`.
        notice: is told at once why opening takes time.
        read_initial: called for a new run with `init_from`.
        is_new: as in `open_storage`.
        patience_s: as in `open_storage`.

    Raises:
        BadRunFolder: with everything as it was before.
    """
    folder = config.paths.experiment_dir
    open_there = partial(open_storage, notice=notice, is_new=is_new, patience_s=patience_s)
    remote = None
    if options.restart_behavior != "resume":
        with _storage_faults(config):
            remote = find_run(config)
    if options.restart_behavior == "restart" and (config.paths.config_path.exists() or remote):
        initial = _read_initial(config, read_initial)
        aside = _move_aside(config, remote, notice)
        with put_back(aside, folder, what="run", notice=notice):
            opened = _open(config, options, notice, open_there, read_initial=lambda _: initial)
        return replace(opened, notices=(f"the old run is in {aside}", *opened.notices))
    if options.restart_behavior == "fail" and (os.path.lexists(folder) or remote):
        raise BadRunFolder(
            f"experiment_id: {config.experiment_id} -> {remote.uri if remote else folder} exists "
            "already; choose another --experiment-id, or --restart-behavior resume or restart"
        )
    return _open(config, options, notice, open_there, read_initial=read_initial)


def load_config(config: ExperimentConfig) -> ExperimentConfig:
    """The config that a run's folder holds. Raises: BadRunFolder."""
    try:
        return parse_config(read_small(config.paths.config_path), config)
    except OSError as error:
        raise unreadable(config, reason_of(error)) from None


def parse_config(content: bytes, config: ExperimentConfig) -> ExperimentConfig:
    """The config.json of a run, whose config this should be. Raises: BadRunFolder."""
    try:
        return ExperimentConfig.model_validate_json(content)
    except ValidationError as error:
        raise unreadable(config, "; ".join(config_faults(error))) from None


@contextmanager
def put_back(
    aside: Path | str, folder: Path, *, what: str, notice: Callable[[str], None]
) -> Iterator[None]:
    """Undoes a restart whose opening fails; what cannot be undone is told.

    Args:
        aside: where the old run is; in storage it stays there.
        folder: where it was.
        what: it is.
        notice: is told of it where there is no message that could.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(aside, Path) and _is_renamed(aside, folder):
            raise
        where = f"the old {what} is in {aside}"
        if isinstance(error, BadRunFolder):
            raise type(error)(f"{error}; {where}") from None
        notice(where)
        raise


def save_config(config: ExperimentConfig) -> None:
    """Replaces config.json. Raises ArtifactError."""
    text = config.model_dump_json(indent=2) + "\n"
    replace_atomically(config.paths.config_path, lambda file: file.write(text.encode()))


def _open(
    config: ExperimentConfig,
    options: RunOptions,
    notice: Callable[[str], None],
    open_there: Callable[[ExperimentConfig], RunStorage | None],
    *,
    read_initial: ReadInitial | None,
) -> OpenRun:
    made: list[Path] = []
    try:
        _make_folders(config, made)
        lock = _lock(config, notice)
    except BadRunFolder:
        _remove_folders(made)
        raise
    storage = None
    try:
        with _storage_faults(config):
            storage = open_there(config)
        if not config.paths.config_path.exists():
            opened = _begin_new(config, lock, _read_initial(config, read_initial))
        else:
            opened = _go_on(config, options, lock, storage)
        return replace(opened, storage=storage)
    except BaseException:
        if storage is not None:
            storage.release()
        lock.release()
        _remove_folders(made)
        raise


@contextmanager
def _storage_faults(config: ExperimentConfig) -> Iterator[None]:
    """What storage, or the staging place, does not do, as what the user is told."""
    try:
        yield
    except StorageError as error:
        raise BadStorage(f"output_dir: {config.output_dir} -> {error}") from None
    except RunLocked as holder:
        raise held(config, holder) from None
    except (OSError, ArtifactError) as error:
        raise cannot_make(config, error) from None


def _go_on(
    config: ExperimentConfig, options: RunOptions, lock: RunLock, storage: RunStorage | None
) -> OpenRun:
    stored = load_config(config)
    if is_moved(config, stored):
        config = config.model_copy(update={"init_from": stored.init_from})
    differences = describe_differences(stored, config)
    if differences:
        raise BadRunFolder(
            f"experiment_id: {config.experiment_id} -> {config.paths.experiment_dir} holds a run "
            f"of another config ({'; '.join(differences)}); choose another --experiment-id, or "
            "--restart-behavior restart to begin anew and keep that folder aside"
        )
    going_on = continue_config(stored, config)
    status = load_status(config)
    if is_finished(status, going_on, options):
        return _leave_alone(going_on, lock, storage, status=status)
    point = _find_resume_point(going_on, storage)
    notices = []
    if going_on.total_timesteps != stored.total_timesteps:
        try:
            save_config(going_on)
        except ArtifactError as error:
            raise BadRunFolder(str(error)) from None
        notices.append(
            f"longer than before: {going_on.total_timesteps:,} agent steps "
            f"instead of {stored.total_timesteps:,}"
        )
    notices += [f"warning: a checkpoint is left aside: {fault}" for fault in point.faults]
    if point.checkpoint is None:
        notices.append("no checkpoint there yet: beginning at the start")
        if going_on.init_from is not None and not config.paths.initial_weights_path.exists():
            raise BadRunFolder(
                f"init_from: {going_on.init_from} -> {config.paths.initial_weights_path}, which "
                "the run begins with, is gone; choose --restart-behavior restart to begin anew"
            )
    return OpenRun(
        config=going_on,
        lock=lock,
        restore_from=point.checkpoint,
        complete=point.is_end(going_on, options),
        notices=tuple(notices),
    )


def _leave_alone(
    config: ExperimentConfig,
    lock: RunLock,
    storage: RunStorage | None,
    *,
    status: dict[str, Any],
) -> OpenRun:
    """A finished run; but for models that are not its own: its checkpoints give them anew."""
    faults = find_model_faults(config, storage, agent_steps=status["step"])
    if not faults:
        return OpenRun(config=config, lock=lock, finished=status)
    try:
        checkpoint = _find_resume_point(config, storage).checkpoint
    except BadRunFolder:
        checkpoint = None
    if checkpoint is None or checkpoint.agent_steps < status["step"]:
        lost = "it cannot be made again, the run's last checkpoint is gone"
        notices = tuple(f"warning: {fault}: {lost}" for fault in faults)
        return OpenRun(config=config, lock=lock, finished=status, notices=notices)
    notices = tuple(f"{fault}: it is made again from its checkpoint" for fault in faults)
    return OpenRun(
        config=config, lock=lock, restore_from=checkpoint, complete=True, notices=notices
    )


def _find_resume_point(config: ExperimentConfig, storage: RunStorage | None) -> ResumePoint:
    where = f"experiment_id: {config.experiment_id} -> "
    anew = "--restart-behavior restart to begin anew and keep that folder aside"
    try:
        return find_resume_point(config, storage)
    except NoResumePoint as damage:
        raise BadRunFolder(
            f"{where}{damage}, so no checkpoint has its rows; put that file back, or choose {anew}"
        ) from None
    except StorageError as error:
        raise BadStorage(f"output_dir: {config.output_dir} -> {error}") from None
    except OSError as error:
        fault = f"{where}{error.filename or config.paths.experiment_dir}: {reason_of(error)}"
        if error.errno in _DENIED:
            raise BadRunFolder(
                f"{fault}; make all in {config.paths.experiment_dir} readable and writable, "
                f"or choose {anew}"
            ) from None
        raise BadMachine(
            f"{fault}; the same command goes on once this machine can read and write there again, "
            "or from the checkpoint before if that one's folder is moved away; or choose "
            f"{anew}"
        ) from None


def _read_initial(
    config: ExperimentConfig, read_initial: ReadInitial | None
) -> InitialWeights | None:
    if config.init_from is None or read_initial is None:
        return None
    try:
        return read_initial(config)
    except ArchiveError as error:
        raise BadRunFolder(f"init_from: {error}") from None


def _begin_new(config: ExperimentConfig, lock: RunLock, initial: InitialWeights | None) -> OpenRun:
    folder, paths = config.paths.experiment_dir, config.paths
    # What a kill may have left: config.json is written last.
    begun = {paths.claim_path, paths.initial_weights_path, paths.config_path}
    own = {paths.lock_path, *begun, *map(temporary_path, begun)}
    foreign = [path.name for path in folder.iterdir() if path not in own]
    if foreign:
        raise BadRunFolder(
            f"experiment_id: {config.experiment_id} -> {folder} is not a run's folder (no "
            f"{config.paths.config_path.name}) and not empty; choose another --experiment-id"
        )
    notices: tuple[str, ...] = ()
    try:
        if initial is not None:
            config = config.model_copy(update={"init_sha256": initial.origin["sha256"]})
            save_initial_weights(config, initial)
            notices = (initial.description,)
        save_config(config)
    except ArtifactError as error:
        paths.initial_weights_path.unlink(missing_ok=True)
        raise cannot_make(config, error) from None
    return OpenRun(config=config, lock=lock, notices=notices)


def _move_aside(
    config: ExperimentConfig, remote: RemoteFolder | None, notice: Callable[[str], None]
) -> Path | str:
    """Renames a run's folder, of which no driver is alive, here and in storage."""
    folder = config.paths.experiment_dir
    made: list[Path] = []
    _make_folders(config, made)
    lock = _lock(config, notice)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    aside = folder.with_name(f"{folder.name}.before-{stamp}")
    there: str | None = None
    try:
        with _storage_faults(config):
            if remote is not None:
                outlive(read_claim(remote), remote, notice=notice)
                there = move_aside(remote, stamp, mark=config.paths.config_path.name).uri
        os.rename(folder, aside)
    except OSError as error:
        raise cannot_make(config, error) from None
    finally:
        lock.release()
    # The lock's file went along, and is nobody's now.
    (aside / config.paths.lock_path.name).unlink(missing_ok=True)
    if there is not None:
        with suppress(OSError):  # empty where the run was only there
            aside.rmdir()
    return there or aside


def _is_renamed(source: Path, target: Path) -> bool:
    """Tries it; something may be in the way by now."""
    try:
        os.rename(source, target)
    except OSError:
        return False
    return True


def _lock(config: ExperimentConfig, notice: Callable[[str], None]) -> RunLock:
    lock = RunLock(config.paths.lock_path)
    try:
        lock.acquire(notice=notice)
    except RunLocked as holder:
        raise held(config, holder) from None
    except OSError as error:
        raise cannot_make(config, error) from None
    return lock


def _make_folders(config: ExperimentConfig, made: list[Path]) -> None:
    folder = config.paths.experiment_dir
    try:
        for path in [*reversed(list(_missing_parents(folder))), folder]:
            if not path.is_dir():
                path.mkdir()
                made.append(path)
    except FileExistsError as error:
        if not folder.is_dir():
            blocked = error.filename or folder
            raise BadRunFolder(
                f"output_dir: {config.output_dir} -> {blocked} is in the way and is no folder"
            ) from None
    except (OSError, ValueError) as error:
        raise cannot_make(config, error) from None


def _missing_parents(folder: Path) -> list[Path]:
    return [parent for parent in folder.parents if not os.path.lexists(parent)]


def _remove_folders(made: list[Path]) -> None:
    for folder in reversed(made):
        # Another run may have put its folder into one of ours: then that one stays.
        try:
            folder.rmdir()
        except OSError:
            return
