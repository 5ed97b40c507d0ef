"""`scripts/scale_simulation`: what a driver bears, and what a step costs the network.

Prints four tables; with `--docs` they are put into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
from pathlib import Path

from scaling.engine import Stages, measure_engine
from scaling.traffic import measure_traffic
from scaling.trials import Measured, Sample, measure_bus, measure_trials

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- simulation -->", "<!-- end of simulation -->"


def main() -> int:
    """Measure, print; the process's exit code: 1 where a trial failed."""
    call = parse()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = Path(call.out).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    measured = measure_trials(
        folder, count=call.trials, at_once=call.at_once, iterations=call.iterations
    )
    stages = measure_engine(folder / "engine", count=call.trials, iterations=call.iterations)
    tables = [_driver_table(measured), _engine_table(stages), _bus_table(call.trials)]
    text = "\n\n".join([*tables, _traffic_table()])
    print(text)
    if call.docs:
        document = DOCUMENT.read_text(encoding="utf-8")
        before, begin, rest = document.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"{BEGIN} and {END} have to stand in {DOCUMENT}, in this order")
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if measured.failed else 0


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/scale_simulation", description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000, help="in all (1,000)")
    parser.add_argument("--at-once", type=int, default=8, help="processes of trials (8)")
    parser.add_argument("--iterations", type=int, default=5, help="of each trial (5)")
    parser.add_argument("--out", metavar="DIR", default="runs/scale", help="(runs/scale)")
    parser.add_argument("--docs", action="store_true", help="rewrite the tables in the docs")
    return parser.parse_args()


def _driver_table(measured: Measured) -> str:
    """What the driver took, in quarters of the trials."""
    samples = measured.samples
    total = samples[-1].events
    edges = [measured.before]
    for quarter in range(1, 5):
        edges.append(next(s for s in samples if s.events >= total * quarter // 4))
    lines = [
        f"{measured.trials:,} trials of {measured.iterations} iterations, {measured.at_once} "
        f"processes, {measured.wall_s:.0f} s, {measured.failed} failed; {total:,} events.",
        "",
        "| Events so far | Events per second | Driver's CPU ms per event | Driver's memory, MB "
        "| Open files |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines.append(_line("before the first trial", measured.before))
    for before, after in itertools.pairwise(edges):
        events, seconds = after.events - before.events, after.elapsed_s - before.elapsed_s
        cpu_ms = 1_000 * (after.cpu_s - before.cpu_s) / max(events, 1)
        lines.append(_line(f"{after.events:,}", after, f"{events / seconds:,.0f}", f"{cpu_ms:.2f}"))
    first, last = measured.before, samples[-1]
    cpu_ms = 1_000 * (last.cpu_s - first.cpu_s) / measured.trials
    memory = max(sample.memory_bytes for sample in samples) - first.memory_bytes
    lines += [
        "",
        f"For each trial: {cpu_ms:.0f} ms of the driver's CPU, {memory / measured.trials / 1e3:.0f}"
        " KB of its memory at most.",
    ]
    return "\n".join(lines)


def _line(name: str, sample: Sample, rate: str = "", cpu_ms: str = "") -> str:
    memory = f"{sample.memory_bytes / 1e6:,.0f}"
    return f"| {name} | {rate} | {cpu_ms} | {memory} | {sample.open_files:,} |"


def _engine_table(stages: Stages) -> str:
    """A sweep's engine without Ray, stage by stage."""
    events = stages.trained.events
    lines = [
        f"| The engine of a sweep of {stages.trials:,} trials, all under way at once, without Ray "
        "| How many | ms each | CPU ms each | Memory, MB | Open files |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for words, count, before, after in (
        ("trials begin", stages.trials, stages.before, stages.begun),
        ("events", events, stages.begun, stages.trained),
        ("trials end", stages.trials, stages.trained, stages.ended),
    ):
        wall_ms = 1_000 * (after.elapsed_s - before.elapsed_s) / count
        cpu_ms = 1_000 * (after.cpu_s - before.cpu_s) / count
        memory = f"{after.memory_bytes / 1e6:,.0f}"
        lines.append(
            f"| {words} | {count:,} | {wall_ms:.2f} | {cpu_ms:.2f} | {memory} "
            f"| {after.open_files:,} |"
        )
    return "\n".join(lines)


def _bus_table(experiments: int) -> str:
    """The bus alone, before and after subscribers could say whose events they want."""
    lines = [
        f"| The bus alone, three subscribers for each of {experiments:,} experiments | Events per "
        "second |",
        "| --- | --- |",
    ]
    for words, by_experiment in (
        ("each hears every event, and looks whose it is", False),
        ("each hears its own experiment's events", True),
    ):
        rate = measure_bus(experiments, by_experiment=by_experiment)
        lines.append(f"| {words} | {rate:,.0f} |")
    return "\n".join(lines)


def _traffic_table() -> str:
    """Bytes between an env runner and its trial."""
    lines = [
        "| | Agent steps of a rollout | Rollout, KB | Bytes per agent step, to the trial "
        "| Weights, MB | Bytes per agent step, to the env runner |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for algorithm in ("PPO", "A2C", "DQN"):
        traffic = measure_traffic(algorithm)
        lines.append(
            f"| {algorithm} | {traffic.agent_steps:,} | {traffic.rollout_bytes / 1e3:,.0f} "
            f"| {traffic.rollout_bytes_per_step:,.0f} | {traffic.weights_bytes / 1e6:.1f} "
            f"| {traffic.weights_bytes_per_step:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
