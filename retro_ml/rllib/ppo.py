"""Proximal policy optimisation (Schulman et al. 2017) with the published Atari settings.

One iteration: N games play T steps under the current policy; the N x T steps, with their advantages
by generalised advantage estimation, are gone through for K epochs in shuffled minibatches.

Against RLlib's PPO (2.60): advantages are normalised per minibatch, not per batch; the squared
value error is not clamped (`vf_clip_param=10` leaves errors above 3.2 without a gradient); no KL
term; Adam's epsilon is 1e-5 and orthogonal initial weights are used (RLlib offers neither); the
batch is made from arrays, not from episodes. Against Stable-Baselines3's: none known in the update.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms import ppo as rllib_ppo
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor
from torch.nn import functional

from retro_ml.rllib.advantages import estimate_advantages
from retro_ml.rllib.algorithm import AtariAlgorithm, AtariConfigMixin
from retro_ml.rllib.learner import AtariLearner
from retro_ml.rllib.module import ActorCriticModule
from retro_ml.rllib.rollout import Rollout


class PPOConfig(AtariConfigMixin, rllib_ppo.PPOConfig):
    """RLlib's PPOConfig with this project's parts in place; `translate` sets the values."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or PPO)
        self.adam_eps = 1e-5
        self.normalize_advantages = True
        self.use_kl_loss = False
        self.kl_coeff = 0.0
        self.vf_clip_param = float("inf")

    def get_default_learner_class(self) -> type:
        """The Learner below."""
        return PPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """NatureCNN with policy and value."""
        return RLModuleSpec(module_class=ActorCriticModule)


class PPO(AtariAlgorithm, rllib_ppo.PPO):
    """RLlib's PPO on rollouts of arrays."""

    @classmethod
    def get_default_config(cls) -> PPOConfig:
        """See `PPOConfig`."""
        return PPOConfig()

    def training_step(self) -> None:
        """One iteration of Algorithm 1: play, estimate advantages, optimise."""
        rollouts = self.sample_rollouts()
        if not rollouts:
            return
        batch = build_train_batch(rollouts, gamma=self.config.gamma, gae_lambda=self.config.lambda_)
        self.update_learner(
            batch,
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )
        self.sync_weights()


def build_train_batch(
    rollouts: list[Rollout], *, gamma: float, gae_lambda: float
) -> MultiAgentBatch:
    """One row per agent step, step by step.

    Observations `[B, 21, 21, 64] uint8`, actions `[B]`, their log-probabilities when they were
    chosen, advantages and value targets `[B] float32`.
    """
    parts = [_columns(rollout, gamma=gamma, gae_lambda=gae_lambda) for rollout in rollouts]
    if len(parts) == 1:
        columns = parts[0]
    else:
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    steps = len(columns[Columns.ACTIONS])
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, steps)


def _columns(rollout: Rollout, *, gamma: float, gae_lambda: float) -> dict[str, Any]:
    advantages = estimate_advantages(
        rewards=rollout.rewards,
        values=rollout.values,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        final_values=rollout.final_values,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    shifted = rollout.scores - rollout.scores.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probabilities, rollout.actions[..., None], axis=-1)
    return {
        Columns.OBS: rollout.observations(),
        Columns.ACTIONS: rollout.actions.reshape(-1),
        Columns.ACTION_LOGP: chosen.reshape(-1),
        Postprocessing.ADVANTAGES: advantages.reshape(-1),
        Postprocessing.VALUE_TARGETS: (advantages + rollout.values[:-1]).reshape(-1),
    }


class PPOLearner(AtariLearner, PPOTorchLearner):
    """The clipped surrogate objective (equations 7 and 9)."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam with the epsilon of OpenAI Baselines (RLlib's default cannot be changed)."""
        parameters = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.Adam(parameters, lr=1.0, eps=config.adam_eps, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The scalar loss of one minibatch."""
        advantages = batch[Postprocessing.ADVANTAGES]
        if config.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        log_probabilities = functional.log_softmax(fwd_out[Columns.ACTION_DIST_INPUTS], dim=-1)
        actions = batch[Columns.ACTIONS].long().unsqueeze(-1)
        log_ratio = log_probabilities.gather(-1, actions).squeeze(-1) - batch[Columns.ACTION_LOGP]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - config.clip_param, 1.0 + config.clip_param)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()

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
                # Schulman, "Approximating KL divergence" (2020): the estimator k3.
                approx_kl=((ratio - 1.0) - log_ratio).mean(),
                clip_fraction=((ratio - 1.0).abs() > config.clip_param).float().mean(),
                explained_variance=explained_variance(values, targets),
            )
        return policy_loss + config.vf_loss_coeff * value_loss - config.entropy_coeff * entropy


def explained_variance(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 - Var(targets - predictions) / Var(targets), a scalar; 0 where the targets do not vary."""
    spread = targets.var(correction=0)  # a single target does not vary either
    if spread == 0:
        return torch.zeros_like(spread)
    return 1.0 - (targets - predictions).var(correction=0) / spread
