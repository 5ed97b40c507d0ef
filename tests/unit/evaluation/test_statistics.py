"""Statistics against rliable 1.2.0's figures and hand-computed ones.

How the reference was made: rliable's get_interval_estimates and create_performance_profile with its
metrics' functions on OURS and THEIRS, percentile method, after numpy.random.seed(0); 200,000
resamples for the aggregates, 50,000 for the rest. (arch 8 no longer takes rliable's unused
`random_state`, which was left out.)
"""

import numpy as np
import pytest

from retro_ml.evaluation import statistics

pytestmark = pytest.mark.unit

# [runs, games]
OURS = np.array(
    [
        [0.12, 1.40, 0.55, 2.10],
        [0.30, 0.95, 0.61, 0.40],
        [0.08, 1.75, 0.42, 3.30],
        [0.51, 1.10, 0.70, 0.95],
        [0.22, 1.32, 0.37, 1.60],
    ]
)
THEIRS = np.array(
    [
        [0.10, 1.05, 0.70, 1.20],
        [0.35, 0.80, 0.58, 0.40],
        [0.05, 1.20, 0.66, 2.00],
        [0.28, 1.32, 0.49, 0.75],
    ]
)
THRESHOLDS = [0.0, 0.4, 0.55, 1.0, 1.32, 3.0, 4.0]
# statistic: rliable's estimate, and the ends of its 95 % interval.
RLIABLE = {
    "mean": (0.9375, 0.7175, 1.1755),
    "median_of_games": (0.9169999999999999, 0.6839999999999999, 1.038),
    "interquartile_mean": (0.751, 0.5880000000000001, 0.9550000000000001),
    "optimality_gap": (0.34099999999999997, 0.279, 0.41200000000000014),
}
RLIABLE_PROFILE = (
    [1.0, 0.7, 0.55, 0.35, 0.25, 0.05, 0.0],
    [1.0, 0.55, 0.4, 0.2, 0.1, 0.0, 0.0],
    [1.0, 0.85, 0.7, 0.5, 0.4, 0.15, 0.0],
)
# Two runs of rliable with 50,000 resamples differ by 0.5 % of an interval's width.
SHARE_OF_WIDTH = 0.015


@pytest.mark.parametrize("name", RLIABLE)
def test_estimates_and_intervals_are_rliables(name: str) -> None:
    statistic = getattr(statistics, name)
    estimate, low, high = RLIABLE[name]

    interval = statistics.bootstrap_interval(statistic, OURS, seed=1)

    assert float(statistic(OURS)) == pytest.approx(estimate, rel=1e-12)
    tolerance = SHARE_OF_WIDTH * (high - low)
    assert interval.low == pytest.approx(low, abs=tolerance)
    assert interval.high == pytest.approx(high, abs=tolerance)


def test_the_probability_of_improvement_is_rliables() -> None:
    probability = statistics.probability_of_improvement

    interval = statistics.bootstrap_interval(probability, OURS, THEIRS, seed=1)

    assert float(probability(OURS, THEIRS)) == pytest.approx(0.58125, rel=1e-12)
    # Draws count half, so that it moves in steps of 1/160.
    assert interval.low == pytest.approx(0.39375, abs=1.01 / 160)
    assert interval.high == pytest.approx(0.7625, abs=1.01 / 160)


def test_the_performance_profile_is_rliables() -> None:
    def profile(scores: np.ndarray) -> np.ndarray:
        return statistics.performance_profile(scores, THRESHOLDS)

    estimate, low, high = RLIABLE_PROFILE
    ends = statistics.bootstrap(profile, OURS, seed=1)

    np.testing.assert_allclose(profile(OURS), estimate, rtol=1e-12)
    # It moves in steps of 1/20, of which its quantiles take one.
    np.testing.assert_allclose(ends[0], low, atol=1e-12)
    np.testing.assert_allclose(ends[1], high, atol=1e-12)


def test_by_hand() -> None:
    scores = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [100.0]])

    assert statistics.interquartile_mean(scores) == 3.5  # one of six is cut at each end
    assert statistics.median_of_scores(scores) == 3.5
    assert statistics.median_of_games(scores) == statistics.mean(scores) == 115 / 6
    assert statistics.optimality_gap(scores, target=3.0) == 3.0 - (1 + 2 + 3 * 4) / 6
    assert statistics.probability_of_improvement([[2.0]], [[1.0], [2.0], [3.0]]) == 0.5
    assert statistics.standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert statistics.standard_error([7.0]) is None


def test_a_small_sample_has_a_middle() -> None:
    assert [float(statistics.interquartile_mean([[x] for x in range(n)])) for n in (1, 2, 3)] == [
        0.0,
        0.5,
        1.0,
    ]


def test_games_are_resampled_by_themselves() -> None:
    # Runs drawn whole would keep each sum of 1; the games' own draws vary it.
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])

    interval = statistics.bootstrap_interval(statistics.mean, scores, repetitions=1_000)

    assert (interval.low, interval.high) == (0.0, 1.0)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        scores = rng.normal(10.0, 3.0, (60, 1))
        interval = statistics.bootstrap_interval(
            statistics.mean, scores, repetitions=1_000, seed=trial
        )
        covered += interval.low <= 10.0 <= interval.high

    assert 0.90 <= covered / 300 <= 0.98


def test_the_seed_settles_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(seed: int) -> statistics.Interval:
        return statistics.bootstrap_interval(
            statistics.mean, OURS, repetitions=500, confidence=0.5, seed=seed
        )

    assert ends(3) == ends(3)
    assert ends(3) != ends(4)
    wide = statistics.bootstrap_interval(statistics.mean, OURS, repetitions=500, seed=3)
    assert wide.low < ends(3).low < ends(3).high < wide.high


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([1.0, 2.0], "are \\[runs, games\\], not of shape \\[2\\]"),
        (np.empty((0, 3)), "not of shape \\[0, 3\\]"),
        ([[1.0, float("nan")]], "must be finite"),
    ],
)
def test_what_is_no_sample_is_refused(scores: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        statistics.bootstrap_interval(statistics.mean, scores)  # type: ignore[arg-type]
