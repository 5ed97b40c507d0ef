"""Draws of a rollout's actions."""

from typing import cast

import numpy as np
import pytest

from retro_ml.rllib.exploration import (
    Exploration,
    draw_epsilon_greedy,
    draw_softmax,
    draw_uniform,
)

pytestmark = pytest.mark.unit

STEPS, GAMES = 200, 100
SHAPE = (STEPS, GAMES, 4)
EVERYONE = slice(0, GAMES)


def shares(exploration: Exploration, scores: list[float]) -> np.ndarray:
    """How often each action is chosen."""
    rows = np.tile(np.array(scores, np.float32), (GAMES, 1))
    chosen = [exploration.choose(rows, t, EVERYONE) for t in range(STEPS)]
    return np.bincount(np.concatenate(chosen), minlength=4) / (STEPS * GAMES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_softmax(rng: np.random.Generator) -> None:
    """Scores log 1, log 2, log 3, log 4: a tenth, two tenths, three and four."""
    scores = np.log([1.0, 2.0, 3.0, 4.0]).tolist()
    found = shares(draw_softmax(rng, SHAPE), scores)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4], atol=0.015)


def test_softmax_where_a_draw_is_zero() -> None:
    """As one in 2^23 is, in float32: without a limit its noise would be infinite."""

    class Zeros:
        def standard_exponential(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.zeros(shape, dtype)

    with np.errstate(divide="raise"):
        noise = draw_softmax(cast(np.random.Generator, Zeros()), (1, 2, 3)).noise
    assert noise is not None
    assert np.isfinite(noise).all()


def test_epsilon_greedy(rng: np.random.Generator) -> None:
    """Epsilon 0.4 of 4 actions: each gets 0.1, the greedy one 0.6 more."""
    found = shares(draw_epsilon_greedy(rng, SHAPE, np.full(STEPS, 0.4)), [0.0, 5.0, 1.0, 2.0])
    np.testing.assert_allclose(found, [0.1, 0.7, 0.1, 0.1], atol=0.015)


def test_epsilon_belongs_to_the_step(rng: np.random.Generator) -> None:
    epsilons = np.zeros(STEPS)
    epsilons[7] = 1.0
    exploration = draw_epsilon_greedy(rng, SHAPE, epsilons)
    scores = np.tile(np.array([0, 5, 1, 2], np.float32), (GAMES, 1))
    assert (exploration.choose(scores, 6, EVERYONE) == 1).all()
    assert set(exploration.choose(scores, 7, EVERYONE)) == {0, 1, 2, 3}


def test_uniform_and_greedy(rng: np.random.Generator) -> None:
    scores = [0.0, 5.0, 1.0, 2.0]
    np.testing.assert_allclose(shares(draw_uniform(rng, SHAPE), scores), [0.25] * 4, atol=0.015)
    assert shares(Exploration(), scores).tolist() == [0, 1, 0, 0]


def test_a_part_of_the_games_gets_its_own_draws(rng: np.random.Generator) -> None:
    scores = np.zeros((GAMES, 4), np.float32)
    for exploration in (draw_softmax(rng, SHAPE), draw_uniform(rng, SHAPE)):
        whole = exploration.choose(scores, 3, EVERYONE)
        parts = [
            exploration.choose(scores[part], 3, part) for part in (slice(0, 30), slice(30, 100))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
