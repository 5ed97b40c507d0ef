"""Opening a run in storage: proved writable, claimed, what is newer there brought here."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from retro_ml.core.artifacts.remote_folder import (
    BACKGROUND_PATIENCE_S,
    ObjectMissing,
    RemoteFolder,
    StorageError,
)
from retro_ml.core.artifacts.storage import rename_whole, temporary_path
from retro_ml.core.engine.run_claim import Claim, ClaimKeeper, outlive, read_claim
from retro_ml.core.engine.run_storage import PATIENCE_S, RunStorage
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import CLAIM_NAME

_proved: set[str] = set()


def find_run(config: ExperimentConfig) -> RemoteFolder | None:
    """The run's folder in storage if it holds a run; None otherwise. Raises StorageError."""
    uri = config.paths.storage_uri
    if uri is None:
        return None
    run = RemoteFolder(uri, patience_s=PATIENCE_S)
    try:
        run.get(config.paths.config_path.name)
    except ObjectMissing:
        return None
    return run


def open_storage(
    config: ExperimentConfig,
    *,
    notice: Callable[[str], None],
    is_new: bool = False,
    patience_s: float = PATIENCE_S,
) -> RunStorage | None:
    """Claims the run in storage and brings here what is newer there.

    To be called under the lock of the run's folder.

    Args:
        config: of the run.
        notice: is told at once why opening takes time.
        is_new: there was nothing of the run in storage a while ago, so it begins without an answer;
            then the claim follows when there is one.
        patience_s: how long to try again.

    Returns:
        None where `output_dir` is no URI.

    Raises:
        StorageError: storage cannot be used; the message says why.
        RunLocked: another driver holds the run.
        OSError, ArtifactError: the staging place cannot be written.
    """
    uri = config.paths.storage_uri
    if uri is None:
        return None
    prove_writable(config.output_dir)
    paths, run = config.paths, RemoteFolder(uri, patience_s=patience_s)
    there, answered = None, True
    try:
        there = read_claim(run)
        outlive(there, run, notice=notice)
    except StorageError:
        if not is_new:
            raise
        answered = False
    here = read_local_claim(paths.claim_path)
    if there is not None and not _is_newest(here, there) and find_run(config) is not None:
        _replace_local(config, run, keep_aside=here is None or not here.complete, notice=notice)
    generation = 1 + max(claim.generation if claim else 0 for claim in (here, there))
    keeper = ClaimKeeper(RemoteFolder(uri, patience_s=BACKGROUND_PATIENCE_S), generation=generation)
    # Here first: were it there first, a kill in between would make this folder look outdated.
    keeper.claim.save(paths.claim_path)
    if answered:
        run.put(CLAIM_NAME, keeper.claim.write())
    keeper.start()
    untouched = there is not None and there.complete
    return RunStorage(config, keeper, untouched=untouched)


def prove_writable(uri: str) -> None:
    """Writes, reads and deletes an object; once in a process for each URI. Raises StorageError."""
    if uri in _proved:
        return
    folder = RemoteFolder(uri, patience_s=PATIENCE_S)
    name, content = f".probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
    folder.put(name, content)
    if folder.get(name) != content:
        raise StorageError(f"{uri} gives back another content than was written; is it a cache?")
    folder.delete(name)
    _proved.add(uri)


def move_aside(run: RemoteFolder, stamp: str, *, mark: str) -> RemoteFolder:
    """Moves a run or sweep in storage out of the way. Raises StorageError.

    Args:
        run: its folder.
        stamp: what the folder's name gets, so that it is another one.
        mark: the file that it is known by.
    """
    aside = RemoteFolder(f"{run.uri}.before-{stamp}", patience_s=PATIENCE_S)
    # The mark comes last: as long as it is there, a move that was killed is known and gone on
    # with, and nothing of the old run passes for the new one's.
    names = sorted(run.list(), key=lambda name: name == mark)
    for name in names:
        if name != CLAIM_NAME:
            run.move(name, aside)
    return aside


def read_local_claim(path: Path) -> Claim | None:
    """The claim of the driver that left this folder."""
    try:
        return Claim.read(path.read_bytes())
    except OSError:
        return None


def _is_newest(here: Claim | None, there: Claim) -> bool:
    """Whether no other driver has worked on the run since the one that left this folder."""
    if here is None or here.generation < there.generation:
        return False
    return here.generation > there.generation or here.nonce == there.nonce


def _replace_local(
    config: ExperimentConfig,
    run: RemoteFolder,
    *,
    keep_aside: bool,
    notice: Callable[[str], None],
) -> None:
    """The run's files as storage has them; checkpoints come when it is known which."""
    paths = config.paths
    folder = paths.experiment_dir
    if paths.config_path.exists():
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        aside = folder.with_name(f"{folder.name}.before-{stamp}")
        aside.mkdir(exist_ok=True)
        # The config last: as long as it is here, a kill in between leaves what is moved next time.
        for path in sorted(folder.iterdir(), key=lambda path: path == paths.config_path):
            if path != paths.lock_path:
                os.rename(path, aside / path.name)
        if keep_aside:
            notice(f"storage has newer work than this machine; what was here is in {aside}")
        else:
            shutil.rmtree(aside, ignore_errors=True)
    notice(f"fetching the run from {run.uri}")
    # The config last: without it a kill in between leaves no run, and all is fetched next time.
    names = paths.choose_sent_names(run.list())
    for name in sorted(names, key=lambda name: name == paths.config_path.name):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        building = temporary_path(target)
        try:
            run.download(name, building)
            rename_whole(building, target)
        except ObjectMissing:
            continue
        finally:
            building.unlink(missing_ok=True)
