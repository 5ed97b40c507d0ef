"""What is done, under way and missing, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from learning.matrix import Entry, Run, order_runs
from learning.records import load_record
from learning.run_folders import read_progress
from learning.train import find_running

State = Literal["done", "running", "begun", "missing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands."""

    run: Run
    state: State
    agent_steps: int
    """So far."""
    hours_left: float
    """Estimated."""
    origin: str | None = None
    """Of a run that is done."""


def find_standings(entries: Sequence[Entry], *, runs: Path, data: Path) -> list[Standing]:
    """All runs, in the order in which they are made."""
    running = find_running(runs)
    hours = {entry.key: estimate_hours(entry, data) for entry in entries}
    standings = []
    for run in order_runs(entries):
        record = load_record(run, data)
        if record is not None:
            steps = int(record.facts["agent_steps"])
            standings.append(Standing(run, "done", steps, 0.0, record.facts["origin"]))
            continue
        steps = read_progress(run, runs / run.name)
        state: State = "running" if run.name == running else "begun" if steps else "missing"
        # A run of Stable-Baselines3 that is not running has to begin anew.
        kept = steps if run.entry.side == "retro_ml" or state == "running" else 0
        share_left = max(0.0, 1 - kept / run.entry.agent_steps)
        standings.append(Standing(run, state, steps, hours[run.entry.key] * share_left))
    return standings


def estimate_hours(entry: Entry, data: Path) -> float:
    """Of one run: the mean of those that were timed, or else the matrix's own figure."""
    records = [load_record(Run(entry, seed), data) for seed in entry.seeds]
    timed_s = [r.facts["wall_clock_s"] for r in records if r is not None and r.is_timed]
    return sum(timed_s) / len(timed_s) / 3_600 if timed_s else entry.hours


def describe_standings(standings: Sequence[Standing]) -> str:
    """A line for each run, and the sum."""
    width = max(len(one.run.name) for one in standings)
    lines = []
    for one in standings:
        told = f"{one.agent_steps:,} of {one.run.entry.agent_steps:,} agent steps"
        if one.state == "done":
            told = f"{one.agent_steps:,} agent steps, {one.origin}"
        elif one.hours_left:
            told += f", about {one.hours_left:.1f} h left"
        lines.append(f"{one.run.name:{width}}  {one.state:7}  {told}")
    done = sum(one.state == "done" for one in standings)
    hours = sum(one.hours_left for one in standings)
    lines.append(f"{done} of {len(standings)} runs done, about {hours:.1f} h left")
    return "\n".join(lines)
