"""From the samples to the answers: each question, its bar where there is one, and what was found.

Ratios are taken repetition by repetition; a bar is met or missed by the median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarking.groups import RETRO_BF16, RETRO_FP32, SB3, STOCK, TIMED
from benchmarking.marks import Mark
from benchmarking.rates import (
    Spread,
    ceiling,
    fifth_rates,
    memory_growth,
    past_warmup,
    ratios,
    spread,
    steady_rate,
)
from benchmarking.results import Results

NO_BF16 = "this processor has no bf16 in hardware"
CEILING_FORMULA = "1 / (1 / env + 1 / forward + samples_per_agent_step / update)"
# PPO: 4 epochs. A2C: one. DQN: a batch of 32 for every 4 agent steps.
SAMPLES_PER_AGENT_STEP = {"PPO": 4.0, "A2C": 1.0, "DQN": 8.0}

Run = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer; `found` is None when it was not measured."""

    group: str
    question: str
    found: Spread | None
    unit: str = ""
    """"", "%", "s", "GB", "/s" or "bytes"."""
    at_least: float | None = None
    below: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without bar or measurement."""
        if self.found is None or (self.at_least is None and self.below is None):
            return None
        if self.at_least is not None:
            return self.found.median >= self.at_least
        return self.found.median < (self.below or 0.0)


def build_answers(results: Results) -> list[Answer]:
    """The answers of all groups that were measured, in the groups' order."""
    answer: dict[str, Callable[[Results], list[Answer]]] = {
        "ppo": _answer_ppo,
        "a2c": _answer_a2c,
        "dqn": _answer_dqn,
        "overhead": _answer_overhead,
        "first": _answer_first,
        "long": _answer_long,
        "replay": _answer_replay,
        "bus": _answer_bus,
    }
    return [one for name, build in answer.items() if name in results["groups"]
            for one in build(results)]  # fmt: skip


def good_runs(results: Results, group: str, program: str) -> dict[int, Run]:
    """The runs of a program that did not fail, by repetition."""
    runs = results["groups"].get(group, {"runs": []})["runs"]
    return {
        run["repetition"]: run for run in runs if run["program"] == program and run["error"] is None
    }


def rates(results: Results, group: str, program: str) -> dict[int, float]:
    """Agent steps per second, by repetition."""
    found = {}
    for repetition, run in good_runs(results, group, program).items():
        rate = steady_rate(marks_of(run), warmup_agent_steps=run["warmup_agent_steps"])
        if rate is not None:
            found[repetition] = rate
    return found


def peak_bytes(results: Results, group: str, program: str) -> dict[int, float]:
    """The largest sum of PSS that was seen, by repetition."""
    return {
        repetition: max(float(size) for _, size in run["memory"])
        for repetition, run in good_runs(results, group, program).items()
        if run["memory"]
    }


def first_marks(results: Results, group: str, program: str) -> list[float]:
    """Seconds from the start to the first mark."""
    runs = good_runs(results, group, program).values()
    return [run["first_mark_s"] for run in runs if run["first_mark_s"] is not None]


def marks_of(run: Run) -> list[Mark]:
    """As they were before they went through JSON."""
    return [Mark(*mark) for mark in run["marks"]]


def floors(results: Results, algorithm: str) -> dict[int, dict[str, float]]:
    """By repetition: the best of each part, and the ceiling that follows."""
    found: dict[int, dict[str, float]] = {}
    runs = results["groups"].get(algorithm.lower(), {"runs": []})["runs"]
    for repetition in sorted({run["repetition"] for run in runs}):
        turn = [run["facts"] for run in runs if run["repetition"] == repetition]
        facts = [fact for fact in turn if "env_agent_steps_per_s" in fact]
        if not facts:
            continue
        parts = {
            "env": max(fact["env_agent_steps_per_s"] for fact in facts),
            "forward": max(fact["forward_observations_per_s"] for fact in facts),
            "update": max(fact["update_samples_per_s"] for fact in facts),
        }
        samples = SAMPLES_PER_AGENT_STEP[algorithm]
        found[repetition] = {**parts, "ceiling": ceiling(**parts, samples_per_agent_step=samples)}
    return found


def _answer_ppo(results: Results) -> list[Answer]:
    fp32, bf16, sb3, stock = (
        rates(results, "ppo", name) for name in (RETRO_FP32, RETRO_BF16, SB3, STOCK)
    )
    in_hardware = results["machine"]["bf16_in_hardware"]
    # What `precision: auto` takes here.
    own_choice, name = (bf16, "bf16") if in_hardware else (fp32, "fp32")
    own, theirs = (peak_bytes(results, "ppo", name) for name in (RETRO_FP32, SB3))
    note = "" if in_hardware else NO_BF16
    return [
        Answer("ppo", f"rate, fp32 / {SB3}", spread(ratios(fp32, sb3)), at_least=1.35),
        Answer("ppo", f"rate, bf16 / {SB3}", spread(ratios(bf16, sb3)), at_least=2.2, note=note),
        Answer("ppo", f"rate, {name} / {STOCK}", spread(ratios(own_choice, stock)),
               at_least=4.5, note=note),
        _answer_floor(results, "PPO", at_least=0.80),
        Answer("ppo", f"peak memory, fp32 / {SB3}", spread(ratios(own, theirs)), below=1.5),
    ]  # fmt: skip


