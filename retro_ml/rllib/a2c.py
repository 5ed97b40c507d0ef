"""Advantage actor-critic, synchronous (Mnih et al. 2016), which RLlib no longer has.

Built from RLlib's PPO, of which it is the special case with one pass over each rollout and no
minibatches (Huang et al. 2022, arXiv:2205.09123): the first step on fresh data has a probability
ratio of 1, so the clipped objective's gradient is the policy gradient's. What differs is the
Learner: RMSprop, the plain policy gradient as its loss, one update per rollout.

Against the paper: one update for all games instead of asynchronous ones. Against
Stable-Baselines3's: epsilon stands outside of RMSprop's root unless the preset `sb3` is chosen.
Inside, it outweighs gradients that are clipped to a norm of 0.5, and steps are several times
smaller: their published run is at a score of 2 on Breakout after a million agent steps, nnabla-rl's
at 29 to 45 with epsilon outside (but with a smaller network, and an optimizer each for policy and
value).
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms import ppo as rllib_ppo
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor
from torch.nn import functional

from retro_ml.rllib.algorithm import AtariAlgorithm, AtariConfigMixin
from retro_ml.rllib.learner import AtariLearner
from retro_ml.rllib.module import ActorCriticModule
from retro_ml.rllib.ppo import build_train_batch, explained_variance
from retro_ml.rllib.rmsprop import TensorFlowRMSprop


class A2CConfig(AtariConfigMixin, rllib_ppo.PPOConfig):
    """RLlib's PPOConfig reduced to A2C; `translate` sets the values."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or A2C)
        self.rmsprop_alpha = 0.99
        self.rmsprop_eps = 1e-5
        self.rmsprop_eps_inside_root = False
        self.updates_per_iteration = 1
        self.num_epochs = 1
        self.minibatch_size = None
        self.use_kl_loss = False
        self.kl_coeff = 0.0

    def get_default_learner_class(self) -> type:
        """The Learner below."""
        return A2CLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """NatureCNN with policy and value."""
        return RLModuleSpec(module_class=ActorCriticModule)


class A2C(AtariAlgorithm, rllib_ppo.PPO):
    """Short rollouts, one update each; several of both in one iteration."""

    @classmethod
    def get_default_config(cls) -> A2CConfig:
        """See `A2CConfig`."""
        return A2CConfig()

    def training_step(self) -> None:
        """Plays and learns until the iteration's agent steps are reached."""
        for _ in range(self.config.updates_per_iteration):
            rollouts = self.sample_rollouts()
            if not rollouts:
                return
            batch = build_train_batch(
                rollouts, gamma=self.config.gamma, gae_lambda=self.config.lambda_
            )
            self.update_learner(batch)
            self.sync_weights()


class A2CLearner(AtariLearner, PPOTorchLearner):
    """The policy gradient with a value baseline and an entropy bonus."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """RMSprop without momentum, epsilon inside or outside of the root."""
        parameters = self.get_parameters(self._module[module_id])
        optimizer_class = (
            TensorFlowRMSprop if config.rmsprop_eps_inside_root else torch.optim.RMSprop
        )
        optimizer = optimizer_class(
            parameters, lr=1.0, alpha=config.rmsprop_alpha, eps=config.rmsprop_eps
        )
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The scalar loss of one rollout."""
        log_probabilities = functional.log_softmax(fwd_out[Columns.ACTION_DIST_INPUTS], dim=-1)
        actions = batch[Columns.ACTIONS].long().unsqueeze(-1)
        chosen = log_probabilities.gather(-1, actions).squeeze(-1)
        policy_loss = -(batch[Postprocessing.ADVANTAGES] * chosen).mean()

        values = (
            self.module[module_id]
            .unwrapped()
            .compute_values(batch, embeddings=fwd_out[Columns.EMBEDDINGS])
        )
        targets = batch[Postprocessing.VALUE_TARGETS]
        value_loss = functional.mse_loss(values, targets)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()

        with torch.no_grad():
            self.record(
                policy_loss=policy_loss,
                value_loss=value_loss,
                entropy=entropy,
                explained_variance=explained_variance(values, targets),
            )
        return policy_loss + config.vf_loss_coeff * value_loss - config.entropy_coeff * entropy
