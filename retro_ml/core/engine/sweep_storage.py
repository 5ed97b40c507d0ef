"""A sweep's storage: its own files and those of its trials, sent while the sweep goes on.

A trial that has ended is delivered beside the trials that run; only the end of the sweep waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from retro_ml.core.artifacts.folder_mirror import FolderMirror
from retro_ml.core.artifacts.remote_folder import (
    BACKGROUND_PATIENCE_S,
    ObjectMissing,
    RemoteFolder,
)
from retro_ml.core.artifacts.storage import replace_atomically
from retro_ml.core.engine.run_folder import OpenRun
from retro_ml.core.engine.run_storage import PATIENCE_S, Delivery, RunStorage
from retro_ml.core.engine.storage_opening import prove_writable, read_local_claim
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.experiments.sweep_paths import SweepPaths
from retro_ml.core.experiments.sweep_trials import PlannedTrial

logger = logging.getLogger("retro_ml.sweep")
DELIVERIES_AT_ONCE = 8
"""Of trials that ended (this project's choice): they wait for answers, mostly."""
_OVER = (b'"completed"', b'"stopped"')


class SweepStorage:
    """Where a sweep's files are sent; for a folder of this machine it only gives locks back."""

    def __init__(self, config: SweepConfig) -> None:
        self._paths = config.paths
        self._files: FolderMirror | None = None
        self._pool = ThreadPoolExecutor(DELIVERIES_AT_ONCE, thread_name_prefix="delivery")
        self._under_way: dict[RunStorage, Future[Delivery]] = {}
        self._not_opened: dict[str, str] = {}
        self.given_up = False
        """Nothing more is waited for."""

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer: not at all while storage is known to give none."""
        behind = self._files is not None and self._files.error is not None
        return 0.0 if behind else PATIENCE_S

    def start(self) -> None:
        """Sends the sweep's own files, from now on."""
        uri = self._paths.storage_uri
        if uri is not None:
            remote = RemoteFolder(uri, patience_s=BACKGROUND_PATIENCE_S)
            self._files = FolderMirror(
                self._paths.sweep_dir, remote, lambda: self._paths.sent_names
            )
            self._files.start()

    def take(self, opened: OpenRun) -> None:
        """Sends what is left of a trial that ended, then gives its lock back."""
        if opened.storage is None:
            opened.release()
            return
        # All are asked at once, so that an endpoint that is gone is waited for once, not in turn.
        opened.storage.begin_delivery()
        self._under_way[opened.storage] = self._pool.submit(_deliver, opened, opened.storage)
        if self.given_up:
            opened.storage.give_up()

    def note_not_opened(self, name: str, reason: str) -> None:
        """A trial whose files are not all there, and cannot be sent now."""
        self._not_opened[name] = reason

    def finish(self) -> Delivery | None:
        """Waits until all is there, or until nothing gets through; None without storage."""
        deliveries = [future.result() for future in self._under_way.values()]
        self._pool.shutdown()
        if self._files is None:
            return None
        self._files.ask()
        self._files.wait()
        missing = [
            *(f"{Path(one.uri).name}/{name}" for one in deliveries for name in one.missing),
            *(f"{name}/" for name in self._not_opened),
            *self._files.list_missing(),
        ]
        errors = [
            self._files.error,
            *(one.error for one in deliveries),
            *self._not_opened.values(),
        ]
        self._files.close(patient=self._files.error is None)
        error = next((error for error in errors if error), None) if missing else None
        return Delivery(str(self._paths.storage_uri), tuple(missing), error)

    def give_up(self) -> None:
        """Ends the waiting of `finish`, and of what comes later; called from signal handlers."""
        self.given_up = True
        for storage in list(self._under_way):
            storage.give_up()
        if self._files is not None:
            self._files.give_up()


def is_delivered(config: ExperimentConfig) -> bool:
    """Whether storage has all that this machine has of a trial: always, where it has nothing."""
    if config.paths.storage_uri is None:
        return False
    claim = read_local_claim(config.paths.claim_path)
    return not config.paths.config_path.exists() or (claim is not None and claim.complete)


def _deliver(opened: OpenRun, storage: RunStorage) -> Delivery:
    try:
        return storage.deliver()
    finally:
        opened.release()


def fetch_sweep(paths: SweepPaths) -> None:
    """Brings sweep.json here where only storage has it. Raises StorageError, ArtifactError."""
    if paths.storage_uri is None:
        return
    prove_writable(paths.output_dir)
    if not paths.spec_path.exists():
        _fetch(RemoteFolder(paths.storage_uri, patience_s=PATIENCE_S), paths.spec_path)


def fetch_past(config: SweepConfig, *, notice: Callable[[str], None]) -> dict[str, bytes]:
    """Brings here how the trials stand that only storage knows; the rest when one goes on.

    Returns:
        Their config.json by name, where that has values which the sweep does not tell. It has no
        place here before the trial is opened.

    Raises:
        StorageError, OSError, ArtifactError.
    """
    unknown = [
        planned
        for planned in config.trials
        if planned.config.paths.storage_uri is not None
        and not planned.config.paths.config_path.exists()
    ]
    chosen = config.search == "optuna" or config.scheduler == "pbt"
    with ThreadPoolExecutor(DELIVERIES_AT_ONCE) as pool:
        found = list(pool.map(lambda one: _fetch_standing(one, with_config=chosen), unknown))
    if any(standing for standing, _ in found):
        notice(f"{sum(standing for standing, _ in found):,} trials are known from storage")
    return {
        planned.experiment_id: content
        for planned, (_, content) in zip(unknown, found, strict=True)
        if content is not None
    }


def _fetch_standing(planned: PlannedTrial, *, with_config: bool) -> tuple[bool, bytes | None]:
    """Whether there was any, and the trial's config.json if it is asked for and there."""
    paths = planned.config.paths
    run = RemoteFolder(str(paths.storage_uri), patience_s=PATIENCE_S)
    content = None
    if with_config:
        with suppress(ObjectMissing):
            content = run.get(paths.config_path.name)
    if not _fetch(run, paths.status_path):
        return False, content
    if any(state in paths.status_path.read_bytes() for state in _OVER):
        _fetch(run, paths.metrics_csv_path)
    return True, content


def _fetch(remote: RemoteFolder, target: Path) -> bool:
    try:
        content = remote.get(target.name)
    except ObjectMissing:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(target, lambda file: file.write(content))
    return True
