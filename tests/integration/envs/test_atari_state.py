"""A game brought back in the middle goes on identically."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retro_ml.envs import atari
from retro_ml.envs.atari import AtariGames, FinishedGame

pytestmark = pytest.mark.integration

BuildGames = Callable[..., AtariGames]
GAMES = 2


def actions_at(games: AtariGames, moment: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(moment).integers(0, int(games.single_action_space.n), GAMES)


def record(games: AtariGames, start: int, stop: int) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """All frames, and all else that the steps gave, from moment `start` to `stop`."""
    frames, rest = [], []
    for moment in range(start, stop):
        step = games.step(actions_at(games, moment))
        frames.append(step.frames)
        rest.append(
            (
                step.rewards.tolist(),
                step.terminated.tolist(),
                step.truncated.tolist(),
                step.life_lost.tolist(),
                sorted(step.final_frames),
                step.finished,
                games.frames_played,
            )
        )
    return np.stack(frames), rest


@pytest.fixture
def build(build_games: BuildGames, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AtariGames]:
    """Random games of 25 agent steps at the most, seeded anew after 40 of them."""
    monkeypatch.setattr(atari, "RESEED_AGENT_STEPS", 40)

    def build(seed: int) -> AtariGames:
        return build_games(
            num_games=GAMES,
            seed=seed,
            sticky_actions=0.25,
            noop_max=30,
            auto_fire=True,
            max_frames=100,
        )

    return build


@pytest.mark.parametrize(
    "moment",
    [
        0,  # just begun: no actions yet
        13,  # in the middle of the first game
        50,  # just seeded anew: no actions since
        61,  # in the middle of a game after that
    ],
)
def test_goes_on_identically(build: Callable[[int], AtariGames], moment: int) -> None:
    games = build(6)
    games.reset()
    if moment:
        record(games, 0, moment)
    state = games.get_state()
    frames, rest = record(games, moment, moment + 35)

    again = build(6)
    again.set_state(state)
    frames_again, rest_again = record(again, moment, moment + 35)
    np.testing.assert_array_equal(frames_again, frames)
    assert rest_again == rest
    assert any(row[5] for row in rest), (
        "no game ended: the comparison would show less than it should"
    )


def test_games_of_unequal_age_meet_again(
    build_games: BuildGames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breakout ends by its lives, at other moments for each game; so histories differ in length,
    a life has just been lost in one of them, and the state is taken exactly there."""
    monkeypatch.setattr(atari, "RESEED_AGENT_STEPS", 60)
    how: dict[str, Any] = {
        "num_games": GAMES,
        "seed": 8,
        "sticky_actions": 0.25,
        "noop_max": 30,
        "auto_fire": True,
    }
    games = build_games(**how)
    games.reset()
    moment, seedings = 0, 0
    while True:
        step = games.step(actions_at(games, moment))
        moment += 1
        seedings += len(step.finished)
        if seedings >= 2 and step.life_lost.any():
            break
    state = games.get_state()
    lengths = [len(history) for history in state["history"]]
    assert len(set(lengths)) == GAMES
    assert max(state["seedings"]) > 1
    frames, rest = record(games, moment, moment + 80)

    again = build_games(**how)
    again.reset()
    record(again, 0, 17)  # what it did before does not matter
    again.set_state(state)
    frames_again, rest_again = record(again, moment, moment + 80)
    np.testing.assert_array_equal(frames_again, frames)
    assert rest_again == rest


def test_a_state_is_a_copy(build: Callable[[int], AtariGames]) -> None:
    games = build(1)
    games.reset()
    record(games, 0, 5)
    state = games.get_state()
    before = {
        name: [np.array(part) for part in value] if isinstance(value, list) else np.array(value)
        for name, value in state.items()
    }
    record(games, 5, 30)
    for name, value in before.items():
        np.testing.assert_equal(state[name], value)


def test_a_state_is_small(build: Callable[[int], AtariGames]) -> None:
    """Actions since the last seeding: 40 and one game of 25 at the most."""
    games = build(1)
    games.reset()
    for moment in range(90):
        games.step(actions_at(games, moment))
        assert max(len(history) for history in games.get_state()["history"]) < 40 + 25


def test_scores_and_lengths_of_games_in_progress_are_kept(
    build_games: BuildGames,
) -> None:
    def build() -> AtariGames:
        return build_games("ms_pacman", num_games=GAMES, max_frames=480)

    games = build()
    games.reset()
    record(games, 0, 100)
    state = games.get_state()
    assert state["scores"].max() >= 10
    again = build()
    again.set_state(state)
    _, rest = record(again, 100, 120)
    finished: list[tuple[int, FinishedGame]] = rest[-1][5]
    assert [game.agent_steps for _, game in finished] == [120] * GAMES
    _, whole = record(games, 100, 120)
    assert finished == whole[-1][5]
