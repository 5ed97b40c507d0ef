"""Stable-Baselines3's PPO, A2C or DQN on Breakout: `python -m benchmarking.programs.sb3 ...`.

Its own Atari wrappers on a DummyVecEnv with VecFrameStack, as rl-zoo3 runs it; PPO's settings are
retro_ml's, the others' are Stable-Baselines3's own or rl-zoo3's, the replay is small.
"""

from __future__ import annotations

import argparse
import os

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from benchmarking.programs.report_file import ReportFile

NUM_GAMES = {"PPO": 8, "A2C": 16, "DQN": 1}


class MarkIterations(BaseCallback):
    """A mark at the first update's end after every so many agent steps."""

    def __init__(self, report: ReportFile, every_agent_steps: int) -> None:
        super().__init__()
        self._report = report
        self._every = every_agent_steps
        self._next = every_agent_steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.mark()

    def mark(self) -> None:
        """Between two rollouts, and after the last one's update."""
        if self.num_timesteps >= self._next:
            self._report.mark(self.num_timesteps)
            self._next += self._every


def main() -> None:
    """Train, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", choices=sorted(NUM_GAMES), required=True)
    parser.add_argument("--agent-steps", type=int, required=True)
    parser.add_argument("--mark-every", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    call = parser.parse_args()

    report = ReportFile()
    gymnasium.register_envs(ale_py)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    games = make_atari_env(
        "BreakoutNoFrameskip-v4",
        n_envs=NUM_GAMES[call.algorithm],
        seed=call.seed,
        vec_env_cls=DummyVecEnv,
    )
    model = build_model(call.algorithm, VecFrameStack(games, 4), call.seed)
    report.facts(parameters=count_parameters(model), torch_threads=torch.get_num_threads())
    callback = MarkIterations(report, call.mark_every)
    model.learn(call.agent_steps, callback=callback)
    callback.mark()


def build_model(algorithm: str, games: VecFrameStack, seed: int) -> BaseAlgorithm:
    """The algorithm with its settings."""
    if algorithm == "PPO":
        return PPO(
            "CnnPolicy",
            games,
            n_steps=128,
            batch_size=256,
            n_epochs=4,
            learning_rate=2.5e-4,
            clip_range=0.1,
            ent_coef=0.01,
            seed=seed,
            device="cpu",
        )
    if algorithm == "A2C":
        return A2C(
            "CnnPolicy", games, n_steps=5, ent_coef=0.01, vf_coef=0.25, seed=seed, device="cpu"
        )
    return DQN(
        "CnnPolicy",
        games,
        buffer_size=10_000,
        learning_starts=500,
        batch_size=32,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=1_000,
        learning_rate=1e-4,
        exploration_fraction=0.1,
        exploration_final_eps=0.01,
        seed=seed,
        device="cpu",
    )


def count_parameters(model: BaseAlgorithm) -> int:
    """Of the network that acts: DQN's target is not counted."""
    network = model.q_net if isinstance(model, DQN) else model.policy
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
