"""What an EnvRunner hands to an Algorithm in one piece: T agent steps of N games, as plain arrays.

Frames are stored once (7 kB an agent step, a quarter of the stacks), so this is also what travels
from a remote EnvRunner. RLlib asks a sample for its number of steps and for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retro_ml.envs.atari import FinishedGame
from retro_ml.envs.frames import STACK_SIZE, gather_stacks

HISTORY = STACK_SIZE - 1
"""Frames before the first step that its stack needs."""


@dataclass(slots=True)
class Rollout:
    """T agent steps of N games; T + 1 observations, the last one to bootstrap from."""

    frames: NDArray[np.uint8]
    """`[3 + T + 1, N, 21, 21, 16]`; row 3 + t holds the newest frame of step t's observation."""
    ages: NDArray[np.uint8]
    """`[T + 1, N]` agent steps since the game of that observation began, 3 for 3 or more."""
    actions: NDArray[np.int64]
    """`[T, N]` as the agent chose them."""
    scores: NDArray[np.float32]
    """`[T, N, A]` logits or action values under which the actions were chosen."""
    values: NDArray[np.float32]
    """`[T + 1, N]` state values; of shape `[0, N]` where the module has none."""
    rewards: NDArray[np.float32]
    """`[T, N]` as the agent learns from them: clipped where the config says so."""
    terminated: NDArray[np.bool_]
    """`[T, N]` nothing follows: game over, or a life lost where lives end an episode."""
    truncated: NDArray[np.bool_]
    """`[T, N]` cut by the time limit; the return is bootstrapped from `final_*`."""
    final_values: NDArray[np.float32]
    """`[T, N]` value of the last observation of a game that was truncated there, else 0."""
    final_frames: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)
    """The last frame `[21, 21, 16]` of each game that was truncated, by (t, game)."""
    finished: list[tuple[int, FinishedGame]] = field(default_factory=list)
    """The whole games that ended, with the agent steps (all N games') played here until then."""
    frames_played: int = 0
    """Emulator frames behind these steps, starts of games included."""

    def __len__(self) -> int:
        return self.actions.size

    def env_steps(self) -> int:
        """Agent steps, T x N; RLlib's name for them."""
        return self.actions.size

    def agent_steps(self) -> int:
        """Agent steps, T x N."""
        return self.actions.size

    def observations(self) -> NDArray[np.uint8]:
        """The stacks of steps 0 to T - 1: `[T * N, 21, 21, 64]`, step by step."""
        steps, games = self.actions.shape
        rows = np.arange(steps * games).reshape(-1, 1) + np.arange(STACK_SIZE) * games
        flat = self.frames.reshape(-1, *self.frames.shape[2:])
        return gather_stacks(flat, rows, self.ages[:steps].reshape(-1))
