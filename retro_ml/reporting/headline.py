"""The top of a report: what was run, the answer, and what is amiss, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from retro_ml.core.engine.progress_text import duration
from retro_ml.evaluation.human_scores import SCORES, human_normalise
from retro_ml.reporting import report_tables as tables
from retro_ml.reporting.groups import Group, describe_uncounted
from retro_ml.reporting.page import Fact
from retro_ml.reporting.references import Reference, comparable_references

MOST_FAULTS = 10


def build_title(groups: Sequence[Group]) -> str:
    """`PPO on breakout`, `A2C and DQN on 4 games`."""
    *others, last = sorted({group.algorithm for group in groups})
    algorithms = f"{', '.join(others)} and {last}" if others else last
    games = sorted({group.game for group in groups})
    on = games[0] if len(games) == 1 else f"{len(games)} games"
    return f"{algorithms} on {on}"


def build_subtitle(groups: Sequence[Group]) -> str:
    """How many runs, settings and seeds, and when."""
    runs = [run for group in groups for run in group.runs]
    words = [f"{len(runs):,} run{'s' if len(runs) != 1 else ''}"]
    if len(groups) > 1:
        games = len({group.game for group in groups})
        words.append(f"{len(groups):,} " + ("settings" if games == 1 else "games and settings"))
    seeds = sorted({run.config.seed for run in runs})
    shown = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{len(seeds)} of them"
    words.append(f"seed{'s' if len(seeds) != 1 else ''} {shown}")
    if len(runs) == 1:
        words.insert(0, runs[0].name)
        words.append(runs[0].summary.state)
    times = [run.summary.updated_at for run in runs if run.summary.updated_at is not None]
    if times:
        words.append(f"last change {max(times):%Y-%m-%d %H:%M} UTC")
    return " · ".join(words)


def build_facts(groups: Sequence[Group], references: Sequence[Reference]) -> list[Fact]:
    """The answer first, then length, time and what was published."""
    facts = _score_facts(groups)
    runs = [run for group in groups for run in group.runs]
    steps = [run.agent_steps for run in runs]
    each = "" if len(runs) == 1 else " of the longest run"
    facts.append(Fact(f"{max(steps):,}", f"agent steps of training{each}"))
    times = [run.training_time_s for run in runs if run.training_time_s is not None]
    rates = [run.steps_per_s for run in runs if run.steps_per_s is not None]
    speed = f", {np.median(rates):,.0f} agent steps per second (median)" if rates else ""
    if times:
        together = "" if len(runs) == 1 else ", all runs together"
        facts.append(Fact(duration(sum(times)), f"of training{together}{speed}"))
    near = [
        point
        for group in groups
        for point in comparable_references(
            [r for r in references if r.rom == group.rom and r.algorithm == group.algorithm],
            agent_steps=group.runs[0].agent_steps,
        )
    ]
    if near and len({group.game for group in groups}) == 1:
        names = ", ".join(dict.fromkeys(r.implementation for r in near))
        first, last = min(r.agent_steps for r in near), max(r.agent_steps for r in near)
        after = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        low, high = min(r.score for r in near), max(r.score for r in near)
        value = f"{low:,.1f}" if low == high else f"{low:,.1f} to {high:,.1f}"
        facts.append(Fact(value, f"published after {after} agent steps: {names}"))
    return facts


def build_notices(groups: Sequence[Group], left_out: Sequence[str]) -> list[str]:
    """Runs that did not end well, what does not count, and files that cannot be read."""
    runs = [run for group in groups for run in group.runs]
    states = Counter(run.summary.state for run in runs)
    words = {
        "starting": "starting",
        "running": "still running; this is how it stands now",
        "stopped": "stopped for good by the scheduler of its sweep",
        "interrupted": "interrupted; the same command goes on with it",
        "lost": "cut off without a word (its process is gone); the same command goes on with it",
        "failed": "failed",
        "unknown": "of unknown state: its status.json cannot be read",
    }
    notices = []
    for state, count in states.items():
        if state == "completed":
            continue
        who = "This run is" if len(runs) == 1 else f"{count:,} of {len(runs):,} runs:"
        text = words[state]
        if state == "failed":
            who = "This run" if len(runs) == 1 else who
            errors = {r.summary.error for r in runs if r.summary.state == state and r.summary.error}
            text = f"{text}: {'; '.join(sorted(errors)[:3])}" if errors else text
        notices.append(f"{who} {text}.")
    faults = [f"{run.name}: {fault}" for run in runs for fault in run.faults]
    shown = [*(f"Left out: {text}." for text in left_out), *(f"{text}." for text in faults)]
    if len(shown) > MOST_FAULTS:
        more = len(shown) - MOST_FAULTS
        shown = [*shown[:MOST_FAULTS], f"and {more:,} more such faults."]
    return [*notices, *describe_uncounted(groups), *shown]


def is_about_games(groups: Sequence[Group]) -> bool:
    """Whether scores are taken together over several games."""
    return len({group.rom for group in groups if group.rom in SCORES}) > 1


def _score_facts(groups: Sequence[Group]) -> list[Fact]:
    """The answer: of the only group, of the best one, or over all games."""
    if is_about_games(groups):
        rows = tables.aggregate_table(groups).rows
        if rows:
            label, games, runs, iqm, interval = rows[0][:5]
            ends = "" if interval is None else f", 95 % {interval.low:.2f} to {interval.high:.2f}"
            best = "" if len(rows) == 1 else f"best of {len(rows)}: "
            of_runs = f"{runs} run{'s' if runs != 1 else ''}"
            on_games = f"{games} game{'s' if games != 1 else ''}"
            words = f"human-normalised IQM, {best}{label}; {of_runs} on {on_games}{ends}"
            return [Fact(f"{iqm:.2f}", words)]
    scored = [group for group in groups if group.counted]
    if not scored:
        return [Fact("none", "score: no game is over yet")]
    best_group = max(scored, key=lambda group: group.score() or 0.0)
    score, interval = best_group.score() or 0.0, best_group.interval
    runs = len(best_group.counted)
    who = f"of {best_group.label}, the best of {len(scored)}; " if len(scored) > 1 else ""
    mean = f"mean of {runs} runs over " if runs > 1 else "over "
    each = " each" if runs > 1 else ""
    ends = ""
    if interval is not None:
        ends = f"; 95 % interval {interval.low:,.1f} to {interval.high:,.1f}"
    words = f"score {who}{mean}{tables.describe_scores(best_group)}{each}{ends}"
    facts = [Fact(f"{score:,.1f}", words)]
    iqm, iqm_interval = tables.score_iqm(best_group)
    human = human_normalise(best_group.rom, iqm)
    if human is not None:
        random_score, human_score = SCORES[best_group.rom]
        known = tables.normalise_interval(best_group.rom, iqm_interval)
        ends = "" if known is None else f", 95 % interval {known.low:.2f} to {known.high:.2f}"
        facts.append(
            Fact(f"{human:.2f}", f"human-normalised IQM{ends}; random {random_score:,g} is 0, "
                 f"human {human_score:,g} is 1")
        )  # fmt: skip
    return facts
