"""Generalised advantage estimation against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest

from retro_ml.rllib.advantages import estimate_advantages

pytestmark = pytest.mark.unit


def column(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)[:, None]


def flags(steps: int, *set_at: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.zeros((steps, 1), np.bool_)
    found[list(set_at)] = True
    return found


def estimate(**changes: Any) -> list[float]:
    """Four steps of one game; gamma 0.5 and lambda 0.5, so delta's weights are 1, 1/4, 1/16."""
    given: dict[str, Any] = {
        "rewards": column(1, 0, 2, 1),
        "values": column(2, 4, 6, 8, 10),
        "terminated": flags(4),
        "truncated": flags(4),
        "final_values": column(0, 0, 0, 0),
        "gamma": 0.5,
        "gae_lambda": 0.5,
    }
    advantages = estimate_advantages(**given | changes)
    assert advantages.dtype == np.float32
    return [float(value) for value in advantages[:, 0]]


def test_without_an_end() -> None:
    # deltas: 1 + 2 - 2 = 1; 0 + 3 - 4 = -1; 2 + 4 - 6 = 0; 1 + 5 - 8 = -2
    # A3 = -2; A2 = 0 - 2/4 = -0.5; A1 = -1 - 0.5/4 = -1.125; A0 = 1 - 1.125/4 = 0.71875
    assert estimate() == [0.71875, -1.125, -0.5, -2.0]


def test_nothing_follows_a_termination() -> None:
    """The game (or, where lives count, the life) is over with step 1; step 2 begins the next."""
    # delta 1 = 0 - 4 = -4, and nothing of step 2 comes back to it; A0 = 1 - 4/4 = 0
    assert estimate(terminated=flags(4, 1)) == [0.0, -4.0, -0.5, -2.0]


def test_a_truncation_bootstraps_from_the_true_last_observation() -> None:
    # delta 1 = 0 + 0.5 x 20 - 4 = 6; A0 = 1 + 6/4 = 2.5; values[2] is the next game's
    assert estimate(truncated=flags(4, 1), final_values=column(0, 20, 0, 0)) == [
        2.5,
        6.0,
        -0.5,
        -2.0,
    ]


def test_ends_in_the_last_step() -> None:
    # terminated: 1 - 8 = -7; truncated: 1 + 0.5 x 4 - 8 = -5; row 4 of the values is another game's
    assert estimate(terminated=flags(4, 3))[3] == -7.0
    assert estimate(truncated=flags(4, 3), final_values=column(0, 0, 0, 4))[3] == -5.0


def test_lambda_0_is_the_one_step_error() -> None:
    assert estimate(gae_lambda=0.0) == [1.0, -1.0, 0.0, -2.0]


def test_lambda_1_is_the_n_step_return_minus_the_value() -> None:
    # returns: 1 + 10/2 = 6; 2 + 6/2 = 5; 0 + 5/2 = 2.5; 1 + 2.5/2 = 2.25
    assert estimate(gae_lambda=1.0) == [2.25 - 2, 2.5 - 4, 5.0 - 6, 6.0 - 8]


def test_games_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(0)
    steps, games = 12, 5
    ends = rng.integers(0, 6, (steps, games))
    whole: dict[str, Any] = {
        "rewards": rng.normal(size=(steps, games)).astype(np.float32),
        "values": rng.normal(size=(steps + 1, games)).astype(np.float32),
        "terminated": ends == 0,
        "truncated": ends == 1,
        "final_values": rng.normal(size=(steps, games)).astype(np.float32),
    }
    together = estimate_advantages(**whole, gamma=0.99, gae_lambda=0.95)
    for game in range(games):
        alone = {name: value[:, game : game + 1] for name, value in whole.items()}
        np.testing.assert_array_equal(
            estimate_advantages(**alone, gamma=0.99, gae_lambda=0.95)[:, 0], together[:, game]
        )
