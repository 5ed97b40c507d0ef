"""What one processor can do at the best: `python -m benchmarking.programs.floors --algorithm PPO`.

The three parts of training, each alone and each the fastest that this machine's libraries offer:
the emulator with random actions, the network's forward pass, and updates, in fp32 and, where the
processor has it, in bf16. Rates are units over the median time of many equal portions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor
from torch.nn import functional

from benchmarking.programs.report_file import ReportFile
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork
from retro_ml.rllib.machine import cpu_has_bf16, keep_freed_memory
from retro_ml.rllib.module import compute_dtype

NUM_GAMES = {"PPO": 8, "A2C": 16, "DQN": 4}
NUM_ACTIONS = 4
PACKED = (21, 21, 64)
DQN_UPDATES = 4
"""Updates that follow one another in DQN; the target network sees their batches at once."""


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", choices=sorted(NUM_GAMES), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    call = parser.parse_args()

    report = ReportFile()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    keep_freed_memory()
    games = NUM_GAMES[call.algorithm]
    facts = {"env_agent_steps_per_s": measure(build_play(games, threads), call.seconds)}
    for precision in ("fp32", "bf16") if cpu_has_bf16() else ("fp32",):
        network = build_network(call.algorithm, precision)
        updates = [UPDATES[call.algorithm](network, fused=fused) for fused in (False, True)]
        forward = build_forward(network, games)
        facts[f"forward_{precision}_observations_per_s"] = measure(forward, call.seconds)
        fastest = max(measure(update, call.seconds) for update in updates)
        facts[f"update_{precision}_samples_per_s"] = fastest
    report.facts(torch_threads=torch.get_num_threads(), **facts)


def build_network(algorithm: str, precision: str) -> Any:
    """The algorithm's network, its body in that precision."""
    kind = QNetwork if algorithm == "DQN" else ActorCriticNetwork
    return kind(NUM_ACTIONS, dtype=compute_dtype(precision))


def measure(portion: Callable[[], int], seconds: float) -> float:
    """Units per second; `portion` does some work and tells how many units it was."""
    portion()
    durations_s: list[float] = []
    end_s = time.perf_counter() + seconds
    units = 0
    while not durations_s or time.perf_counter() < end_s:
        began_s = time.perf_counter()
        units = portion()
        durations_s.append(time.perf_counter() - began_s)
    return units / statistics.median(durations_s)


def build_play(games: int, threads: int) -> Callable[[], int]:
    """The emulator as retro_ml.envs.atari sets it up, without any of its own work."""
    vector = AtariVectorEnv(
        "breakout",
        num_envs=games,
        num_threads=min(threads, games),
        max_num_frames_per_episode=108_000,
        repeat_action_probability=0.0,
        autoreset_mode="SameStep",
        stack_num=1,
        frameskip=4,
        noop_max=31,
        use_fire_reset=True,
        reward_clipping=False,
    )
    vector.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, NUM_ACTIONS, (64, games))

    def play() -> int:
        for chosen in actions:
            vector.step(chosen)
        return actions.size

    return play


def build_forward(network: ActorCriticNetwork | QNetwork, games: int) -> Callable[[], int]:
    """The forward pass of a rollout, without gradients and with the weights arranged once."""
    observations = random_observations(games)
    with torch.inference_mode():
        weights = network.arranged_weights()

    def forward() -> int:
        with torch.inference_mode():
            for _ in range(32):
                network(observations, weights)
        return 32 * games

    return forward


def build_ppo_update(network: ActorCriticNetwork, *, fused: bool) -> Callable[[], int]:
    """A minibatch of 256: the clipped objective, gradient norm, Adam."""
    size = 256
    observations, actions = random_observations(size), torch.randint(NUM_ACTIONS, (size, 1))
    advantages, targets = torch.randn(size), torch.randn(size)
    before = torch.full((size,), -float(np.log(NUM_ACTIONS)))
    optimizer = torch.optim.Adam(network.parameters(), lr=2.5e-4, eps=1e-5, fused=fused)

    def update() -> int:
        logits, values = network(observations)
        log_probabilities = functional.log_softmax(logits, dim=-1)
        ratio = (log_probabilities.gather(-1, actions).squeeze(-1) - before).exp()
        policy_loss = -torch.min(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages).mean()
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()
        loss = policy_loss + 0.5 * functional.mse_loss(values, targets) - 0.01 * entropy
        descend(network, optimizer, loss, max_norm=0.5)
        return size

    return update


def build_a2c_update(network: ActorCriticNetwork, *, fused: bool) -> Callable[[], int]:
    """A rollout of 16 games x 5 steps: the policy gradient, gradient norm, RMSprop."""
    size = 80
    observations, actions = random_observations(size), torch.randint(NUM_ACTIONS, (size, 1))
    advantages, targets = torch.randn(size), torch.randn(size)
    # RMSprop has no fused form; foreach is the other one that it has.
    optimizer = torch.optim.RMSprop(
        network.parameters(), lr=7e-4, alpha=0.99, eps=1e-5, foreach=fused
    )

    def update() -> int:
        logits, values = network(observations)
        log_probabilities = functional.log_softmax(logits, dim=-1)
        policy_loss = -(advantages * log_probabilities.gather(-1, actions).squeeze(-1)).mean()
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()
        loss = policy_loss + 0.5 * functional.mse_loss(values, targets) - 0.01 * entropy
        descend(network, optimizer, loss, max_norm=0.5)
        return size

    return update


def build_dqn_updates(network: QNetwork, *, fused: bool) -> Callable[[], int]:
    """Batches of 32: the target network for all of them, then Huber's loss and Adam for each."""
    size = 32
    observations = random_observations(DQN_UPDATES * size)
    actions = torch.randint(NUM_ACTIONS, (size, 1))
    target_network = QNetwork(NUM_ACTIONS, dtype=network.body.dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused)

    def update() -> int:
        with torch.inference_mode():
            # Inference tensors may not be saved for the backward pass; a copy may.
            best = target_network(observations).max(dim=-1).values
        targets = best.clone()
        for part, target in zip(observations.split(size), targets.split(size), strict=True):
            chosen = network(part).gather(-1, actions).squeeze(-1)
            loss = functional.smooth_l1_loss(chosen, target)
            descend(network, optimizer, loss, max_norm=10.0)
        return DQN_UPDATES * size

    return update


def descend(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, *, max_norm: float
) -> None:
    """One step of the optimizer."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()


def random_observations(count: int) -> Tensor:
    """`[count, 21, 21, 64] uint8`."""
    return torch.randint(0, 256, (count, *PACKED), dtype=torch.uint8)


UPDATES: dict[str, Callable[..., Callable[[], int]]] = {
    "PPO": build_ppo_update,
    "A2C": build_a2c_update,
    "DQN": build_dqn_updates,
}


if __name__ == "__main__":
    main()
