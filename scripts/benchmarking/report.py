"""The tables: machine, what each program did, and each question with its bar. Misses are shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarking.answers import (
    CEILING_FORMULA,
    NO_BF16,
    SAMPLES_PER_AGENT_STEP,
    Answer,
    build_answers,
    first_marks,
    floors,
    good_runs,
    peak_bytes,
    rates,
)
from benchmarking.groups import GROUPS, RETRO, RETRO_BF16, RETRO_FP32, SB3, STOCK, STOCK_EXAMPLE
from benchmarking.rates import Spread, spread
from benchmarking.results import Results

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
PRECISIONS = ("fp32", "bf16")
TRAINED = {
    "ppo": (RETRO_FP32, RETRO_BF16, SB3, STOCK, STOCK_EXAMPLE),
    "a2c": (RETRO_FP32, RETRO_BF16, SB3),
    "dqn": (RETRO_FP32, RETRO_BF16, SB3),
    "long": (RETRO,),
}


def summarize(results: Results) -> list[dict[str, Any]]:
    """The answers as they go into the JSON, each with `met`; the floors with their formula."""
    summary = [{**asdict(answer), "met": answer.met} for answer in build_answers(results)]
    for algorithm, samples in SAMPLES_PER_AGENT_STEP.items():
        for precision in PRECISIONS:
            turns = list(floors(results, algorithm, precision).values())
            if turns:
                facts = {"formula": CEILING_FORMULA, "samples_per_agent_step": samples}
                floor = {"floor": algorithm, "precision": precision, **facts, "turns": turns}
                summary.append(floor)
    return summary


def build_markdown(results: Results) -> str:
    """All tables, without a heading of the first level."""
    answers = build_answers(results)
    parts = [_machine_lines(results)]
    for group in GROUPS:
        if group.name not in results["groups"]:
            continue
        parts.append(f"### {group.name}: {group.meaning}")
        if group.name in TRAINED:
            parts.append(_programs_table(results, group.name))
        if floors(results, group.name.upper(), "fp32"):
            parts.append(_floors_table(results, group.name.upper()))
        parts.append(answers_table([one for one in answers if one.group == group.name]))
        parts += _failures(results, group.name)
        parts.append(_provenance(results["groups"][group.name]))
    return "\n\n".join(parts) + "\n"


def replace_results(text: str, markdown: str) -> str:
    """A document with the part between the two comments replaced.

    Raises ValueError when one of them is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} have to stand in the document, in this order")
    return f"{before}{BEGIN}\n\n{markdown}\n{END}{after}"


def describe_run(run: dict[str, Any], results: Results, group: str) -> str:
    """One line about a run that has just ended."""
    if run["error"] is not None:
        return f"failed, {run['error']}"
    parts = []
    rate = rates(results, group, run["program"]).get(run["repetition"])
    if rate is not None:
        parts.append(f"{rate:.1f} agent steps/s")
    if run["first_mark_s"] is not None:
        parts.append(f"first row after {run['first_mark_s']:.1f} s")
    peak = peak_bytes(results, group, run["program"]).get(run["repetition"])
    if peak:
        parts.append(f"peak {peak / 1e9:.2f} GB in {run['processes']} processes")
    facts = {name: value for name, value in run["facts"].items() if name.endswith("_per_s")}
    parts += [f"{name.removesuffix('_per_s')} {value:,.0f}/s" for name, value in facts.items()]
    return ", ".join(parts)


def answers_table(answers: list[Answer]) -> str:
    """Question, bar, what was found, and whether that meets the bar."""
    rows = []
    for answer in answers:
        bar, goal = "", ""
        if answer.at_least is not None:
            bar = f"at least {figure(answer.at_least, answer.unit)}"
        elif answer.below is not None:
            bar = f"below {figure(answer.below, answer.unit)}"
        if answer.goal is not None:
            goal = figure(answer.goal, answer.unit)
        met = {True: "met", False: "**missed**", None: ""}[answer.met]
        found = figures(answer.found, answer.unit)
        rows.append([answer.question, bar, goal, found, met, answer.note])
    return table(["Question", "Bar", "Goal", "Measured", "", "Note"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(found: Spread | None, unit: str) -> str:
    """Median, and from where to where where there are several."""
    if found is None:
        return "not measured"
    text = figure(found.median, unit)
    if found.count == 1:
        return text
    return f"{text} ({figure(found.min, unit)} to {figure(found.max, unit)})"


def figure(value: float, unit: str) -> str:
    """A number with its unit, rounded to what it is good for."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    if unit == "/s":
        return f"{value:,.0f}/s" if value >= 1_000 else f"{value:.1f}/s"
    return f"{value:.2f} {unit}".strip()


def _machine_lines(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    bf16 = "bf16 in hardware" if machine["bf16_in_hardware"] else NO_BF16
    known = ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of "
        f"memory, {machine['system']}; {bf16}.\n{known}; mode: {results['mode']}."
    )


def _programs_table(results: Results, group: str) -> str:
    rows = []
    for program in TRAINED[group]:
        runs = list(good_runs(results, group, program).values())
        parameters = {run["facts"]["parameters"] for run in runs if "parameters" in run["facts"]}
        name = program
        if program == RETRO_BF16 and not results["machine"]["bf16_in_hardware"]:
            name = f"{program} ({NO_BF16})"
        peaks = [size / 1e9 for size in peak_bytes(results, group, program).values()]
        rows.append(
            [
                name,
                figures(spread(list(rates(results, group, program).values())), "/s"),
                figures(spread(first_marks(results, group, program)), "s"),
                figures(spread(peaks), "GB"),
                ", ".join(f"{count:,}" for count in sorted(parameters)),
            ]
        )
    head = ["Program", "Agent steps", "First row or update", "Peak memory", "Parameters"]
    return table(head, rows)


def _floors_table(results: Results, algorithm: str) -> str:
    rows = []
    for precision in PRECISIONS:
        turns = floors(results, algorithm, precision).values()
        if turns:
            parts = ("env", "forward", "update", "ceiling")
            found = [figures(spread([turn[part] for turn in turns]), "/s") for part in parts]
            rows.append([precision, *found])
    head = ["Parts", "Emulator: agent steps", "Forward: observations", "Update: samples"]
    return table([*head, "Together: agent steps"], rows)


def _failures(results: Results, group: str) -> list[str]:
    runs = results["groups"][group]["runs"]
    lines = [
        f"- {run['program']}, repetition {run['repetition']} failed: {run['error']}"
        for run in runs
        if run["error"] is not None
    ]
    return ["\n".join(lines)] if lines else []


def _provenance(group: dict[str, Any]) -> str:
    return f"*{group['began_at']}, commit {group['commit'] or 'unknown'}.*"
