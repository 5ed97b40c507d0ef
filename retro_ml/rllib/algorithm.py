"""What PPO, A2C and DQN share as RLlib Algorithms.

- Where one process both plays and learns (no remote env runner, no remote learner), the EnvRunner
  acts with the Learner's own module: nothing is copied between them.
- The trial counts its own steps, games and scores (`Progress`); RLlib's counters follow.
- Checkpoints are arrays and JSON (`checkpoints.py`), never pickles, and hold all that decides the
  future of the run: weights, optimizer, generators, emulators, replay.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_METRICS_LOGGER,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from retro_ml.core.artifacts.initial_weights import load_initial_weights
from retro_ml.core.artifacts.model_archive import Weights
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.callbacks import RecordCallback
from retro_ml.rllib.checkpoints import load_checkpoint, resolve_checkpoint, save_checkpoint
from retro_ml.rllib.env_runner import AtariEnvRunner
from retro_ml.rllib.progress import Progress
from retro_ml.rllib.rollout import Rollout

PATIENCE_S = 600.0
"""How long env runners may be gone: a lost node takes minutes to be replaced. Then the trial fails,
and is tried again where there is room (this project's choice)."""


class NoEnvRunners(RuntimeError):
    """The env runners died, and Ray found no place to start them again."""


class AtariConfigMixin:
    """Fields that all three AlgorithmConfigs have beside RLlib's; placed before RLlib's class."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)  # type: ignore[call-arg]
        self.experiment: dict[str, Any] = {}
        """The ExperimentConfig as JSON: the one source of every value here."""
        self.run_seed = 0
        """The run's seed. RLlib's own, `seed`, stays None: with it RLlib turns on PyTorch's
        deterministic mode, in which each new tensor is filled with NaN before it is written to
        (a tenth of an update), and whose import takes seconds. Nothing here needs it on a CPU."""
        self.restore_from: str | None = None
        """A checkpoint folder that the trial starts from."""
        self.initial_weights: str | None = None
        """What the trial begins with where it restores nothing: `init_from`'s weights, as the
        run's folder holds them."""
        self.checkpoints_dir: str | None = None
        """The run's folder of checkpoints; None puts each where RLlib's caller asks for it."""
        self.torch_threads: int | None = None
        """Threads of the process that learns; None leaves PyTorch's choice."""
        self.env_runner_cls = AtariEnvRunner
        self.callbacks_class = RecordCallback


class AtariAlgorithm(Algorithm):
    """Base of the three; placed before RLlib's class."""

    def setup(self, config: Any) -> None:
        """Builds env runners and learner, and goes on from a checkpoint where one is named."""
        if self.config.torch_threads is not None:
            torch.set_num_threads(self.config.torch_threads)
        super().setup(config)
        self.experiment = ExperimentConfig.model_validate(self.config.experiment)
        self.progress = Progress()
        self.agent_steps_before = 0
        self.from_step = 0
        self._empty_since_s: float | None = None
        self.action_meanings: tuple[str, ...] = self.env_runner_group.foreach_env_runner(
            lambda runner: runner.env.action_meanings,
            local_env_runner=not self.config.num_env_runners,
        )[0]
        self._one_process = not (self.config.num_env_runners or self.config.num_learners)
        if self._one_process:
            module = self.learner_group._learner.module[DEFAULT_MODULE_ID]
            self.env_runner.module = module.unwrapped()
        if self.config.restore_from is not None:
            self.load_checkpoint(self.config.restore_from)
        elif self.config.initial_weights is not None:
            initial = load_initial_weights(Path(self.config.initial_weights))
            self.set_network_weights(initial.weights)

    @property
    def rollout_agent_steps(self) -> int:
        """Agent steps that all env runners play between two updates."""
        runners = max(self.config.num_env_runners, 1)
        games = runners * self.config.num_envs_per_env_runner
        return games * self.config.rollout_fragment_length

    def sample_rollouts(self) -> list[Rollout]:
        """One train batch's worth of play, one Rollout per env runner.

        Empty when too many env runners have failed for a whole batch; RLlib brings them back before
        the next try. What is sampled above the batch (one came back meanwhile) is left out, of
        RLlib's count of agent steps too: epsilon follows it.

        Raises:
            NoEnvRunners: none has come back for `PATIENCE_S`.
        """
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollouts, results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                max_env_steps=self.rollout_agent_steps,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
        runners = max(self.config.num_env_runners, 1)
        if len(rollouts) < runners:
            now_s = time.monotonic()
            self._empty_since_s = now_s if self._empty_since_s is None else self._empty_since_s
            if now_s - self._empty_since_s > PATIENCE_S:
                raise NoEnvRunners(f"too few env runners to play for {PATIENCE_S:g} s")
            return []
        self._empty_since_s = None
        self.metrics.aggregate(results[:runners], key=ENV_RUNNER_RESULTS)
        rollouts = rollouts[:runners]
        self._steps_before_update = self.progress.agent_steps
        self.progress.add(rollouts)
        return rollouts

    def update_learner(self, batch: MultiAgentBatch, **how: Any) -> None:
        """Hands a batch to the learners; `how` are `LearnerGroup.update`'s arguments."""
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                batch=batch,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._steps_before_update},
                **how,
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def sync_weights(self) -> None:
        """Sends the new weights to the env runners, where they are not the learner's own."""
        if self._one_process:
            return
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group,
                policies=[DEFAULT_MODULE_ID],
                inference_only=True,
            )

    def training_columns(self) -> dict[str, Any]:
        """Columns of a training_step row that only this algorithm has."""
        return {}

    def describe_attempt(self) -> dict[str, Any]:
        """What the event RUN_STARTED tells: where this attempt began and what it runs on."""
        return {
            "game_id": self.experiment.game_id,
            "algorithm": self.experiment.algorithm,
            "total_timesteps": self.experiment.total_timesteps,
            "from_step": self.from_step,
            "device": self._ask_learner(lambda learner: str(learner.device)),
            "precision": self._ask_learner(lambda learner: learner.precision),
            "threads": torch.get_num_threads(),
            "host": platform.node(),
            "pid": os.getpid(),
        }

    @property
    def learning_rate(self) -> float:
        """The step size of the last update."""
        return float(self._ask_learner(lambda learner: learner.learning_rate))

    def _ask_learner(self, question: Callable[[Any], Any]) -> Any:
        """The answer of one of the learners, which are all alike."""
        return next(iter(self.learner_group.foreach_learner(question))).get()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves the trial; under a run's folder the data go there, and a note of it here."""
        save_checkpoint(self, Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on exactly where a checkpoint was saved.

        Raises:
            CheckpointError: it is incomplete, damaged or of another kind of trial.
        """
        load_checkpoint(self, resolve_checkpoint(Path(checkpoint_dir)))
        self._iteration = self.progress.iteration
        self.from_step = self.agent_steps_before = self.progress.agent_steps

    def get_learner_state(self) -> dict[str, Any]:
        """Weights, optimizer and generators of the learners as numpy arrays and numbers.

        The learners are alike but for the generators of minibatches: `[learners, bytes]`.
        """
        state = self.learner_group.get_state(
            not_components=[f"{COMPONENT_LEARNER}/{COMPONENT_METRICS_LOGGER}"]
        )[COMPONENT_LEARNER]
        told = self.learner_group.foreach_learner(
            lambda learner: (learner.index, learner.get_shuffles())
        )
        shuffles = dict(result.get() for result in told)
        return {**state, "shuffles": np.stack([shuffles[index] for index in sorted(shuffles)])}

    def set_learner_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_learner_state`; the env runners get the weights too."""
        self.learner_group.set_state({COMPONENT_LEARNER: state})
        if not self._one_process:
            # Otherwise they would leave out weights that are older than theirs.
            self.env_runner_group.foreach_env_runner(lambda runner: runner.forget_weights())
        self.sync_weights()

    def set_network_weights(self, weights: Weights) -> None:
        """Puts float32 arrays into the network, and into DQN's target; the optimizer stays."""
        state = {
            f"{network}.{name}": array
            for network in ("network", *(["target_network"] if "q.bias" in weights else []))
            for name, array in weights.items()
        }
        self.set_learner_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: state}})

    def get_games_states(self) -> list[dict[str, Any] | None]:
        """The state of every env runner's games, in the order of the env runners.

        None stands for one that has just died, and its games with it.
        """
        if not self.config.num_env_runners:
            return [self.env_runner.get_games_state()]
        states = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.worker_index, runner.get_games_state()), local_env_runner=False
        )
        by_index: dict[int, dict[str, Any]] = dict(states)
        return [by_index.get(index + 1) for index in range(self.config.num_env_runners)]

    def set_games_states(self, states: list[dict[str, Any] | None]) -> None:
        """The inverse of `get_games_states`; games that had died begin anew."""
        if not self.config.num_env_runners:
            self.env_runner.set_games_state(states[0])
            return
        steps = self.progress.agent_steps
        self.env_runner_group.foreach_env_runner(
            [
                lambda runner, state=state: (
                    runner.set_agent_steps(steps)
                    if state is None
                    else runner.set_games_state(state)
                )
                for state in states
            ],
            local_env_runner=False,
        )

    def get_extra_state(
        self, checkpoint: Path
    ) -> tuple[dict[str, Any], dict[Path, dict[str, Any]]]:
        """What else decides this algorithm's future (DQN's replay).

        Args:
            checkpoint: where the checkpoint will lie; shared files go beside it.

        Returns:
            Arrays and numbers, and the shared files that belong to the checkpoint, each with what
            a manifest tells of it.
        """
        return {}, {}

    def set_extra_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        """The inverse of `get_extra_state`."""
