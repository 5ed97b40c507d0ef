"""From the samples to the answers: each question, its bar where there is one, and what was found.

Ratios are taken repetition by repetition; a bar is met or missed by the median.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarking.groups import RETRO, RETRO_BF16, RETRO_FP32, SB3, STOCK, STOCK_EXAMPLE, TIMED
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
    goal: float | None = None
    """What would be better than the bar, on the same side of it."""
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


def floors(results: Results, algorithm: str, precision: str) -> dict[int, dict[str, float]]:
    """By repetition: the best of each part, and the ceiling that follows."""
    found: dict[int, dict[str, float]] = {}
    names = {
        "env": "env_agent_steps_per_s",
        "forward": f"forward_{precision}_observations_per_s",
        "update": f"update_{precision}_samples_per_s",
    }
    runs = results["groups"].get(algorithm.lower(), {"runs": []})["runs"]
    for repetition in sorted({run["repetition"] for run in runs}):
        turn = [run["facts"] for run in runs if run["repetition"] == repetition]
        facts = [fact for fact in turn if names["update"] in fact]
        if not facts:
            continue
        parts = {part: max(fact[name] for fact in facts) for part, name in names.items()}
        samples = SAMPLES_PER_AGENT_STEP[algorithm]
        found[repetition] = {**parts, "ceiling": ceiling(**parts, samples_per_agent_step=samples)}
    return found


def choose_precision(results: Results) -> tuple[str, str]:
    """The program that is what `precision: auto` takes on the machine, and its precision."""
    if results["machine"]["bf16_in_hardware"]:
        return RETRO_BF16, "bf16"
    return RETRO_FP32, "fp32"


def _answer_ppo(results: Results) -> list[Answer]:
    own, precision = choose_precision(results)
    fp32, bf16 = (_over(results, "ppo", name, SB3) for name in (RETRO_FP32, RETRO_BF16))
    note = "" if precision == "bf16" else NO_BF16
    own_bytes, sb3_bytes = (peak_bytes(results, "ppo", name) for name in (own, SB3))
    return [
        Answer("ppo", f"rate, fp32 / {SB3}", fp32, at_least=1.35, goal=1.6),
        Answer("ppo", f"rate, bf16 / {SB3}", bf16, at_least=2.2, goal=2.8, note=note),
        Answer("ppo", f"rate, {precision} / {STOCK}", _over(results, "ppo", own, STOCK),
               at_least=4.5, goal=6.0, note=note),
        Answer("ppo", f"rate, {precision} / {STOCK_EXAMPLE}",
               _over(results, "ppo", own, STOCK_EXAMPLE)),
        *_answer_floors(results, "PPO", at_least=0.80, goal=0.90),
        Answer("ppo", f"peak memory, {precision} / {SB3}", spread(ratios(own_bytes, sb3_bytes)),
               below=1.5, goal=1.0),
    ]  # fmt: skip


def _answer_a2c(results: Results) -> list[Answer]:
    return [
        *_answer_rates(results, "a2c", at_least=1.8, goal=2.4),
        *_answer_floors(results, "A2C"),
    ]


def _answer_dqn(results: Results) -> list[Answer]:
    return [
        *_answer_rates(results, "dqn", at_least=2.2, goal=3.0),
        *_answer_floors(results, "DQN"),
    ]


def _answer_rates(results: Results, group: str, *, at_least: float, goal: float) -> list[Answer]:
    """Both precisions over Stable-Baselines3; the bar is for the one that is chosen here."""
    own, _ = choose_precision(results)
    answers = []
    for program, precision in ((RETRO_FP32, "fp32"), (RETRO_BF16, "bf16")):
        bars = {"at_least": at_least, "goal": goal} if program == own else {}
        note = NO_BF16 if precision == "bf16" and program != own else ""
        found = _over(results, group, program, SB3)
        answers.append(Answer(group, f"rate, {precision} / {SB3}", found, **bars, note=note))
    return answers


def _answer_floors(
    results: Results, algorithm: str, at_least: float | None = None, goal: float | None = None
) -> list[Answer]:
    group, answers = algorithm.lower(), []
    for program, precision in ((RETRO_FP32, "fp32"), (RETRO_BF16, "bf16")):
        turns = floors(results, algorithm, precision)
        ceilings = {turn: floor["ceiling"] for turn, floor in turns.items()}
        if not ceilings:
            continue
        found = spread(ratios(rates(results, group, program), ceilings))
        question = f"rate, {precision} / what its parts allow"
        answers.append(Answer(group, question, found, at_least=at_least, goal=goal))
    return answers


def _over(results: Results, group: str, program: str, other: str) -> Spread | None:
    return spread(ratios(rates(results, group, program), rates(results, group, other)))


def _answer_overhead(results: Results) -> list[Answer]:
    facts = [run["facts"] for run in good_runs(results, "overhead", TIMED).values()]
    between, others = (
        [fact[name] for fact in facts] for name in ("between_share", "other_cpu_share")
    )
    both = [sum(shares) for shares in zip(between, others, strict=True)]
    return [
        Answer(
            "overhead", "share of Tune, bus and writers", spread(both), "%", below=0.03, goal=0.01
        ),
        Answer("overhead", "of which time between iterations", spread(between), "%"),
        Answer("overhead", "of which processors, others' work", spread(others), "%"),
    ]


def _answer_first(results: Results) -> list[Answer]:
    found = spread(first_marks(results, "first", RETRO))
    return [Answer("first", "from the start to the first row", found, "s", below=15.0, goal=8.0)]


def _answer_long(results: Results) -> list[Answer]:
    runs = good_runs(results, "long", RETRO).values()
    kept, grown, peak = [], [], []
    for run in runs:
        marks = past_warmup(marks_of(run), warmup_agent_steps=run["warmup_agent_steps"])
        fifths, memory = fifth_rates(marks), memory_growth(run["memory"], marks)
        kept += [fifths[1] / fifths[0]] if fifths else []
        grown += [memory[1] / memory[0]] if memory else []
        peak += [max(size for _, size in run["memory"]) / 1e9] if run["memory"] else []
    return [
        Answer("long", "rate, last fifth / first fifth", spread(kept), at_least=0.97, goal=1.0),
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
               goal=7.1, note=note),
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
