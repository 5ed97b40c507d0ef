"""The figures behind the report: running means, ratios with their intervals, times.

The ratio of two means over few seeds is judged by Welch's t-test on the logarithms of the seeds'
means (Welch 1947), because scores of learning agents spread in proportion to their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 100
"""Games in a running mean (Mnih et al. 2016 and most since; retro_ml's own `reward`)."""
CONFIDENCE = 0.95
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Geometric mean of ours over that of theirs."""

    value: float
    low: float | None
    """Lower end of the one-sided 95 % interval; None with fewer than two seeds on a side."""
    ours: int
    theirs: int
    """Seeds."""


def running_mean(scores: Sequence[float], window: int = WINDOW) -> NDArray[np.float64]:
    """`[G]` scores -> `[G - window + 1]`, the i-th the mean of games i to i + window - 1."""
    values = np.asarray(scores, np.float64)
    if len(values) < window:
        return np.empty(0)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window


def last_mean(scores: Sequence[float], window: int = WINDOW) -> float | None:
    """Mean of the last games, of all if there are fewer; None without any."""
    last = list(scores)[-window:]
    return math.fsum(last) / len(last) if last else None


def time_to_score(
    scores: Sequence[float], times_s: Sequence[float | None], *, score: float
) -> float | None:
    """Seconds until the mean of 100 games first reaches `score`; None if it never does."""
    reached = np.flatnonzero(running_mean(scores) >= score)
    if not reached.size:
        return None
    return times_s[int(reached[0]) + WINDOW - 1]


def welch_ratio(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = CONFIDENCE
) -> Ratio | None:
    """The ratio of two sets of means over seeds; None where one is empty or not above 0."""
    if not ours or not theirs or min(*ours, *theirs) <= 0:
        return None
    x, y = (np.log(np.asarray(values, np.float64)) for values in (ours, theirs))
    difference = float(x.mean() - y.mean())
    low = None
    if len(x) > 1 and len(y) > 1:
        parts = [float(values.var(ddof=1)) / len(values) for values in (x, y)]
        low = math.exp(difference - _margin(parts, [len(x), len(y)], confidence))
    return Ratio(math.exp(difference), low, len(x), len(y))


def student_quantile(probability: float, freedom: float) -> float:
    """Student's t with P(T <= t) = probability, which is 0.5 to 1; freedom is at least 1."""
    low, high = 0.0, 1.0
    while _student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_probability(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _margin(parts: Sequence[float], counts: Sequence[int], confidence: float) -> float:
    """Half the width: squared errors of the two means, and how many seeds each is of."""
    total = sum(parts)
    if total == 0:
        return 0.0
    # Welch and Satterthwaite
    freedom = total**2 / sum(
        part**2 / (count - 1) for part, count in zip(parts, counts, strict=True)
    )
    return student_quantile(confidence, freedom) * math.sqrt(total)


def _student_probability(t: float, freedom: float) -> float:
    """P(T <= t) for t >= 0: with t = sqrt(freedom) tan(a) the density is a power of cos(a)."""
    end = math.atan(t / math.sqrt(freedom))
    angles = end * (_NODES + 1) / 2
    integral = end / 2 * float(_WEIGHTS @ np.cos(angles) ** (freedom - 1))
    log_beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return 0.5 + integral / math.exp(log_beta)
