"""What is random about a rollout's actions, drawn before it is played.

Groups of games play side by side in threads of their own (`envs.game_groups`); what each of them
draws must not depend on which comes first, nor on how many groups there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Exploration:
    """The draws of T agent steps of N games; without any, the highest score is taken."""

    noise: NDArray[np.float32] | None = None
    """`[T, N, A]` what is added to the scores before the highest is taken."""
    forced: NDArray[np.int64] | None = None
    """`[T, N]` actions that are taken whatever the scores; -1 where the scores decide."""

    def choose(self, scores: NDArray[np.float32], t: int, part: slice) -> NDArray[np.int64]:
        """Actions `[n]` of step `t` for the scores `[n, A]` of the games in `part`."""
        if self.noise is not None:
            scores = scores + self.noise[t, part]
        best = scores.argmax(axis=1)
        if self.forced is None:
            return best
        forced = self.forced[t, part]
        return np.where(forced < 0, best, forced)


def draw_softmax(rng: np.random.Generator, shape: tuple[int, int, int]) -> Exploration:
    """Actions drawn from the softmax of the scores; `shape` is `(T, N, A)`.

    The Gumbel-max trick: argmax(score - log E), E ~ Exp(1), is a draw from the softmax.
    """
    draws = rng.standard_exponential(shape, dtype=np.float32)
    # Of 2^23 draws one is 0, in float32.
    return Exploration(noise=-np.log(np.maximum(draws, np.finfo(np.float32).tiny)))


def draw_epsilon_greedy(
    rng: np.random.Generator, shape: tuple[int, int, int], epsilons: NDArray[np.float64]
) -> Exploration:
    """A random action with probability `epsilons[t]` (`[T]`), otherwise the best one."""
    steps, games, num_actions = shape
    explores = rng.random((steps, games)) < epsilons[:, None]
    at_random = rng.integers(0, num_actions, (steps, games))
    return Exploration(forced=np.where(explores, at_random, -1))


def draw_uniform(rng: np.random.Generator, shape: tuple[int, int, int]) -> Exploration:
    """Every action with the same probability."""
    return Exploration(forced=rng.integers(0, shape[2], shape[:2]))
