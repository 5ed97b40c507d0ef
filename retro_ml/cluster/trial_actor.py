"""A trial in an actor of its own: what Ray Tune schedules.

Tune's config of a trial is the experiment itself, so a scheduler that changes a value changes the
ExperimentConfig, and the actor translates it. PyTorch and RLlib are imported in the actor only:
the driver would spend seconds and 200 MB on them for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.train._internal.checkpoint_manager import _TrainingResult
from ray.tune import Checkpoint, PlacementGroupFactory, Trainable
from ray.tune.result import SHOULD_CHECKPOINT

from retro_ml.cluster.placement import trial_bundles
from retro_ml.cluster.trial_checkpoints import TrialCheckpoints
from retro_ml.core.artifacts.checkpoint_files import CheckpointError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.names import AGENT_STEPS, POINTER_FILE, RECORDS, SCORE

EXPERIMENT = "experiment"


def trial_config(
    config: ExperimentConfig,
    *,
    num_cpus: int,
    num_gpus: float,
    restore_from: str | None,
    spared_nodes: Sequence[str] = (),
    memory_bytes: float = 0.0,
) -> dict[str, Any]:
    """Tune's config of a trial.

    Args:
        config: the experiment.
        num_cpus: CPUs, and so threads, of the trial's main process.
        num_gpus: GPUs of the trial, shared by its learners.
        restore_from: a checkpoint folder to start from.
        spared_nodes: ids of nodes where no env runner is to be.
        memory_bytes: of the main process, where Ray is to count memory.
    """
    return {
        EXPERIMENT: config.model_dump(mode="json"),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        # As the driver sees it: the actor has another working directory.
        "checkpoints_dir": str(config.checkpoints_dir),
        "restore_from": restore_from,
        "spared_nodes": list(spared_nodes),
        "memory_bytes": memory_bytes,
        "initial_weights": (
            None if config.init_from is None else str(config.paths.initial_weights_path)
        ),
    }


class TrialActor(Trainable):
    """Builds the RLlib Algorithm of an experiment and passes Tune's calls on to it."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """The bundles that RLlib asks for: main process, env runners, remote learners."""
        resources = config[EXPERIMENT]["resources"]
        bundles = trial_bundles(
            num_cpus=config["num_cpus"],
            num_gpus=config["num_gpus"],
            env_runners=resources["num_env_runners"],
            learners=resources["num_learners"],
            memory_bytes=config["memory_bytes"],
        )
        spared, env_runners = config["spared_nodes"], resources["num_env_runners"]
        if not spared:
            return PlacementGroupFactory(bundles)
        elsewhere = {"ray.io/node-id": f"!in({','.join(spared)})"}
        learners: list[dict[str, str]] = [{}] * resources["num_learners"]
        selectors = [{}, *[elsewhere] * env_runners, *learners]
        return PlacementGroupFactory(bundles, bundle_label_selector=selectors)

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the Algorithm; it goes on from `restore_from` where that is given."""
        from retro_ml.rllib.translate import translate

        experiment = ExperimentConfig.model_validate(config[EXPERIMENT])
        translated = translate(experiment, num_cpus=config["num_cpus"], num_gpus=config["num_gpus"])
        self._checkpoints = TrialCheckpoints(experiment, config["checkpoints_dir"])
        self._is_ending = False
        translated.checkpoints_dir = str(self._checkpoints.folder)
        if config["restore_from"] is not None:
            translated.restore_from = str(self._checkpoints.find(Path(config["restore_from"])))
        if config["initial_weights"] is not None:
            weights = self._checkpoints.find_initial(Path(config["initial_weights"]))
            translated.initial_weights = str(weights)
        self._algorithm = translated.algo_class(config=translated, storage=self._storage)
        self._checkpoints.start()

    def step(self) -> dict[str, Any]:
        """One iteration. The driver gets what it uses of RLlib's result, which is a large one."""
        result = self._algorithm.train()
        used = (RECORDS, AGENT_STEPS, SCORE, SHOULD_CHECKPOINT)
        return {name: result[name] for name in used if name in result}

    def note_end(self) -> None:
        """The next save is the last."""
        self._is_ending = True

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Saves the trial and tells Tune where.

        Tune's own `save` copies the checkpoint to a folder that all nodes must share. Ours is where
        it belongs already, and is sent to storage from there, if it is to be (ray 2.60).
        """
        with TemporaryDirectory() as note:
            self.save_checkpoint(note)
            folder = Path(json.loads((Path(note) / POINTER_FILE).read_bytes())["path"])
        if self._is_ending:
            self._checkpoints.deliver()
        return _TrainingResult(_checkpoint(folder), dict(self._last_result or {}))

    def restore(self, checkpoint_path: _TrainingResult) -> None:
        """Goes on from what `save` returned, on whatever node that was.

        From the newest whole one before it where that is damaged.
        """
        folder = self._checkpoints.find(Path(checkpoint_path.checkpoint.path))
        try:
            super().restore(_TrainingResult(_checkpoint(folder), checkpoint_path.metrics))
        except CheckpointError:
            whole = self._checkpoints.find_whole()
            if whole is None:
                raise
            super().restore(_TrainingResult(_checkpoint(whole), checkpoint_path.metrics))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """See `AtariAlgorithm.save_checkpoint`."""
        self._algorithm.save_checkpoint(checkpoint_dir)
        self._checkpoints.note_saved()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `AtariAlgorithm.load_checkpoint`."""
        self._algorithm.load_checkpoint(checkpoint)

    def cleanup(self) -> None:
        """Ends the trial's env runners and learners, and the sending of its checkpoints."""
        self._algorithm.stop()
        self._checkpoints.close()


def _checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(str(folder), filesystem=LocalFileSystem())
