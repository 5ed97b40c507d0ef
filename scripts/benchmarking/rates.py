"""Figures from marks and samples. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarking.marks import Mark


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    min: float
    max: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """None when there are none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def steady_rate(marks: Sequence[Mark], *, warmup_agent_steps: int = 0) -> float | None:
    """Agent steps per second from the end of the warm-up to the last mark.

    The warm-up is the first iteration, and more where it has fewer than `warmup_agent_steps`. None
    when nothing comes after it.
    """
    marks = past_warmup(marks, warmup_agent_steps=warmup_agent_steps)
    if len(marks) < 2:
        return None
    first, last = marks[0], marks[-1]
    return (last.agent_steps - first.agent_steps) / (last.time_s - first.time_s)


def past_warmup(marks: Sequence[Mark], *, warmup_agent_steps: int) -> list[Mark]:
    """The mark that ends the warm-up and all after it."""
    return [mark for mark in marks if mark.agent_steps >= warmup_agent_steps]


def fifth_rates(marks: Sequence[Mark]) -> tuple[float, float] | None:
    """Agent steps per second in the first and in the last fifth of the time after the warm-up.

    Between two marks the steps are taken to be spread evenly. None for fewer than six marks.
    """
    if len(marks) < 6:
        return None
    start_s, end_s = marks[0].time_s, marks[-1].time_s
    fifth_s = (end_s - start_s) / 5
    first = steps_at(marks, start_s + fifth_s) - marks[0].agent_steps
    last = marks[-1].agent_steps - steps_at(marks, end_s - fifth_s)
    return first / fifth_s, last / fifth_s


def steps_at(marks: Sequence[Mark], time_s: float) -> float:
    """Agent steps at a time between the first mark and the last."""
    for before, after in itertools.pairwise(marks):
        if before.time_s <= time_s <= after.time_s:
            share = (time_s - before.time_s) / (after.time_s - before.time_s)
            return before.agent_steps + share * (after.agent_steps - before.agent_steps)
    raise ValueError(f"time_s: {time_s} -> a time between the first mark and the last")


def memory_growth(
    memory: Sequence[tuple[float, int]], marks: Sequence[Mark]
) -> tuple[float, float] | None:
    """Bytes after the first fifth of the time between the marks, and at its end.

    Each is the median of the samples of a twentieth of that time. None where there are none.
    """
    if len(marks) < 2:
        return None
    start_s, end_s = marks[0].time_s, marks[-1].time_s
    window_s = (end_s - start_s) / 20
    after_fifth_s = start_s + 4 * window_s
    early = [size for time_s, size in memory if 0 <= time_s - after_fifth_s <= window_s]
    late = [size for time_s, size in memory if 0 <= end_s - time_s <= window_s]
    return (statistics.median(early), statistics.median(late)) if early and late else None


def ratios(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """`first / second`, repetition by repetition; those that lack one are left out."""
    return [first[key] / second[key] for key in sorted(first) if key in second]


def ceiling(*, env: float, forward: float, update: float, samples_per_agent_step: float) -> float:
    """Agent steps per second when play, choice and learning take turns and nothing else is done.

    Args:
        env: the emulator's agent steps per second.
        forward: observations per second.
        update: samples that updates take per second.
        samples_per_agent_step: samples that updates see for each agent step.
    """
    return 1 / (1 / env + 1 / forward + samples_per_agent_step / update)
