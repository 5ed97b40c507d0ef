"""A run's storage: kept up to date while the run goes on, told of at its end.

The run works in its staging place as in any folder (`storage_opening` makes it so). `RunStorage`
sends what the run makes; `deliver` waits for the last of it, within bounds, and says what is not
there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.checkpoint_files import CheckpointFolder
from retro_ml.core.artifacts.checkpoint_mirror import (
    CheckpointMirror,
    fetch_checkpoint,
    fetch_manifest,
    list_checkpoints,
)
from retro_ml.core.artifacts.folder_mirror import FolderMirror
from retro_ml.core.artifacts.remote_folder import StorageError
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.artifacts.status import note_storage
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.writers import ModelWriter
from retro_ml.core.engine.run_claim import ClaimKeeper
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

PATIENCE_S = 20.0
"""How long opening and fetching try again (this project's choice)."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What of an ended run is in storage."""

    uri: str
    missing: tuple[str, ...] = ()
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return not self.missing and self.error is None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "complete": self.complete}


class RunStorage:
    """The storage of one run whose claim this driver holds.

    Args:
        config: of the run; its `output_dir` is a URI.
        keeper: of the claim.
        untouched: all of the run is there, as the driver before has left it.
    """

    def __init__(self, config: ExperimentConfig, keeper: ClaimKeeper, *, untouched: bool) -> None:
        paths = config.paths
        self._paths = paths
        self._keeper = keeper
        self._untouched = untouched
        self._run = keeper.remote
        self._model: ModelWriter | None = None
        self._bus: MetricEventBus | None = None
        self._last_checkpoint: str | None = None
        self._files = FolderMirror(
            paths.experiment_dir,
            self._run,
            paths.find_sent_names,
            before_sending=self._before_sending,
        )
        self._checkpoints = CheckpointMirror(
            paths.checkpoints_dir,
            self._run,
            keep=config.checkpointing.keep,
            claim=keeper.claim.nonce,
        )
        self._complete = untouched
        self._delivering = False

    @property
    def uri(self) -> str:
        """The run's folder in storage."""
        return self._run.uri

    def fetch_checkpoint(
        self, than: CheckpointFolder | None, *, at_most: float
    ) -> tuple[CheckpointFolder | None, list[str]]:
        """A newer checkpoint than the one that is here; what is wrong with those not taken.

        Raises:
            StorageError: storage does not answer.
        """
        newer_than = -1 if than is None else than.agent_steps
        remote = self._run.child(self._paths.checkpoints_dir.name)
        fetched, faults = fetch_checkpoint(
            remote, self._paths.checkpoints_dir, newer_than=newer_than, at_most=at_most
        )
        return fetched or than, faults

    def fetch_manifest(self, agent_steps: int) -> dict[str, Any]:
        """Of a checkpoint in storage. Raises StorageError, CheckpointError."""
        return fetch_manifest(self._run.child(self._paths.checkpoints_dir.name), agent_steps)

    def describe(self) -> dict[str, Any]:
        """For status.json while the run goes on."""
        error = self._files.error
        return {
            "uri": self.uri,
            "state": "behind" if error else "sending",
            "sent_at": self._files.sent_at,
            "missing": [],
            "error": error,
        }

    def attach(self, bus: MetricEventBus, writers: Sequence[RunWriter]) -> None:
        """Sends what the writers write, which are on the bus already."""
        self._model = next((w for w in writers if isinstance(w, ModelWriter)), None)
        self._untouched = self._complete = False
        self._files.start()
        bus.subscribe(None, self)
        self._bus = bus

    def detach(self) -> None:
        """Leaves the bus; the sending goes on."""
        if self._bus is not None:
            self._bus.unsubscribe(None, self)
            self._bus = None

    def __call__(self, event: MetricEvent) -> None:
        """Takes one event of the bus."""
        if event.experiment_id != self._paths.experiment_id:
            return
        if event.event_type is EventType.CHECKPOINT_SAVED:
            self._last_checkpoint = Path(event.data["path"]).name
            self._files.wake()
        elif event.event_type is EventType.RUN_STARTED:
            self._files.wake()

    def begin_delivery(self) -> None:
        """Sends what is left, in the background; `deliver` waits for it.

        Whoever ends many runs calls this for each as it ends, and `deliver` for all at last.
        """
        if self._untouched:
            return
        self._delivering = True
        for mirror in (self._checkpoints, self._files):
            mirror.level = logging.INFO  # the run's log is closed, and the summary tells it
            mirror.start()
            mirror.ask()

    def deliver(self) -> Delivery:
        """Waits until all is there, or until nothing gets through; the status tells it too."""
        if self._untouched:
            return Delivery(self.uri)
        if not self._delivering:
            self.begin_delivery()
        for mirror in (self._checkpoints, self._files):
            mirror.wait()
        missing = [*self._files.list_missing(), *self._list_missing_checkpoints()]
        error = self._files.error or self._checkpoints.error
        delivery = Delivery(self.uri, tuple(missing), error if missing else None)
        delivery = self._tell(delivery)
        self._complete = delivery.complete
        return delivery

    def give_up(self) -> None:
        """Ends `deliver`; called from signal handlers."""
        for mirror in (self._checkpoints, self._files):
            mirror.give_up()

    def release(self) -> None:
        """Ends all sending and lets go of the claim."""
        # An endpoint that does not answer is not waited for once more.
        answers = self._files.error is None and self._checkpoints.error is None
        for mirror in (self._files, self._checkpoints, self._keeper):
            mirror.close(patient=answers)
        if answers:
            with suppress(StorageError):  # then its holder is found dead, or its lease runs out
                self._keeper.release(complete=self._complete)
        with suppress(ArtifactError):  # a disk that takes no more was told by the writers
            self._keeper.claim.save(self._paths.claim_path)

    def _before_sending(self) -> None:
        self._keeper.check()
        if self._model is not None:
            self._model.fetch_awaited(self._run.child(self._paths.checkpoints_dir.name))

    def _list_missing_checkpoints(self) -> list[str]:
        missing = self._checkpoints.list_missing()
        last = self._last_checkpoint
        folder = self._paths.checkpoints_dir
        if last is None or (folder / last).exists():
            return missing
        # On another node's disk: its own process sends it.
        try:
            there = list_checkpoints(self._run.child(folder.name))
        except StorageError:
            there = []
        return missing if int(last.removeprefix("step-")) in there else [f"{folder.name}/{last}"]

    def _tell(self, delivery: Delivery) -> Delivery:
        """Notes it in status.json, here and there."""
        status = self._paths.status_path
        if not status.exists():
            return delivery
        self._note(delivery)
        if delivery.complete and not self._send_files():
            error = self._files.error or "no answer in time"
            delivery = replace(delivery, missing=(status.name,), error=error)
            self._note(delivery)
        elif not delivery.complete and self._files.error is None:
            self._send_files()
        return delivery

    def _send_files(self) -> bool:
        self._files.ask()
        return self._files.wait()

    def _note(self, delivery: Delivery) -> None:
        told = {
            "uri": self.uri,
            "state": "complete" if delivery.complete else "behind",
            "sent_at": self._files.sent_at,
            "missing": list(delivery.missing),
            "error": delivery.error,
        }
        with suppress(ArtifactError, OSError, ValueError):  # told by the writers already
            note_storage(self._paths.status_path, told)
