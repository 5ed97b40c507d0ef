"""A sweep's folder: made, gone on with, or one clear message and nothing touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically, temporary_path
from retro_ml.core.engine.resume_point import read_small
from retro_ml.core.engine.run_faults import BadRunFolder, BadStorage
from retro_ml.core.engine.run_folder import put_back
from retro_ml.core.engine.run_lock import RunLock, RunLocked
from retro_ml.core.engine.run_storage import PATIENCE_S
from retro_ml.core.engine.storage_opening import move_aside
from retro_ml.core.engine.sweep_storage import fetch_past, fetch_sweep
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import NOT_COMPARED, SweepConfig, sweep_faults

MAX_BYTES = 10_000_000
"""Of sweep.json and a trial's status.json."""
# A longer run of the same trials is no other sweep; each trial's own folder has the last word.
_MAY_GROW = frozenset({"total_timesteps", "run_type", "use_gpu"})


@dataclass(frozen=True, slots=True)
class OpenSweep:
    """A sweep that this process holds the lock of."""

    lock: RunLock
    notices: tuple[str, ...] = ()
    """What the user should know about it."""
    stored_configs: Mapping[str, bytes] = field(default_factory=dict)
    """config.json of trials that only storage knows, by name; see `fetch_past`."""


def open_sweep(
    config: SweepConfig, options: RunOptions, *, notice: Callable[[str], None]
) -> OpenSweep:
    """Locks the sweep's folder, made if need be, and puts sweep.json there.

    Raises:
        BadRunFolder: with everything as it was before.
    """
    folder, path = config.paths.sweep_dir, config.paths.spec_path
    remote = find_sweep(config) if options.restart_behavior != "resume" else None
    if options.restart_behavior == "fail" and (os.path.lexists(folder) or remote):
        raise _refusal(
            config,
            f"{remote.uri if remote else folder} exists already; choose another --name, or "
            "--restart-behavior resume or restart",
        )
    if options.restart_behavior == "restart" and (path.exists() or remote):
        aside = _move_aside(config, remote, notice)
        with put_back(aside, folder, what="sweep", notice=notice):
            opened = _open(config, notice)
        return replace(opened, notices=(f"the old sweep is in {aside}",))
    return _open(config, notice)


def load_trial_status(path: Path) -> dict[str, Any]:
    """A trial's status.json; empty where it has not begun, or where there is no telling."""
    try:
        status = json.loads(read_small(path, max_bytes=MAX_BYTES))
        return status if isinstance(status.get("step"), int) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _open(config: SweepConfig, notice: Callable[[str], None]) -> OpenSweep:
    path = config.paths.spec_path
    made = _make_folder(config)
    try:
        lock = _lock(config, notice)
    except BadRunFolder:
        _remove(made)
        raise
    try:
        with _storage_faults(config):
            fetch_sweep(config.paths)
        if path.exists():
            _compare(config)
        else:
            _refuse_foreign(config)
        with _storage_faults(config):
            stored_configs = fetch_past(config, notice=notice)
        text = config.model_dump_json(indent=2) + "\n"
        replace_atomically(path, lambda file: file.write(text.encode()))
    except BaseException as error:
        lock.release()
        _remove(made)
        if isinstance(error, ArtifactError):
            raise _refusal(config, str(error)) from None
        raise
    return OpenSweep(lock, stored_configs=stored_configs)


def _compare(config: SweepConfig) -> None:
    """What is there must be this sweep, perhaps a shorter one. Raises: BadRunFolder."""
    path = config.paths.spec_path
    try:
        stored = SweepConfig.model_validate_json(read_small(path, max_bytes=MAX_BYTES))
    except (ValidationError, OSError) as error:
        faults = sweep_faults(error) if isinstance(error, ValidationError) else [str(error)]
        raise _refusal(
            config,
            f"{path} cannot be read ({'; '.join(faults)}); mend it, or choose "
            "--restart-behavior restart to begin anew and keep that folder aside",
        ) from None
    before, now = (_read_fields(one) for one in (stored, config))
    differences = [
        name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
    ]
    if differences:
        raise _refusal(
            config,
            f"{config.paths.sweep_dir} holds another sweep ({', '.join(differences)} differ); "
            "choose another --name, or --restart-behavior restart to begin anew and keep that "
            "folder aside",
        )


def _read_fields(config: SweepConfig) -> dict[str, Any]:
    """What decides the trials, by name."""
    fields = config.model_dump(mode="json", exclude=set(NOT_COMPARED) | {"name", "base"})
    base = {name: value for name, value in config.base.items() if name not in _MAY_GROW}
    return fields | {f"base.{name}": value for name, value in base.items()}


def _refuse_foreign(config: SweepConfig) -> None:
    folder, paths = config.paths.sweep_dir, config.paths
    # What a kill may have left: sweep.json gets its name when it is whole.
    own = {paths.lock_path, temporary_path(paths.spec_path)}
    if any(path not in own for path in folder.iterdir()):
        raise _refusal(
            config,
            f"{folder} is not a sweep's folder (no {config.paths.spec_path.name}) and not empty; "
            "choose another --name",
        )


def _lock(config: SweepConfig, notice: Callable[[str], None]) -> RunLock:
    lock = RunLock(config.paths.lock_path)
    try:
        lock.acquire(notice=notice)
    except RunLocked as holder:
        raise _refusal(
            config, f"it is being run by {holder}; wait for its end, or choose another --name"
        ) from None
    except OSError as error:
        raise _cannot_make(config, error) from None
    return lock


def find_sweep(config: SweepConfig) -> RemoteFolder | None:
    """The sweep's folder in storage, if one is there."""
    uri = config.paths.storage_uri
    if uri is None:
        return None
    remote = RemoteFolder(uri, patience_s=PATIENCE_S)
    with _storage_faults(config):
        try:
            remote.get(config.paths.spec_path.name)
        except ObjectMissing:
            return None
    return remote


@contextmanager
def _storage_faults(config: SweepConfig) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise BadStorage(f"output_dir: {config.output_dir} -> {error}") from None
    except OSError as error:
        raise _cannot_make(config, error) from None


def _move_aside(
    config: SweepConfig, remote: RemoteFolder | None, notice: Callable[[str], None]
) -> Path | str:
    folder = config.paths.sweep_dir
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(config, notice)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    aside = folder.with_name(f"{folder.name}.before-{stamp}")
    there: str | None = None
    try:
        if remote is not None:
            with _storage_faults(config):
                there = move_aside(remote, stamp, mark=config.paths.spec_path.name).uri
        os.rename(folder, aside)
    except OSError as error:
        raise _cannot_make(config, error) from None
    finally:
        lock.release()
    (aside / config.paths.lock_path.name).unlink(missing_ok=True)
    return there or aside


def _make_folder(config: SweepConfig) -> list[Path]:
    folder = config.paths.sweep_dir
    missing = [path for path in [folder, *folder.parents] if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        _remove(missing)
        raise _cannot_make(config, error) from None
    return missing


def _remove(folders: list[Path]) -> None:
    """Those that were made, innermost first, as long as nobody has put anything there."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _cannot_make(config: SweepConfig, error: Exception) -> BadRunFolder:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return BadRunFolder(
        f"output_dir: {config.output_dir} -> cannot make {config.paths.sweep_dir}: {reason}; "
        "choose a folder that can be written (--output-dir)"
    )


def _refusal(config: SweepConfig, reason: str) -> BadRunFolder:
    return BadRunFolder(f"name: {config.sweep_id} -> {reason}")
