"""Statistics of scores over runs and games, with bootstrap intervals (numpy only, seeded).

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv:2108.13264), whose library rliable gives the same figures. Scores lie in `[R, G] float`, R
runs (or episodes of one agent) of G games; every statistic takes further axes in front, which is
how the bootstrap works on many resamples at a time.

Deviation on purpose: `median_of_scores`, which is not in the paper, is for the episodes of one
agent; the paper's median is taken over games, so it says nothing about a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPETITIONS = 50_000
"""Resamples of an interval (rliable's default)."""
CONFIDENCE = 0.95
"""Share of the resamples inside an interval (Agarwal et al. 2021, section 4.1)."""
_VALUES_AT_A_TIME = 2_000_000  # 16 MB an array, whatever the number of scores


@dataclass(frozen=True, slots=True)
class Interval:
    """The ends of a confidence interval."""

    low: float
    high: float


def mean(scores: ArrayLike) -> Any:
    """Mean of all scores `[..., R, G]` -> `[...]`."""
    return np.asarray(scores, np.float64).mean(axis=(-2, -1))


def median_of_games(scores: ArrayLike) -> Any:
    """Median over games of each game's mean over runs, `[..., R, G]` -> `[...]`."""
    return np.median(np.asarray(scores, np.float64).mean(axis=-2), axis=-1)


def median_of_scores(scores: ArrayLike) -> Any:
    """Median of all scores `[..., R, G]` -> `[...]`."""
    return np.median(_pooled(scores), axis=-1)


def interquartile_mean(scores: ArrayLike) -> Any:
    """IQM: mean of the middle half of all scores, `[..., R, G]` -> `[...]`.

    A quarter of the scores, rounded down, is left out at each end.
    """
    pooled = _pooled(scores)
    count = pooled.shape[-1]
    cut = count // 4
    pooled = np.partition(pooled, (cut, count - cut - 1), axis=-1)
    return pooled[..., cut : count - cut].mean(axis=-1)


def optimality_gap(scores: ArrayLike, *, target: float = 1.0) -> Any:
    """How far the scores fall short of `target` on average, `[..., R, G]` -> `[...]`.

    Args:
        scores: human-normalised.
        target: scores above count as this much; 1 is a human's score (Agarwal et al. 2021).
    """
    return target - mean(np.minimum(np.asarray(scores, np.float64), target))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Share of all scores above each threshold: `[..., R, G]`, `[K]` -> `[..., K]`."""
    pooled = _pooled(scores)
    levels = np.asarray(thresholds, np.float64)
    shares = [(pooled > level).mean(axis=-1) for level in levels]
    return np.stack(shares, axis=-1)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> Any:
    """How likely a run of ours beats one of theirs on a game, a draw counting half.

    Args:
        ours: `[..., R, G]`.
        theirs: `[..., Q, G]`, the same games; Q may differ from R.

    Returns:
        `[...]`, 0 to 1: the mean over games.
    """
    x = np.asarray(ours, np.float64)[..., :, None, :]
    y = np.asarray(theirs, np.float64)[..., None, :, :]
    wins = (x > y).mean(axis=(-3, -2)) + 0.5 * (x == y).mean(axis=(-3, -2))
    return wins.mean(axis=-1)


def standard_error(scores: ArrayLike) -> float | None:
    """Standard error of the mean of `[E]` scores; None for a single one."""
    values = np.asarray(scores, np.float64)
    if values.size < 2:
        return None
    return float(values.std(ddof=1) / np.sqrt(values.size))


def bootstrap(
    statistic: Callable[..., Any],
    *samples: ArrayLike,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap, stratified by game: both ends of the statistic's interval.

    The runs of each game are drawn with replacement, each game and each sample by itself.

    Args:
        statistic: takes as many arrays as there are samples, with axes in front.
        samples: `[R, G]` each.
        repetitions: resamples.
        confidence: share of the resamples that lies inside, 0 to 1.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper ends, of the statistic's own shape.

    Raises:
        ValueError: a sample is not `[R, G]`, is empty, or holds NaN or infinity.
    """
    arrays = [_check_sample(sample) for sample in samples]
    rng = np.random.default_rng(seed)
    at_a_time = max(1, _VALUES_AT_A_TIME // _largest_intermediate(arrays))
    values = []
    for start in range(0, repetitions, at_a_time):
        count = min(at_a_time, repetitions - start)
        values.append(statistic(*(_resample(array, count, rng) for array in arrays)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(values), [tail, 1.0 - tail], axis=0)
    return low, high


def bootstrap_interval(
    statistic: Callable[..., Any],
    *samples: ArrayLike,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """`bootstrap` for a statistic that is one number."""
    low, high = bootstrap(
        statistic, *samples, repetitions=repetitions, confidence=confidence, seed=seed
    )
    return Interval(low=float(low), high=float(high))


def _pooled(scores: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(scores, np.float64)
    return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])


def _check_sample(sample: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(sample, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores are [runs, games], not of shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite: leave out runs that have none")
    return array


def _largest_intermediate(arrays: Sequence[NDArray[np.float64]]) -> int:
    """Values of one resample; two samples may be compared run by run, more are taken together."""
    total = sum(array.size for array in arrays)
    if len(arrays) != 2:
        return total
    return max(total, len(arrays[0]) * len(arrays[1]) * arrays[0].shape[1])


def _resample(
    array: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`[R, G]` -> `[count, R, G]`."""
    runs, games = array.shape
    rows = rng.integers(0, runs, (count, runs, games))
    return array[rows, np.arange(games)]
