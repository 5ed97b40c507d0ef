"""RLlib's own PPO on Breakout: `python -m benchmarking.programs.stock_rllib ...`.

RLlib as it comes: its Atari wrappers around Gymnasium's environment, its env-to-module and learner
pipelines, its local env runner and local learner. The settings that decide the amount of work are
retro_ml's, and so is the network, but with `--example-network`, which takes that of RLlib's own
example of PPO on Atari (rllib/examples/algorithms/ppo/atari_ppo.py). The layer of 512, which both
heads of NatureCNN share, is a convolution as wide as its input here: RLlib's `head_fcnet_hiddens`
would give each head a layer of its own.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import ale_py
import gymnasium
import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack

from benchmarking.programs.report_file import ReportFile
from retro_ml.cluster.connect import connect

NATURE_CNN = DefaultModelConfig(
    conv_filters=[
        [32, 8, 4, "valid"],
        [64, 4, 2, "valid"],
        [64, 3, 1, "valid"],
        [512, 7, 1, "valid"],
    ],
    conv_activation="relu",
    head_fcnet_hiddens=[],
    vf_share_layers=True,
)
EXAMPLE = DefaultModelConfig(
    conv_filters=[[16, 4, 2], [32, 4, 2], [64, 4, 2], [128, 4, 2]],
    conv_activation="relu",
    head_fcnet_hiddens=[256],
    vf_share_layers=True,
)


def main() -> None:
    """Train, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--example-network", action="store_true")
    call = parser.parse_args()

    report = ReportFile()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tune.register_env("breakout", build_game)
    # retro_ml's way to a Ray that leaves nothing behind; what runs on it is RLlib's.
    with connect(None):
        network = EXAMPLE if call.example_network else NATURE_CNN
        algorithm = build_config(call.seed, network).build_algo()
        # The env runner's copy of the module lacks the value head.
        learner: Any = algorithm.learner_group._learner
        count = sum(
            parameter.numel() for parameter in learner.module[DEFAULT_MODULE_ID].parameters()
        )
        report.facts(parameters=count, torch_threads=torch.get_num_threads())
        for _ in range(call.iterations):
            result = algorithm.train()
            report.mark(result["env_runners"]["num_env_steps_sampled_lifetime"])
        algorithm.stop()


def build_game(settings: Any) -> gymnasium.Env[Any, Any]:
    """One game as RLlib's examples build it, 84x84 and four frames."""
    gymnasium.register_envs(ale_py)
    game = gymnasium.make("BreakoutNoFrameskip-v4")
    return wrap_atari_for_new_api_stack(game, dim=84, framestack=4)


def build_config(seed: int, network: DefaultModelConfig) -> PPOConfig:
    """8 games x 128 agent steps, 4 epochs in minibatches of 256."""
    return (
        PPOConfig()
        .environment("breakout", clip_rewards=True)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8, rollout_fragment_length=128)
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=1024,
            minibatch_size=256,
            num_epochs=4,
            lr=2.5e-4,
            gamma=0.99,
            lambda_=0.95,
            clip_param=0.1,
            entropy_coeff=0.01,
            vf_loss_coeff=0.5,
            grad_clip=0.5,
            grad_clip_by="global_norm",
        )
        .rl_module(model_config=network)
        .debugging(seed=seed, log_level="WARN")
    )


if __name__ == "__main__":
    main()
