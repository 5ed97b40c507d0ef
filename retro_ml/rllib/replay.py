"""Replay memory (Lin 1992; Mnih et al. 2015): every frame once, in the order of play.

Each game has a ring of its own ("lane"), so a transition's stack and its successor are the rows
beside it. A row holds an observation's newest frame, the action taken on it and what came of it.
Where the time limit cut a game, one more row holds its last frame: it is no transition, but the one
before it bootstraps from it. Where a rollout does not follow what its lane holds (an env runner was
lost), the lane's last row becomes such a row too, and the frames that the rollout's first stacks
need are put before it. 7,063 bytes a row: 7.1 GB for a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.envs.frames import PACKED_FRAME_SHAPE, STACK_SIZE, gather_stacks
from retro_ml.rllib.rollout import HISTORY, Rollout

ROW_BYTES = int(np.prod(PACKED_FRAME_SHAPE)) + 7
"""A row in memory: the frame, one byte each for action, kind and age, four for the reward."""
PLAYING, TERMINAL, CUT = 0, 1, 2
"""Kinds of rows: a transition, one that nothing follows, a frame that is only seen (the last one of
a game cut by time)."""


@dataclass(slots=True)
class Transitions:
    """B transitions; over n steps where `n_step` is above 1 (Sutton 1988)."""

    observations: NDArray[np.uint8]
    """`[B, 21, 21, 64]`."""
    next_observations: NDArray[np.uint8]
    """`[B, 21, 21, 64]`; any frames where `discounts` is 0."""
    actions: NDArray[np.int64]
    """`[B]`."""
    rewards: NDArray[np.float32]
    """`[B]` discounted sum over the steps."""
    discounts: NDArray[np.float32]
    """`[B]` gamma to the number of steps, 0 where nothing follows."""
    rows: NDArray[np.int64]
    """`[B]` where they stand, lane x lane size + position; for priorities."""


class FrameReplay:
    """Rings of frames for N lanes.

    Args:
        size: transitions to keep, over all lanes.
        num_lanes: games played side by side, by all env runners together.
    """

    def __init__(self, *, size: int, num_lanes: int) -> None:
        # A lane's oldest rows serve as history only, and its newest has no successor yet.
        self.lane_size = -(-size // num_lanes) + STACK_SIZE
        self.num_lanes = num_lanes
        shape = (num_lanes, self.lane_size)
        self.frames = np.zeros((*shape, *PACKED_FRAME_SHAPE), np.uint8)
        self.actions = np.zeros(shape, np.uint8)
        self.rewards = np.zeros(shape, np.float32)
        self.kinds = np.zeros(shape, np.uint8)
        self.ages = np.zeros(shape, np.uint8)
        self.heads = np.zeros(num_lanes, np.int64)
        """Rows ever written to each lane."""

    def __len__(self) -> int:
        return int(np.minimum(self.heads, self.lane_size).sum())

    def add(self, rollouts: Sequence[Rollout]) -> list[NDArray[np.int64]]:
        """Stores what the env runners played side by side, one after the other.

        Returns:
            The rows written, lane by lane.
        """
        written = []
        lane = 0
        for rollout in rollouts:
            for game in range(rollout.actions.shape[1]):
                written.append(self._add_game(lane, rollout, game))
                lane += 1
        return written

    def count(self, n_step: int) -> int:
        """Rows that can be drawn, the few last frames of cut games included."""
        return int(self.drawable(n_step)[1].sum())

    def draw(self, batch_size: int, n_step: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of transitions, each equally likely: `[batch_size]`."""
        oldest, counts = self.drawable(n_step)
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.empty(0, np.int64)
        while len(rows) < batch_size:
            drawn = rng.integers(0, starts[-1], batch_size - len(rows))
            lanes = np.searchsorted(starts, drawn, side="right") - 1
            positions = (oldest[lanes] + drawn - starts[lanes]) % self.lane_size
            keep = self.kinds[lanes, positions] != CUT
            rows = np.concatenate([rows, (lanes * self.lane_size + positions)[keep]])
        return rows

    def gather(self, rows: NDArray[np.int64], *, n_step: int, gamma: float) -> Transitions:
        """The transitions that begin at `rows`."""
        lanes, positions = np.divmod(rows, self.lane_size)
        rewards = np.zeros(len(rows), np.float32)
        discounts = np.ones(len(rows), np.float32)
        ends = positions.copy()
        going = np.ones(len(rows), np.bool_)
        for _ in range(n_step):
            kinds = self.kinds[lanes, ends]
            going &= kinds != CUT
            rewards += np.where(going, discounts * self.rewards[lanes, ends], 0.0)
            discounts = np.where(going, discounts * gamma, discounts).astype(np.float32)
            discounts = np.where(going & (kinds == TERMINAL), 0.0, discounts).astype(np.float32)
            ends = np.where(going, (ends + 1) % self.lane_size, ends)
            going &= kinds != TERMINAL
        return Transitions(
            observations=self._stacks(lanes, positions),
            next_observations=self._stacks(lanes, ends),
            actions=self.actions[lanes, positions].astype(np.int64),
            rewards=rewards,
            discounts=discounts,
            rows=rows,
        )

    def get_rows(self, lane: int, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Rows `start` to `stop` (counted since the beginning) of one lane, for a checkpoint."""
        at = np.arange(start, stop) % self.lane_size
        columns = ("frames", "actions", "rewards", "kinds", "ages")
        return {name: getattr(self, name)[lane, at] for name in columns}

    def put_rows(self, lane: int, start: int, rows: dict[str, NDArray[Any]]) -> None:
        """The inverse of `get_rows`; sets the lane's head behind them."""
        stop = start + len(rows["actions"])
        at = np.arange(start, stop) % self.lane_size
        for name, values in rows.items():
            getattr(self, name)[lane, at] = values
        self.heads[lane] = stop

    def drawable(self, n_step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each lane's first row with its whole history; how many from there have n successors."""
        oldest = np.where(self.heads > self.lane_size, self.heads - self.lane_size + HISTORY, 0)
        return oldest, np.maximum(self.heads - n_step - oldest, 0)

    def _stacks(self, lanes: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        back = np.arange(-HISTORY, 1)
        rows = lanes[:, None] * self.lane_size + (positions[:, None] + back) % self.lane_size
        flat = self.frames.reshape(-1, *PACKED_FRAME_SHAPE)
        return gather_stacks(flat, rows, self.ages[lanes, positions])

    def _add_game(self, lane: int, rollout: Rollout, game: int) -> NDArray[np.int64]:
        steps = len(rollout.actions)
        kinds = np.where(rollout.terminated[:, game], TERMINAL, PLAYING).astype(np.uint8)
        start = int(self.heads[lane])
        if not self._goes_on(lane, rollout, game):
            self._begin_anew(lane, rollout, game)
        begin = 0
        for cut in [*np.flatnonzero(rollout.truncated[:, game]).tolist(), None]:
            stop = steps if cut is None else cut + 1
            self._append(
                lane,
                frames=rollout.frames[HISTORY + begin : HISTORY + stop, game],
                actions=rollout.actions[begin:stop, game],
                rewards=rollout.rewards[begin:stop, game],
                kinds=kinds[begin:stop],
                ages=rollout.ages[begin:stop, game],
            )
            if cut is not None:
                self._append(
                    lane,
                    frames=rollout.final_frames[cut, game][None],
                    actions=np.zeros(1, np.int64),
                    rewards=np.zeros(1, np.float32),
                    kinds=np.array([CUT], np.uint8),
                    ages=np.minimum(rollout.ages[cut : cut + 1, game] + 1, HISTORY),
                )
            begin = stop
        return lane * self.lane_size + np.arange(start, int(self.heads[lane])) % self.lane_size

    def _goes_on(self, lane: int, rollout: Rollout, game: int) -> bool:
        """Whether the rollout's first step follows the lane's last row in play."""
        age, head = int(rollout.ages[0, game]), int(self.heads[lane])
        rows = np.arange(head - age, head) % self.lane_size
        if head < age or (head and age and self.kinds[lane, rows[-1]] == CUT):
            return False
        if age == 0:
            return head == 0 or bool(self.kinds[lane, (head - 1) % self.lane_size] != PLAYING)
        return np.array_equal(
            self.frames[lane, rows], rollout.frames[HISTORY - age : HISTORY, game]
        )

    def _begin_anew(self, lane: int, rollout: Rollout, game: int) -> None:
        """Keeps what follows apart from what the lane holds, which does not lead up to it."""
        # An env runner was lost: this is another's game, or play that was left out lies between.
        last = (int(self.heads[lane]) - 1) % self.lane_size
        if self.heads[lane] and self.kinds[lane, last] == PLAYING:
            self.kinds[lane, last] = CUT
        age = int(rollout.ages[0, game])
        self._append(
            lane,
            frames=rollout.frames[HISTORY - age : HISTORY, game],
            actions=np.zeros(age, np.int64),
            rewards=np.zeros(age, np.float32),
            kinds=np.full(age, CUT, np.uint8),
            ages=np.zeros(age, np.uint8),
        )

    def _append(self, lane: int, **columns: NDArray[Any]) -> None:
        start = int(self.heads[lane])
        self.put_rows(lane, start, columns)
