"""Each bar's answer from the records that there are; what is not run yet is said to be so."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from learning.arithmetic import Ratio, time_to_score, welch_ratio
from learning.matrix import Bar, Entry
from learning.records import Record
from retro_ml.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    probability_of_improvement,
)

Status = Literal["met", "missed", "so far", "undecided", "not run yet", "shown"]
Records = Mapping[str, Mapping[int, Record]]
"""By entry's key and seed; every key of the matrix is there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One bar of one entry."""

    entry: Entry
    question: str
    bar: str
    found: str
    status: Status


def build_answers(entries: Sequence[Entry], records: Records) -> list[Answer]:
    """All bars, in the matrix's order."""
    by_key = {entry.key: entry for entry in entries}
    return [_answer(bar, entry, by_key, records) for entry in entries for bar in entry.bars]


def last_100_means(records: Mapping[int, Record]) -> list[float]:
    """One for each seed that is done, by seed."""
    return [records[seed].last_100_mean for seed in sorted(records)]


def times_s(records: Mapping[int, Record], score: float) -> tuple[list[float], int]:
    """Seconds to the score of the timed runs that reached it, and how many were timed."""
    timed = [records[seed] for seed in sorted(records) if records[seed].is_timed]
    found = []
    for record in timed:
        games = record.games
        reached = time_to_score(
            [game.score for game in games], [game.time_s for game in games], score=score
        )
        found += [reached] if reached is not None else []
    return found, len(timed)


def improvement(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, Interval] | None:
    """Probability that a run of ours beats one of theirs; None unless both have two seeds."""
    if len(ours) < 2 or len(theirs) < 2:
        return None
    columns = [[[value] for value in values] for values in (ours, theirs)]
    value = float(probability_of_improvement(*columns))
    return value, bootstrap_interval(probability_of_improvement, *columns)


def _answer(bar: Bar, entry: Entry, by_key: Mapping[str, Entry], records: Records) -> Answer:
    if bar.measure == "last_100":
        return _answer_last_100(bar, entry, records)
    other = by_key[str(bar.to)]
    if bar.measure == "ratio":
        return _answer_ratio(bar, entry, other, records)
    if bar.measure == "within_spread":
        return _answer_spread(bar, entry, other, records)
    return _answer_time(bar, entry, other, records)


def _answer_last_100(bar: Bar, entry: Entry, records: Records) -> Answer:
    means = last_100_means(records[entry.key])
    mean = statistics.fmean(means) if means else None
    met = None if mean is None or bar.above is None else mean > bar.above
    return Answer(
        entry=entry,
        question="score, mean of the last 100 training games",
        bar=_limit(bar),
        found="" if mean is None else f"{mean:.2f}{_of_seeds(len(means), entry)}",
        status=_status(met, [entry], records),
    )


def _answer_ratio(bar: Bar, entry: Entry, other: Entry, records: Records) -> Answer:
    ratio = welch_ratio(*(last_100_means(records[one.key]) for one in (entry, other)))
    met = None
    if ratio is not None and ratio.low is not None and bar.above is not None:
        met = ratio.low > bar.above
    goal = "" if bar.goal is None else f" (goal: over {bar.goal:g})"
    return Answer(
        entry=entry,
        question=f"the same over {_name(other)}, with one-sided 95 % confidence",
        bar=f"{_limit(bar)}{goal}",
        found="" if ratio is None else describe_ratio(ratio),
        status=_status(met, [entry, other], records),
    )


def _answer_spread(bar: Bar, entry: Entry, other: Entry, records: Records) -> Answer:
    ours, theirs = records[entry.key], records[other.key]
    both = sorted(set(entry.seeds) & set(other.seeds))
    done = [seed for seed in both if seed in ours and seed in theirs]
    met, found = None, ""
    if done:
        x, y = ([some[seed].last_100_mean for seed in done] for some in (ours, theirs))
        x_mean, y_mean = statistics.fmean(x), statistics.fmean(y)
        met = min(y) <= x_mean <= max(y) and min(x) <= y_mean <= max(x)
        found = (
            f"{x_mean:.2f} ({min(x):.2f} to {max(x):.2f}) against {y_mean:.2f} "
            f"({min(y):.2f} to {max(y):.2f}); {len(done)} of {len(both)} seeds"
        )
    return Answer(
        entry=entry,
        question=f"score and that of {_name(other)}, seeds {', '.join(map(str, both))}",
        bar="each mean within the other's range",
        found=found,
        status=_settle(met) if len(done) == len(both) else "so far" if done else "not run yet",
    )


def _answer_time(bar: Bar, entry: Entry, other: Entry, records: Records) -> Answer:
    score = float(bar.score or 0)
    ours, timed = times_s(records[entry.key], score)
    theirs, timed_theirs = times_s(records[other.key], score)
    met = None
    both = records[entry.key] and records[other.key]
    found = ""
    if both:
        counts = ((entry, timed), (other, timed_theirs))
        untimed = [_name(one) for one, count in counts if not count]
        found = f"no timed run of {' or '.join(untimed)}" if untimed else "not reached by both"
    if ours and theirs:
        middle, middle_theirs = statistics.median(ours), statistics.median(theirs)
        ratio = middle / middle_theirs
        found = (
            f"{ratio:.2f}: {middle / 60:.0f} min ({len(ours)} of {timed} timed runs) over "
            f"{middle_theirs / 60:.0f} min ({len(theirs)} of {timed_theirs})"
        )
        # A run that never gets there has no time; the median would hide it.
        complete = len(ours) == timed and len(theirs) == timed_theirs
        met = None if bar.at_most is None else ratio <= bar.at_most and complete
    return Answer(
        entry=entry,
        question=f"time to a mean score of {score:g} over that of {_name(other)}",
        bar=_limit(bar),
        found=found,
        status=_status(met, [entry, other], records) if bar.at_most is not None else "shown",
    )


def describe_ratio(ratio: Ratio) -> str:
    """The ratio, the lower end of its interval and the seeds behind it."""
    low = "too few seeds for an interval" if ratio.low is None else f"at least {ratio.low:.2f}"
    return f"{ratio.value:.2f}, {low}; seeds: {ratio.ours} over {ratio.theirs}"


def _limit(bar: Bar) -> str:
    if bar.above is not None:
        return f"over {bar.above:g}"
    return "" if bar.at_most is None else f"at most {bar.at_most:g}"


def _name(entry: Entry) -> str:
    side = "Stable-Baselines3" if entry.side == "sb3" else "retro_ml"
    return f"{side}'s {entry.name}"


def _of_seeds(done: int, entry: Entry) -> str:
    count = len(entry.seeds)
    if count == 1:
        return "; 1 seed"
    return f"; {count} seeds" if done == count else f"; {done} of {count} seeds"


def _status(met: bool | None, needed: Sequence[Entry], records: Records) -> Status:
    """Met or missed only when every run that the bar speaks of is there."""
    done = [len(records[entry.key]) for entry in needed]
    if not all(done):
        return "not run yet"
    complete = all(count == len(one.seeds) for count, one in zip(done, needed, strict=True))
    return _settle(met) if complete else "so far"


def _settle(met: bool | None) -> Status:
    if met is None:
        return "undecided"
    return "met" if met else "missed"
