"""Deep Q-learning (Mnih et al. 2015), with double, dueling, n-step and prioritised as switches.

One round: every game plays a few steps epsilon-greedily, then the network learns from batches drawn
from the replay, one for every `agent_steps_per_update` agent steps. An iteration is many rounds.

Against RLlib's DQN (2.60): its defaults are double, dueling and prioritised, here all are off; its
updates per agent step fall as games per env runner grow, here their ratio is a setting; its replay
keeps episodes of stacked frames, here each frame is kept once; epsilon and target updates count
agent steps of the whole run. Against the paper: Adam and Huber's loss (CleanRL, Stable-Baselines3)
unless the preset says otherwise; several games play at once, with weights up to one round old.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms import dqn as rllib_dqn
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor
from torch.nn import functional

from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.rllib.algorithm import AtariAlgorithm, AtariConfigMixin
from retro_ml.rllib.learner import AtariLearner
from retro_ml.rllib.module import QModule
from retro_ml.rllib.priorities import Priorities
from retro_ml.rllib.replay import FrameReplay
from retro_ml.rllib.replay_segments import ReplaySegments

REPLAY_SEEDS = 4
"""First word of the key from which the generator of replay draws is derived."""
DISCOUNTS = "discounts"
TARGET_ROWS = 4096
"""Of the target network at once: its layers take 220 KB a row, and a thousand games make 32,000."""
NEXT_Q = "next_q"
"""The target network's action values of the next observations, `[B, A] float32`."""


class DQNConfig(AtariConfigMixin, rllib_dqn.DQNConfig):
    """RLlib's DQNConfig with this project's parts in place; `translate` sets the values."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DQN)
        self.n_step: int = 1
        self.adam_eps = 1e-8
        self.replay_size = 1_000_000
        self.prioritized = False
        self.prioritized_alpha = 0.5
        self.prioritized_beta = 0.4
        self.beta_agent_steps = 10_000_000
        self.agent_steps_per_update = 4
        self.rounds_per_iteration = 1
        self.min_sample_timesteps_per_iteration = 0

    def validate(self) -> None:
        """RLlib's checks, but for one: it wants all n steps of a return in one rollout.

        The replay here finds them across rollouts.
        """
        n_step, self.n_step = self.n_step, 1
        try:
            super().validate()
        finally:
            self.n_step = n_step

    def get_default_learner_class(self) -> type:
        """The Learner below."""
        return DQNLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """NatureCNN with action values, and its target."""
        return RLModuleSpec(module_class=QModule)


class DQN(AtariAlgorithm, rllib_dqn.DQN):
    """RLlib's DQN on a replay of frames."""

    @classmethod
    def get_default_config(cls) -> DQNConfig:
        """See `DQNConfig`."""
        return DQNConfig()

    def setup(self, config: Any) -> None:
        """Builds the replay, then what all algorithms share."""
        num_games = max(self.config.num_env_runners, 1) * self.config.num_envs_per_env_runner
        self.replay = FrameReplay(size=self.config.replay_size, num_lanes=num_games)
        self.priorities = (
            Priorities(self.replay, alpha=self.config.prioritized_alpha)
            if self.config.prioritized
            else None
        )
        self._segments = ReplaySegments()
        self._draws = np.random.default_rng(derive_seed(self.config.run_seed, REPLAY_SEEDS))
        self._owed_steps = 0
        super().setup(config)

    def training_step(self) -> None:
        """The iteration's rounds of playing and learning (Algorithm 1)."""
        for _ in range(self.config.rounds_per_iteration):
            rollouts = self.sample_rollouts()
            if not rollouts:
                return
            written = self.replay.add(rollouts)
            if self.priorities is not None:
                self.priorities.add(np.concatenate(written))
            self._learn(sum(len(rollout) for rollout in rollouts))

    def training_columns(self) -> dict[str, Any]:
        """Epsilon of the coming steps and transitions kept."""
        steps, shares = zip(*self.config.epsilon, strict=True)
        epsilon = float(np.interp(self.progress.agent_steps, steps, shares))
        return {"epsilon": epsilon, "replay_size": len(self.replay)}

    def get_extra_state(
        self, checkpoint: Path
    ) -> tuple[dict[str, Any], dict[Path, dict[str, Any]]]:
        """Replay, priorities, the generator of draws, and the agent steps not yet learned from."""
        segments, files = self._segments.save(self.replay, checkpoint)
        state = {
            "segments": segments,
            "priorities": self.priorities.get_state() if self.priorities else None,
            "draws": self._draws.bit_generator.state,
            "owed_steps": self._owed_steps,
        }
        return state, files

    def set_extra_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        """The inverse of `get_extra_state`."""
        self._segments.load(self.replay, state["segments"], checkpoint)
        if self.priorities is not None:
            self.priorities.set_state(state["priorities"])
        self._draws.bit_generator.state = state["draws"]
        self._owed_steps = state["owed_steps"]

    def _learn(self, agent_steps: int) -> None:
        """The updates that this many agent steps are worth, once the warm-up is over."""
        if self.progress.agent_steps <= self.config.num_steps_sampled_before_learning_starts:
            return
        if not self.replay.count(self.config.n_step):  # no warm-up, and no n steps played yet
            return
        self._owed_steps += agent_steps
        updates, self._owed_steps = divmod(self._owed_steps, self.config.agent_steps_per_update)
        if not updates:
            return
        batch_size = self.config.train_batch_size_per_learner * max(self.config.num_learners, 1)
        batch, rows = self._draw_batch(updates * batch_size)
        self.update_learner(batch, minibatch_size=self.config.train_batch_size_per_learner)
        if self.priorities is not None:
            errors = self.learner_group.foreach_learner(lambda learner: learner.take_errors())
            self.priorities.update(rows, np.concatenate([result.get() for result in errors]))
        self.sync_weights()

    def _draw_batch(self, count: int) -> tuple[MultiAgentBatch, np.ndarray[Any, Any]]:
        source = self.replay if self.priorities is None else self.priorities
        rows = source.draw(count, self.config.n_step, self._draws)
        drawn = self.replay.gather(rows, n_step=self.config.n_step, gamma=self.config.gamma)
        columns = {
            Columns.OBS: drawn.observations,
            Columns.NEXT_OBS: drawn.next_observations,
            Columns.ACTIONS: drawn.actions,
            Columns.REWARDS: drawn.rewards,
            DISCOUNTS: drawn.discounts,
        }
        if self.priorities is not None:
            start, end = self.config.prioritized_beta, 1.0
            steps = [0, self.config.beta_agent_steps]
            beta = float(np.interp(self.progress.agent_steps, steps, [start, end]))
            columns["weights"] = self.priorities.weights(rows, beta)
        return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, count), rows


