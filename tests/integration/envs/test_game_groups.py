"""Groups change when a game is computed, and nothing of its course."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames, GameSettings, Step
from retro_ml.envs.game_groups import GameGroups

pytestmark = pytest.mark.integration

SETTINGS = GameSettings(
    "breakout", sticky_actions=0.25, noop_max=30, max_frames=160, auto_fire=True
)
GAMES = 5


def build(num_threads: int, num_games: int = GAMES) -> Any:
    return closing(
        GameGroups(SETTINGS, num_games=num_games, num_threads=num_threads, seed=8, first_game=2)
    )


def step(actions: NDArray[np.int64], games: AtariGames, part: slice) -> Step:
    return games.step(actions[part])


def play(env: GameGroups, start: int, stop: int) -> Iterator[Any]:
    """Plays all groups from moment `start` to `stop`; yields what each game gave."""
    for moment in range(start, stop):
        actions = np.random.default_rng(moment).integers(0, 4, env.num_envs)
        steps = env.side_by_side(partial(step, actions))
        yield (
            np.concatenate([step.frames for step in steps]),
            np.concatenate([step.rewards for step in steps]),
            np.concatenate([step.started for step in steps]),
        )


def assert_same(ours: Iterator[Any], theirs: Iterator[Any]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for mine, yours in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, yours)


def test_two_groups_play_what_one_does() -> None:
    with build(1) as one, build(2) as two:
        assert (len(one.groups), len(two.groups)) == (1, 2)
        assert [games.num_envs for games in two.groups] == [2, 3]
        np.testing.assert_array_equal(one.reset(), two.reset())
        assert_same(play(one, 0, 60), play(two, 0, 60))
        assert one.frames_played == two.frames_played > 4 * 60 * GAMES


@pytest.mark.parametrize("threads", [(1, 2), (2, 1)])
def test_the_state_of_one_grouping_serves_another(threads: tuple[int, int]) -> None:
    with build(threads[0]) as env, build(threads[1]) as again:
        env.reset()
        list(play(env, 0, 50))
        again.set_state(env.get_state())
        assert again.frames_played == env.frames_played
        assert_same(play(env, 50, 80), play(again, 50, 80))


@pytest.mark.parametrize(
    ("num_games", "num_threads", "groups", "threads_per_group"),
    [(1, 8, 1, 8), (8, 1, 1, 1), (8, 2, 2, 1), (8, 8, 2, 4)],
)
def test_threads_are_shared_between_groups(
    num_games: int, num_threads: int, groups: int, threads_per_group: int
) -> None:
    with build(num_threads, num_games) as env:
        assert (len(env.groups), env.threads_per_group) == (groups, threads_per_group)
