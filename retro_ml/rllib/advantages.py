"""Generalised advantage estimation (Schulman et al. 2016, equations 11, 12 and 16)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def estimate_advantages(
    *,
    rewards: NDArray[np.float32],
    values: NDArray[np.float32],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    final_values: NDArray[np.float32],
    gamma: float,
    gae_lambda: float,
) -> NDArray[np.float32]:
    """Advantages `[T, N] float32`.

    What follows a step is worth nothing where the game (or, if lives count, the life) was over, the
    value of its true last observation where the time limit cut it, and the next observation's value
    elsewhere; the sum over further steps stops at both kinds of end (Pardo et al. 2018).

    Args:
        rewards: `[T, N]`.
        values: `[T + 1, N]`; row T bootstraps the last step.
        terminated: `[T, N]`.
        truncated: `[T, N]`; never True together with `terminated`.
        final_values: `[T, N]` value of the last observation where truncated.
        gamma: discount per agent step.
        gae_lambda: 1 gives returns minus values (the n-step advantage of A2C).
    """
    steps, games = rewards.shape
    ended = terminated | truncated
    next_values = np.where(terminated, 0.0, np.where(truncated, final_values, values[1:]))
    deltas = (rewards + gamma * next_values - values[:-1]).astype(np.float32)
    decay = np.where(ended, 0.0, gamma * gae_lambda).astype(np.float32)
    advantages = np.empty((steps, games), np.float32)
    following = np.zeros(games, np.float32)
    for t in range(steps - 1, -1, -1):
        following = deltas[t] + decay[t] * following
        advantages[t] = following
    return advantages
