"""The figures of human-normalised scores."""

import pytest

from retro_ml.core.experiments.games import available_roms
from retro_ml.evaluation.human_scores import SCORES, human_normalise

pytestmark = pytest.mark.unit


def test_there_are_57_games_by_their_roms_names() -> None:
    assert len(SCORES) == 57
    assert set(SCORES) <= set(available_roms())


def test_the_figures_are_the_published_ones() -> None:
    # The sums of the published columns: a digit that went wrong anywhere shows.
    assert sum(random for random, _ in SCORES.values()) == pytest.approx(50_864.9)
    assert sum(human for _, human in SCORES.values()) == pytest.approx(606_494.2)
    assert SCORES["breakout"] == (1.7, 30.5)
    assert SCORES["pong"] == (-20.7, 14.6)
    assert SCORES["video_pinball"] == (16_256.9, 17_667.9)


def test_random_is_0_and_human_is_1() -> None:
    for rom, (random, human) in SCORES.items():
        assert human > random
        assert human_normalise(rom, random) == 0.0
        assert human_normalise(rom, human) == 1.0
    assert human_normalise("breakout", 16.1) == pytest.approx(0.5)


def test_other_games_have_no_figures() -> None:
    assert human_normalise("adventure", 3.0) is None