class DQNLearner(AtariLearner):
    """The temporal difference error and the target network."""

    def build(self) -> None:
        """Builds module, target and optimizer."""
        super().build()
        self._target_updated_at = 0
        self._errors: list[Tensor] = []

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam on the network; the target network has no gradients."""
        parameters = [p for p in self.get_parameters(self._module[module_id]) if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1.0, eps=config.adam_eps, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The scalar loss of one batch (equation 1 of Mnih et al. 2015)."""
        module = self.module[module_id].unwrapped()
        q = fwd_out[Columns.ACTION_DIST_INPUTS]
        chosen = q.gather(-1, batch[Columns.ACTIONS].long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_q = batch[NEXT_Q]
            if config.double_q:
                best = module.network(batch[Columns.NEXT_OBS]).argmax(dim=-1, keepdim=True)
                next_value = next_q.gather(-1, best).squeeze(-1)
            else:
                next_value = next_q.max(dim=-1).values
            targets = batch[Columns.REWARDS] + batch[DISCOUNTS] * next_value
        if config.td_error_loss_fn == "huber":
            losses = functional.smooth_l1_loss(chosen, targets, reduction="none")
        else:
            losses = functional.mse_loss(chosen, targets, reduction="none")
        if "weights" in batch:
            losses = losses * batch["weights"]
            self._errors.append((chosen - targets).detach())
        loss = losses.mean()
        self.record(loss=loss, q_mean=chosen.mean())
        return loss

    def _minibatches(
        self, columns: dict[str, Tensor], count: int, size: int, epochs: int, shuffle: bool
    ) -> Iterator[MultiAgentBatch]:
        # The target network stays as it is for all batches of a round: few forward passes for all.
        target = self.module[DEFAULT_MODULE_ID].unwrapped().target_network
        with torch.no_grad():
            parts = columns[Columns.NEXT_OBS].split(TARGET_ROWS)
            next_q = torch.cat([target(part) for part in parts])
        columns = {**columns, NEXT_Q: next_q}
        if not self.config.double_q:
            del columns[Columns.NEXT_OBS]
        return super()._minibatches(columns, count, size, epochs, shuffle)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Copies the network to the target each time enough agent steps have passed."""
        super().after_gradient_based_update(timesteps=timesteps)
        agent_steps = int(timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])
        if agent_steps - self._target_updated_at >= self.config.target_network_update_freq:
            module = self.module[DEFAULT_MODULE_ID].unwrapped()
            module.target_network.load_state_dict(module.network.state_dict())
            # The multiple of the frequency that was passed, so that rounds do not stretch it.
            self._target_updated_at = (
                agent_steps - agent_steps % self.config.target_network_update_freq
            )

    def take_errors(self) -> np.ndarray[Any, Any]:
        """The temporal difference errors since the last call, in the order of the batches."""
        errors = torch.cat(self._errors).cpu().numpy()
        self._errors.clear()
        return errors

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The base's state and the agent step of the last copy to the target."""
        return super().get_state(*args, **kwargs) | {"target_updated_at": self._target_updated_at}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        super().set_state(state)
        self._target_updated_at = state.get("target_updated_at", self._target_updated_at)
