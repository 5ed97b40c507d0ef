"""The games of one env runner in groups that play side by side, each in its own thread.

A thread asks the network for its group's actions, then the emulator for what they give, and goes on
without waiting for the others until the rollout's end: both leave Python's lock while they compute,
and no core is idle in between. (rlpyt's alternating sampler has the groups take turns with one
network: Stooke and Abbeel 2019, section 3.1.) Each group is a vector of its own. A game's course
depends on its own seed and actions alone, so groups change the order in which things are computed
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames, GameSettings

T = TypeVar("T")


class GameGroups:
    """N games in one or two groups, in order.

    Args:
        settings: the game and its protocol.
        num_games: N.
        num_threads: threads that the caller has for emulator and network together; with one there
            is nothing to do side by side, and one group.
        seed: the run's seed.
        first_game: the first game among all of the run's.
    """

    def __init__(
        self,
        settings: GameSettings,
        *,
        num_games: int,
        num_threads: int,
        seed: int,
        first_game: int = 0,
    ) -> None:
        count = min(2, num_threads, num_games)
        self.num_envs = num_games
        self.threads_per_group = max(1, num_threads // count)
        """What each group has, for the emulator and the network in turn."""
        bounds = np.linspace(0, num_games, count + 1).astype(int).tolist()
        self.parts = [slice(*pair) for pair in pairwise(bounds)]
        """Each group's place among the N games."""
        self.groups = [
            AtariGames(
                settings,
                num_games=part.stop - part.start,
                num_threads=self.threads_per_group,
                seed=seed,
                first_game=first_game + part.start,
            )
            for part in self.parts
        ]
        games = self.groups[0]
        self.action_meanings = games.action_meanings
        self.single_observation_space = games.single_observation_space
        self.single_action_space = games.single_action_space
        self.observation_space = batch_space(games.single_observation_space, num_games)
        self.action_space = batch_space(games.single_action_space, num_games)

    @property
    def unwrapped(self) -> GameGroups:
        """RLlib asks an env for what lies beneath its wrappers: there are none."""
        return self

    @property
    def frames_played(self) -> int:
        """Emulator frames so far, those of games' starts included."""
        return sum(games.frames_played for games in self.groups)

    def reset(self) -> NDArray[np.uint8]:
        """Seeds every game anew and starts it. Returns the first frames `[N, 21, 21, 16]`."""
        return np.concatenate(self.side_by_side(lambda games, part: games.reset()))

    def side_by_side(self, function: Callable[[AtariGames, slice], T]) -> list[T]:
        """Calls `function` with each group and its part, all at the same time; its answers.

        The first group's turn is this thread's: what already has a core need not be woken. Threads
        for the others end with the call: as long as one lives that has used OpenMP with several
        threads, PyTorch's threads no longer wait awake (libgomp counts more of them than CPUs).
        """
        (first, part), *others = zip(self.groups, self.parts, strict=True)
        with ThreadPoolExecutor(len(self.groups), thread_name_prefix="games") as pool:
            started = [pool.submit(function, *other) for other in others]
            return [function(first, part), *(other.result() for other in started)]

    def close(self) -> None:
        """Stops the emulators' threads."""
        for games in self.groups:
            games.close()

    def get_state(self) -> dict[str, Any]:
        """The state of all N games, whatever groups they are in."""
        states = [games.get_state() for games in self.groups]
        return {
            "seedings": np.concatenate([state["seedings"] for state in states]),
            "history": [history for state in states for history in state["history"]],
            "scores": np.concatenate([state["scores"] for state in states]),
            "lengths": np.concatenate([state["lengths"] for state in states]),
            "frames_played": self.frames_played,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Brings every game back to where `get_state` found it; see `AtariGames.set_state`."""
        per_game = ("seedings", "history", "scores", "lengths")

        def set_group(games: AtariGames, part: slice) -> None:
            frames = state["frames_played"] if part.start == 0 else 0
            games.set_state(
                {name: state[name][part] for name in per_game} | {"frames_played": frames}
            )

        self.side_by_side(set_group)
