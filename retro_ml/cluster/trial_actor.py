"""A trial in an actor of its own: what Ray Tune schedules.

Tune's config of a trial is the experiment itself, so a scheduler that changes a value changes the
ExperimentConfig, and the actor translates it. PyTorch and RLlib are imported in the actor only:
the driver would spend seconds and 200 MB on them for nothing.
"""

from __future__ import annotations

from typing import Any

from ray.tune import PlacementGroupFactory, Trainable

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.names import AGENT_STEPS, RECORDS, SCORE

EXPERIMENT = "experiment"


def trial_config(
    config: ExperimentConfig, *, num_cpus: int, num_gpus: float, restore_from: str | None
) -> dict[str, Any]:
    """Tune's config of a trial.

    Args:
        config: the experiment.
        num_cpus: CPUs, and so threads, of the trial's main process.
        num_gpus: GPUs of the trial, shared by its learners.
        restore_from: a checkpoint folder to start from.
    """
    return {
        EXPERIMENT: config.model_dump(mode="json"),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        # As the driver sees it: the actor has another working directory.
        "checkpoints_dir": str(config.checkpoints_dir),
        "restore_from": restore_from,
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
        learners, gpus = resources["num_learners"], config["num_gpus"]
        main = {"CPU": config["num_cpus"], "GPU": 0 if learners else gpus}
        env_runners = [{"CPU": 1, "GPU": 0}] * resources["num_env_runners"]
        # A learner with a GPU shares the CPUs of the main process.
        learner = {"CPU": 0 if gpus else 1, "GPU": gpus / max(learners, 1)}
        return PlacementGroupFactory([main, *env_runners, *[learner] * learners])

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the Algorithm; it goes on from `restore_from` where that is given."""
        from retro_ml.rllib.translate import translate

        experiment = ExperimentConfig.model_validate(config[EXPERIMENT])
        translated = translate(experiment, num_cpus=config["num_cpus"], num_gpus=config["num_gpus"])
        translated.checkpoints_dir = config["checkpoints_dir"]
        translated.restore_from = config["restore_from"]
        translated.initial_weights = config["initial_weights"]
        self._algorithm = translated.algo_class(config=translated, storage=self._storage)

    def step(self) -> dict[str, Any]:
        """One iteration. The driver gets what it uses of RLlib's result, which is a large one."""
        result = self._algorithm.train()
        return {name: result[name] for name in (RECORDS, AGENT_STEPS, SCORE)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """See `AtariAlgorithm.save_checkpoint`."""
        self._algorithm.save_checkpoint(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `AtariAlgorithm.load_checkpoint`."""
        self._algorithm.load_checkpoint(checkpoint)

    def cleanup(self) -> None:
        """Ends the trial's env runners and learners."""
        self._algorithm.stop()
