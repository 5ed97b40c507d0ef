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
AGENT_STEPS = 40
PROTOCOLS: dict[str, dict[str, Any]] = {
    "noframeskip-v4": {"sticky_actions": 0.0, "noop_max": 30, "auto_fire": True},
    "v5": {"sticky_actions": 0.25, "noop_max": 0, "auto_fire": True},
}
ODD = {
    "backgammon": "its own actions have no NOOP",
    "freeway": "three actions, no lives, a fixed time",
    "montezuma_revenge": "18 actions of its own",
    "skiing": "rewards far below 0, no lives",
    "tennis": "FIRE begins each rally, no lives",
    "videochess": "beyond the 57, thinks between moves",
    "wizard_of_wor": "lives are counted after a wait",
}


def games_to_play() -> list[Any]:
    return [
        pytest.param(rom, marks=[] if rom in ODD else pytest.mark.nightly)
        for rom in available_roms()
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rom", games_to_play())
def test_is_played(build_games: BuildGames, rom: str, protocol: str) -> None:
    games = build_games(rom, num_games=2, max_frames=108_000, **PROTOCOLS[protocol])
    actions = int(games.single_action_space.n)
    assert 2 <= actions <= 18
    assert len(set(games.action_meanings)) == actions
    first = games.reset()
    assert first.shape == (2, *PACKED_FRAME_SHAPE)
    before, rng, seen = games.frames_played, np.random.default_rng(0), [first]
    for number in range(AGENT_STEPS):
        step = games.step(rng.integers(0, actions, 2))
        seen.append(step.frames)
        assert np.isfinite(step.rewards).all()
        if not step.started.any() and not any(game for _, game in step.finished):
            assert (games.game_frames >= 4 * min(number, 1)).all()
    assert games.frames_played - before >= 4 * AGENT_STEPS * 2 - 4 * 8
    assert (np.stack(seen) != first).any()  # something moves
    state = games.get_state()
    again = build_games(rom, num_games=2, max_frames=108_000, **PROTOCOLS[protocol])
    again.set_state(state)
    for _ in range(3):
        chosen = rng.integers(0, actions, 2)
        np.testing.assert_array_equal(games.step(chosen).frames, again.step(chosen).frames)


def test_the_57_are_among_them() -> None:
    assert len(SCORES) == 57
    assert set(SCORES) <= set(available_roms())
    assert all(find_game(rom).rom == rom for rom in SCORES)
