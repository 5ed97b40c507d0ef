"""The strip beside the game, drawn."""

from dataclasses import replace

import numpy as np
import pytest

from retro_ml.evaluation.episodes import Episode
from retro_ml.evaluation.playback import Moment, Opinion
from retro_ml.evaluation.strip import Caption, Strip

pytestmark = pytest.mark.unit

ALL_ACTIONS = (
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
    *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE"),
    *("DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)
ORANGE, BLUE, GROUND = (230, 159, 0), (86, 180, 233), (18, 20, 24)


def build_strip(height: int = 630, actions: tuple[str, ...] = ("NOOP", "FIRE")) -> Strip:
    caption = Caption(title="Breakout", lines=("played by PPO", "after 1,000 agent steps"))
    return Strip(caption, action_meanings=actions, height=height, episodes=1)


def moment(*scores: float, action: int = 0, probabilities: bool = True) -> Moment:
    opinion = Opinion(
        np.array(scores, np.float32), are_probabilities=probabilities, value=1.5, action=action
    )
    return Moment(
        np.zeros((4, 210, 160, 3), np.uint8),
        opinion,
        game=0,
        score=12.0,
        lives=5,
        agent_steps=300,
        ended=None,
    )


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


def test_size_is_even_and_in_proportion() -> None:
    for height in (210, 420, 630, 750, 840, 2100):
        strip = build_strip(height)
        picture = strip.draw(moment(0.5, 0.5))
        assert picture.shape == (height, strip.width, 3)
        assert strip.width % 2 == 0
        assert abs(strip.width / height - 320 / 630) < 0.01


def test_bars_are_as_long_as_their_probability() -> None:
    strip = build_strip()

    even = strip.draw(moment(0.5, 0.5, action=1))
    uneven = strip.draw(moment(0.75, 0.25, action=1))

    # The chosen action's bar is orange, besides its mark; it has half the length.
    mark = count(strip.draw(moment(1.0, 0.0, action=1)), ORANGE)
    assert count(uneven, ORANGE) - mark == pytest.approx((count(even, ORANGE) - mark) / 2, rel=0.05)
    # The chart is blue as well, but stays the same for the same value.
    assert count(uneven, BLUE) > count(even, BLUE)


def test_lives_are_shown_where_the_game_has_them() -> None:
    with_lives = build_strip().draw(moment(0.5, 0.5))
    without = build_strip().draw(replace(moment(0.5, 0.5), lives=0))

    right_half = slice(with_lives.shape[1] // 2, None)
    there = slice(120, 220)
    assert (without[there, right_half] == GROUND).all()
    assert not (with_lives[there, right_half] == GROUND).all()


def test_a_game_that_ended_says_so() -> None:
    episode = Episode(score=12.0, agent_steps=300, frames=1200, capped=False)

    going_on = build_strip().draw(moment(0.5, 0.5))
    over = build_strip().draw(replace(moment(0.5, 0.5), ended=episode))

    foot = slice(590, 615)
    assert (going_on[foot, 160:] == GROUND).all()
    assert not (over[foot, 160:] == GROUND).all()


def test_all_eighteen_actions_stay_above_the_foot() -> None:
    strip = build_strip(actions=ALL_ACTIONS)
    scores = [1 / 18] * 18

    last = strip.draw(moment(*scores, action=17))
    first = strip.draw(moment(*scores, action=0))

    rows = np.flatnonzero((last != first).any(axis=(1, 2)))
    assert rows.min() >= 312
    assert rows.max() < 592


def test_values_are_drawn_between_the_lowest_and_the_highest() -> None:
    strip = build_strip()

    low = count(strip.draw(moment(-3.0, -1.0, action=1, probabilities=False)), ORANGE)
    high = count(strip.draw(moment(-3.0, 5.0, action=1, probabilities=False)), ORANGE)
    between = count(strip.draw(moment(-3.0, 1.0, action=1, probabilities=False)), ORANGE)

    assert low == high  # the highest of all until then
    assert between < high


def test_a_long_title_stays_inside() -> None:
    caption = Caption(title="A Very Long Title Of A Game Indeed", lines=("played by PPO",))
    strip = Strip(caption, action_meanings=("NOOP",), height=630, episodes=1)

    picture = strip.draw(moment(1.0))

    assert (picture[20:60, -20:] == GROUND).all()
