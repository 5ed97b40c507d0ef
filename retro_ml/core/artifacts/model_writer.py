"""The subscriber that makes model.zip and best_model.zip of a run's checkpoints."""

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.numpy

from retro_ml.core.artifacts.checkpoint_files import (
    ADOPTED,
    MANIFEST_NAME,
    CheckpointError,
    load_manifest,
)
from retro_ml.core.artifacts.model_archive import ArchiveError, read_last_evaluation
from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder
from retro_ml.core.artifacts.run_model import save_run_model
from retro_ml.core.artifacts.run_writer import RunWriter, plain
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.artifacts.training_history import TrainingHistory
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig

logger = logging.getLogger("retro_ml.artifacts")

WEIGHTS_NAME = "module.safetensors"


class ModelWriter(RunWriter):
    """model.zip from each checkpoint's module.safetensors, so that a killed run has one too.

    best_model.zip as well, from the checkpoint of the best evaluation, where there are evaluations.
    Where the checkpoint is on another node's disk, it comes by storage: `fetch_awaited`.
    """

    def __init__(self, config: "ExperimentConfig") -> None:
        super().__init__(config)
        self._history = TrainingHistory(config)
        self._awaited: dict[Path, _ModelOrder] = {}

    def fetch_awaited(self, checkpoints: RemoteFolder) -> None:
        """Makes the models that wait for a checkpoint, once that is whole in storage.

        Args:
            checkpoints: the run's checkpoints in storage.

        Raises:
            StorageError: storage does not answer.
        """
        with self._lock:
            awaited = list(self._awaited.values())
        for order in awaited:
            with tempfile.TemporaryDirectory() as folder:
                name = order.checkpoint.name
                try:
                    # The manifest first: with it the checkpoint is there.
                    for file in (MANIFEST_NAME, WEIGHTS_NAME):
                        checkpoints.download(f"{name}/{file}", Path(folder) / file)
                except ObjectMissing:
                    continue
                with self._lock:
                    if self._awaited.get(order.target) is not order:  # a newer one came meanwhile
                        continue
                    del self._awaited[order.target]
                    try:
                        self._save(Path(folder), order)
                    except ArtifactError as error:  # the next one may be whole; sending goes on
                        logger.warning("%s is not made: %s", order.target, error)

    def _take(self, event: MetricEvent) -> None:
        if event.event_type is EventType.RUN_STARTED:
            from_step = event.data.get("from_step", 0)
            self._history = TrainingHistory.load(self._config, up_to_step=from_step)
            self._make_up_for_best(event.to_dict()["timestamp"])
            return
        if event.event_type is not EventType.CHECKPOINT_SAVED:
            self._history.take(event.event_type.value, event.data)
            return
        order = _ModelOrder(
            target=self._config.paths.model_path,
            checkpoint=Path(event.data["path"]),
            agent_steps=event.data["step"],
            created_at=event.to_dict()["timestamp"],
            history=self._history.summarize(),
        )
        self._make(order)
        best = self._history.best_evaluation
        if best is not None and best["agent_steps"] == order.agent_steps:
            self._make(replace(order, target=self._config.paths.best_model_path))

    def _make_up_for_best(self, created_at: str) -> None:
        """Killed between a checkpoint and its best_model.zip, a run has that checkpoint still."""
        evaluation, paths = self._history.best_evaluation, self._config.paths
        if evaluation is None:
            return
        best = evaluation["agent_steps"]
        order = _ModelOrder(
            target=paths.best_model_path,
            checkpoint=paths.checkpoint_dir(best),
            agent_steps=best,
            created_at=created_at,
            history=TrainingHistory.load(self._config, up_to_step=best).summarize(),
        )
        known = order.checkpoint.exists() or paths.storage_uri is not None
        if known and self._is_better(order):
            try:
                self._make(order)
            except ArtifactError as error:
                logger.warning("%s is not made: %s", order.target, error)

    def _make(self, order: "_ModelOrder") -> None:
        if self._config.paths.storage_uri is not None and not order.checkpoint.exists():
            self._awaited[order.target] = order
            return
        self._awaited.pop(order.target, None)
        self._save(order.checkpoint, order)

    def _save(self, checkpoint: Path, order: "_ModelOrder") -> None:
        weights_path = checkpoint / WEIGHTS_NAME
        try:
            weights = safetensors.numpy.load_file(weights_path)
            manifest = load_manifest(checkpoint)
        except (OSError, safetensors.SafetensorError, CheckpointError) as error:
            raise ArtifactError(f"cannot read {weights_path}: {error}") from error
        # An adopted checkpoint is another trial's, after as many agent steps.
        fit = manifest.get(ADOPTED) is not True and self._is_better(order)
        if order.target == self._config.paths.best_model_path and not fit:
            return
        save_run_model(
            self._config,
            weights,
            path=order.target,
            agent_steps=order.agent_steps,
            score=plain(manifest.get("score")),
            action_meanings=manifest["action_meanings"],
            history=order.history,
            created_at=order.created_at,
        )

    def _is_better(self, order: "_ModelOrder") -> bool:
        """Than the best_model.zip that is there, or as good.

        That one may be of an evaluation whose row was cut: PBT lets a trial go back.
        """
        try:
            before = read_last_evaluation(self._config.paths.best_model_path)
        except ArchiveError:  # none, or nothing that this class wrote
            return True
        score: float = order.history["evaluations"][-1]["mean_score"]
        return score >= before


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelOrder:
    """A zip to be made of a checkpoint, with `save_run_model`'s arguments."""

    target: Path
    checkpoint: Path
    agent_steps: int
    created_at: str
    history: dict[str, Any]
