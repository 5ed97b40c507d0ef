"""Where a trial's process keeps its checkpoints, and how they reach the run's storage.

The process may be on another node, without the driver's disk: it sends its checkpoints itself, in
the background, and fetches the one that it goes on from if that is not on its disk.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from retro_ml.core.artifacts.checkpoint_files import (
    CheckpointError,
    choose_checkpoint,
    set_newer_aside,
)
from retro_ml.core.artifacts.checkpoint_mirror import CheckpointMirror, fetch_checkpoint
from retro_ml.core.artifacts.remote_folder import BACKGROUND_PATIENCE_S, ObjectMissing, RemoteFolder
from retro_ml.core.engine.run_storage import PATIENCE_S
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import RunPaths

logger = logging.getLogger("retro_ml.cluster")

INITIAL_PATIENCE_S = 60.0
"""How long a trial on another node waits for what the driver sends at the start."""


class TrialCheckpoints:
    """The checkpoints of one trial in its own process.

    Args:
        config: the experiment.
        given: the folder for its checkpoints, as the driver sees it.
    """

    def __init__(self, config: ExperimentConfig, given: str) -> None:
        self.folder = Path(given)
        self._config = config
        self._uri = config.paths.storage_uri
        self._mirror: CheckpointMirror | None = None
        self._delivered = False
        if self._uri is None:
            return
        # The driver's lock lies in the run's folder for as long as it works there.
        self._with_driver = (self.folder.parent / config.paths.lock_path.name).exists()
        if not self._with_driver:
            self.folder = _make_folder(self.folder, config.checkpoints_dir)
        keep = config.checkpointing.keep
        remote = RemoteFolder(self._uri, patience_s=BACKGROUND_PATIENCE_S)
        self._mirror = CheckpointMirror(self.folder, remote, keep=keep)

    def find(self, checkpoint: Path) -> Path:
        """A checkpoint of this or another trial on this disk, fetched if need be.

        Another takes its place where it is gone: a newer one, if the process died before it could
        tell of it; an older one where this one is not in storage, because it was not sent in time.

        Raises:
            CheckpointError: there is none.
            StorageError: storage does not answer.
            OSError: this disk cannot be read or written.
        """
        if checkpoint.is_dir():
            return checkpoint
        if self._uri is None:
            whole = self.find_whole()
            if whole is None:
                raise CheckpointError(f"{checkpoint} is gone, and there is no other")
            return whole
        paths = RunPaths(self._config.output_dir, checkpoint.parent.parent.name)
        own = paths.experiment_id == self._config.experiment_id
        root = self.folder if own else paths.checkpoints_dir
        if (root / checkpoint.name).is_dir():
            return root / checkpoint.name
        steps = int(checkpoint.name.removeprefix("step-"))
        run = RemoteFolder(str(paths.storage_uri), patience_s=PATIENCE_S)
        fetched, faults = fetch_checkpoint(run.child(root.name), root, at_most=steps)
        if fetched is None:
            raise CheckpointError("; ".join(faults) or f"{checkpoint} is neither here nor there")
        return fetched.path

    def find_whole(self) -> Path | None:
        """The newest whole checkpoint of this trial on this disk; damaged ones are set aside.

        Raises:
            OSError: one cannot be read, so that there is no telling whether it is whole.
        """
        # All have their rows: the driver has written them before it asked for the checkpoint.
        chosen, faults = choose_checkpoint(self.folder, at_most=math.inf)
        set_newer_aside(self.folder, chosen)
        for fault in faults:
            logger.warning("a checkpoint is left aside: %s", fault)
        return None if chosen is None else chosen.path

    def find_initial(self, weights: Path) -> Path:
        """The weights that the run begins with, fetched if they are not on this disk.

        Raises:
            StorageError: they have not got there in time, or storage does not answer.
        """
        if self._uri is None or weights.exists():
            return weights
        run = RemoteFolder(self._uri, patience_s=PATIENCE_S)
        target = self.folder.parent / weights.name
        end_s = time.monotonic() + INITIAL_PATIENCE_S
        while True:
            try:
                run.download(weights.name, target)
                return target
            except ObjectMissing:  # the driver is sending them
                if time.monotonic() >= end_s:
                    raise
            time.sleep(1.0)

    def start(self) -> None:
        """Sends what is saved, from now on."""
        if self._mirror is not None:
            self._mirror.start()

    def note_saved(self) -> None:
        """A checkpoint is whole."""
        if self._mirror is not None:
            self._mirror.wake()

    def deliver(self) -> None:
        """Waits once for all to be in storage, or for nothing to get through any more.

        A driver on this disk sends what is left itself.
        """
        if self._mirror is None or self._with_driver or self._delivered:
            return
        self._delivered = True
        self._mirror.ask()
        self._mirror.wait()

    def close(self) -> None:
        """Delivers what no save has waited for, and ends the sending."""
        if self._mirror is not None:
            self.deliver()
            self._mirror.close(patient=self._mirror.error is None)


def _make_folder(given: Path, own: Path) -> Path:
    """The driver's path where it can be made on this node too, else this node's staging place."""
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError:
        own.mkdir(parents=True, exist_ok=True)
        return own
    return given
