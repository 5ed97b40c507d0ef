"""Every game that ale-py brings is played, by both protocols: a few odd ones always,
all of them at night."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retro_ml.core.experiments.games import available_roms, find_game
from retro_ml.envs.atari import AtariGames
from retro_ml.envs.frames import PACKED_FRAME_SHAPE
from retro_ml.evaluation.human_scores import SCORES

pytestmark = pytest.mark.integration

BuildGames = Callable[..., AtariGames]
AGENT_STEPS = 20
PROTOCOLS: dict[str, dict[str, Any]] = {
    "noframeskip-v4": {"sticky_actions": 0.0, "noop_max": 30, "auto_fire": True},
    "v5": {"sticky_actions": 0.25, "noop_max": 0, "auto_fire": True},
}
ODD = {
    "backgammon": "its own actions have no NOOP",
    "skiing": "rewards far below 0, no lives",
    "tennis": "FIRE begins each rally, no lives",
    "video_chess": "beyond the 57, thinks between moves",
}


def games_to_play() -> list[Any]:
    return [
        pytest.param(rom, marks=[] if rom in ODD else pytest.mark.nightly)
        for rom in available_roms()
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rom", games_to_play())
def test_is_played_and_brought_back(build_games: BuildGames, rom: str, protocol: str) -> None:
    games, again = (build_games(rom, num_games=2, **PROTOCOLS[protocol]) for _ in range(2))
    actions = int(games.single_action_space.n)
    assert 2 <= actions <= 18
    assert len(set(games.action_meanings)) == actions
    rng, first = np.random.default_rng(0), games.reset()
    assert first.shape == (2, *PACKED_FRAME_SHAPE)
    frames_before, moved = games.frames_played, False
    for _ in range(AGENT_STEPS):
        step = games.step(rng.integers(0, actions, 2))
        moved |= not np.array_equal(step.frames, first)
    assert moved
    ended = 3 * 2 * AGENT_STEPS  # a step that ends a game has 1 to 4 frames
    assert games.frames_played - frames_before > 4 * 2 * AGENT_STEPS - ended
    again.set_state(games.get_state())
    for _ in range(3):
        chosen = rng.integers(0, actions, 2)
        np.testing.assert_array_equal(games.step(chosen).frames, again.step(chosen).frames)


def test_the_odd_ones_are_there() -> None:
    assert set(ODD) <= set(available_roms())


def test_the_57_are_among_them() -> None:
    assert len(SCORES) == 57
    assert set(SCORES) <= set(available_roms())
    assert all(find_game(rom).rom == rom for rom in SCORES)