def _answer_a2c(results: Results) -> list[Answer]:
    found = ratios(rates(results, "a2c", RETRO_FP32), rates(results, "a2c", SB3))
    return [
        Answer("a2c", f"rate, fp32 / {SB3}", spread(found), at_least=1.8),
        _answer_floor(results, "A2C"),
    ]


def _answer_dqn(results: Results) -> list[Answer]:
    found = ratios(rates(results, "dqn", RETRO_FP32), rates(results, "dqn", SB3))
    return [
        Answer("dqn", f"rate, fp32 / {SB3}", spread(found), at_least=2.2),
        _answer_floor(results, "DQN"),
    ]


def _answer_floor(results: Results, algorithm: str, at_least: float | None = None) -> Answer:
    group = algorithm.lower()
    ceilings = {turn: floor["ceiling"] for turn, floor in floors(results, algorithm).items()}
    shares = ratios(rates(results, group, RETRO_FP32), ceilings)
    return Answer(group, "rate, fp32 / what its parts allow", spread(shares), at_least=at_least)


def _answer_overhead(results: Results) -> list[Answer]:
    facts = [run["facts"] for run in good_runs(results, "overhead", TIMED).values()]
    between, others = (
        [fact[name] for fact in facts] for name in ("between_share", "other_cpu_share")
    )
    both = [sum(shares) for shares in zip(between, others, strict=True)]
    return [
        Answer("overhead", "share of Tune, bus and writers", spread(both), "%", below=0.03),
        Answer("overhead", "of which time between iterations", spread(between), "%"),
        Answer("overhead", "of which processors, others' work", spread(others), "%"),
    ]


def _answer_first(results: Results) -> list[Answer]:
    found = spread(first_marks(results, "first", RETRO_FP32))
    return [Answer("first", "from the start to the first row", found, "s", below=15.0)]


def _answer_long(results: Results) -> list[Answer]:
    runs = good_runs(results, "long", RETRO_FP32).values()
    kept, grown, peak = [], [], []
    for run in runs:
        marks = past_warmup(marks_of(run), warmup_agent_steps=run["warmup_agent_steps"])
        fifths, memory = fifth_rates(marks), memory_growth(run["memory"], marks)
        kept += [fifths[1] / fifths[0]] if fifths else []
        grown += [memory[1] / memory[0]] if memory else []
        peak += [max(size for _, size in run["memory"]) / 1e9] if run["memory"] else []
    return [
        Answer("long", "rate, last fifth / first fifth", spread(kept), at_least=0.97),
        Answer("long", "memory, at the end / after the first fifth", spread(grown)),
        Answer("long", "peak memory", spread(peak), "GB"),
    ]


def _answer_replay(results: Results) -> list[Answer]:
    facts = [run["facts"] for run in good_runs(results, "replay", "replay").values()]
    held = [fact["pss_bytes"] / fact["size"] * 1e6 / 1e9 for fact in facts]
    note = f"measured with {facts[0]['size']:,}" if facts else ""
    speed = [fact["transitions_per_s"] for fact in facts]
    return [
        Answer("replay", "memory of a million transitions", spread(held), "GB", below=7.5,
               note=note),
        Answer("replay", "transitions added", spread(speed), "/s"),
    ]  # fmt: skip


def _answer_bus(results: Results) -> list[Answer]:
    facts = [run["facts"] for run in good_runs(results, "bus", "bus").values()]
    grown = [float(fact["pss_last_bytes"] - fact["pss_first_bytes"]) for fact in facts]
    note = "from {first_games:,} to {games:,} games".format(**facts[0]) if facts else ""
    rows_note = "metrics.json apart: {metrics_json_s:.1f} s".format(**facts[0]) if facts else ""
    names = ("events_per_s", "metrics_rows_per_s", "all_writers_rows_per_s")
    events, rows, rows_of_all = ([fact[name] for fact in facts] for name in names)
    return [
        Answer("bus", "events to three subscribers", spread(events), "/s", at_least=200_000),
        Answer("bus", "rows to metrics.csv", spread(rows), "/s", at_least=50_000, note=rows_note),
        Answer("bus", "rows through all writers", spread(rows_of_all), "/s"),
        Answer("bus", "memory that games took", spread(grown), "bytes", note=note),
    ]
