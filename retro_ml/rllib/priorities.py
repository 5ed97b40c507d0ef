"""Proportional prioritised replay (Schaul et al. 2016, section 3.3 and appendix B.2.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retro_ml.rllib.replay import CUT, FrameReplay

PRIORITY_EPS = 1e-6
"""Added to every error, so that no transition is lost for ever (Baselines, deepq/replay_buffer.py;
Schaul et al. name no value)."""


class Priorities:
    """A sum tree over a replay's rows.

    Args:
        replay: its rows are what the tree's leaves stand for.
        alpha: exponent of the priorities; 0 draws uniformly.
    """

    def __init__(self, replay: FrameReplay, *, alpha: float) -> None:
        self._replay = replay
        self._alpha = alpha
        self._leaves = 1 << (replay.num_lanes * replay.lane_size - 1).bit_length()
        self._tree = np.zeros(2 * self._leaves, np.float64)
        self._highest = 1.0

    @property
    def leaves(self) -> NDArray[np.float64]:
        """Each row's priority to the power of alpha."""
        return self._tree[self._leaves :]

    def add(self, rows: NDArray[np.int64]) -> None:
        """New rows get the highest priority seen, so that each is drawn soon."""
        kinds = self._replay.kinds.reshape(-1)[rows]
        self._set(rows, np.where(kinds == CUT, 0.0, self._highest**self._alpha))

    def update(self, rows: NDArray[np.int64], errors: NDArray[np.float32]) -> None:
        """Sets the priorities of rows just learned from to their absolute errors `[B]`."""
        priorities = np.abs(errors).astype(np.float64) + PRIORITY_EPS
        self._highest = max(self._highest, float(priorities.max()))
        self._set(rows, priorities**self._alpha)

    def draw(self, batch_size: int, n_step: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows in proportion to their priority: `[batch_size]`."""
        oldest, counts = self._replay.drawable(n_step)
        rows = np.empty(0, np.int64)
        while len(rows) < batch_size:
            drawn = self._find(rng.random(batch_size - len(rows)) * self._tree[1])
            lanes, positions = np.divmod(drawn, self._replay.lane_size)
            keep = (positions - oldest[lanes]) % self._replay.lane_size < counts[lanes]
            keep &= self._replay.kinds[lanes, positions] != CUT
            rows = np.concatenate([rows, drawn[keep]])
        return rows

    def weights(self, rows: NDArray[np.int64], beta: float) -> NDArray[np.float32]:
        """Importance weights `[B]`, the greatest of them 1."""
        shares = self._tree[self._leaves + rows] / self._tree[1]
        weights = (len(self._replay) * shares) ** -beta
        return (weights / weights.max()).astype(np.float32)

    def get_state(self) -> dict[str, object]:
        """Arrays and numbers for a checkpoint."""
        return {"leaves": self.leaves, "highest": self._highest}

    def set_state(self, state: dict[str, object]) -> None:
        """The inverse of `get_state`."""
        self._highest = float(state["highest"])  # type: ignore[arg-type]
        self._set(np.arange(self._leaves), np.asarray(state["leaves"], np.float64))

    def _set(self, rows: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        nodes = self._leaves + rows
        self._tree[nodes] = values
        while nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._tree[nodes] = self._tree[2 * nodes] + self._tree[2 * nodes + 1]

    def _find(self, sums: NDArray[np.float64]) -> NDArray[np.int64]:
        nodes = np.ones(len(sums), np.int64)
        while nodes[0] < self._leaves:
            left = self._tree[2 * nodes]
            right = sums >= left
            sums = np.where(right, sums - left, sums)
            nodes = 2 * nodes + right
        return nodes - self._leaves
