"""docs/learning.md's results: bars, curves, runs and published figures, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarking.report import table

from learning.arithmetic import welch_ratio
from learning.bars import (
    Answer,
    Records,
    build_answers,
    describe_ratio,
    improvement,
    last_100_means,
)
from learning.figures import figure_entries, save_figure
from learning.matrix import Entry, Run
from learning.records import Record, load_record
from learning.references import Reference, load_references, select_references

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
NOT_RUN = "not run yet"
SIDES = {"retro_ml": "retro_ml", "sb3": "Stable-Baselines3"}


def load_records(entries: Sequence[Entry], folder: Path) -> Records:
    """All that is done; every entry has its key."""
    found: dict[str, dict[int, Record]] = {}
    for entry in entries:
        records = {seed: load_record(Run(entry, seed), folder) for seed in entry.seeds}
        found[entry.key] = {seed: one for seed, one in records.items() if one is not None}
    return found


def write_report(entries: Sequence[Entry], *, docs: Path) -> None:
    """Draws the figures and rewrites the results in learning.md, from docs/data.

    Raises ValueError when the document has no place for them.
    """
    document = docs / "learning.md"
    text = document.read_text(encoding="utf-8")
    records = load_records(entries, docs / "data/learning")
    curves, scores = load_references(docs / "data")
    drawn = {}
    for name in dict.fromkeys(entry.name for entry in entries):
        first = next(entry for entry in entries if entry.name == name)
        near = [row for row in select_references(curves, first)
                if row.agent_steps <= first.agent_steps]  # fmt: skip
        path = save_figure(name, entries, records, references=near, folder=docs / "images")
        if path is not None:
            drawn[name] = path.relative_to(docs).as_posix()
    markdown = build_markdown(entries, records, figures=drawn, references=(curves, scores))
    document.write_text(replace_results(text, markdown), encoding="utf-8")


def build_markdown(
    entries: Sequence[Entry],
    records: Records,
    *,
    figures: dict[str, str],
    references: tuple[list[Reference], list[Reference]],
) -> str:
    """All of it, without a heading of the first or second level.

    Args:
        entries: the matrix.
        records: what is done, by entry's key and seed.
        figures: by name, as the document links them.
        references: points of published learning curves, and final scores.
    """
    parts = [answers_table(build_answers(entries, records))]
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        steps, game = f"{own[0].agent_steps:,}", own[0].game
        parts.append(f"### {name}: {own[0].algorithm} on {game}, {steps} agent steps")
        if name in figures:
            parts.append(f"![Learning curves of {name}]({figures[name]})")
        parts.append(_runs_table(own, records))
        parts += _means_lines(name, entries, records)
        parts += [f"Tried: {entry.tried}" for entry in own if entry.tried]
        parts += _provenance(own, records)
        parts += _published_line(own[0], references[0])
    parts += ["### Published figures", _references_table(entries, references)]
    return "\n\n".join(parts) + "\n"


def replace_results(text: str, markdown: str) -> str:
    """A document with the part between the two comments replaced. Raises ValueError without."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} have to stand in the document, in this order")
    return f"{before}{BEGIN}\n\n{markdown}\n{END}{after}"


def answers_table(answers: Sequence[Answer]) -> str:
    """Every bar, what was found, and whether that meets it."""
    words = {"missed": "**missed**", "shown": ""}
    rows = [
        [_describe_entry(one.entry), one.question, one.bar, one.found,
         words.get(one.status, one.status)]
        for one in answers
    ]  # fmt: skip
    return table(["Run", "What", "Bar", "Found", ""], rows)


def _describe_entry(entry: Entry) -> str:
    precision = "" if entry.precision == "auto" else f", {entry.precision}"
    thousands = entry.agent_steps // 1_000
    steps = f"{thousands}k" if thousands < 1_000 else f"{thousands / 1_000:g}M"
    return f"{entry.algorithm} {entry.game} {steps}{precision}"


def _runs_table(entries: Sequence[Entry], records: Records) -> str:
    rows = []
    for entry in entries:
        for seed in entry.seeds:
            record = records[entry.key].get(seed)
            head = [SIDES[entry.side], str(seed)]
            rows.append(head + ([NOT_RUN, *[""] * 5] if record is None else _run_cells(record)))
    return table(
        ["", "Seed", "Last 100 training games", "100 games of evaluation (95 % interval)",
         "Games", "Agent steps", "Hours", "Made"],
        rows,
    )  # fmt: skip


def _run_cells(record: Record) -> list[str]:
    facts = record.facts
    evaluation = facts["evaluation"]
    evaluated = "no model"
    if evaluation is not None:
        mean, interval = evaluation["mean"]["value"], evaluation["mean"]["interval"]
        evaluated = f"{mean:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"
        if evaluation["capped"]:
            evaluated += f", {evaluation['capped']} cut off"
    hours = f"{facts['wall_clock_s'] / 3_600:.2f}" if record.is_timed else ""
    return [
        f"{record.last_100_mean:.2f}",
        evaluated,
        f"{facts['games']:,}",
        f"{facts['agent_steps']:,}",
        hours,
        f"{facts['origin']}, {facts['precision']}",
    ]


def _means_lines(name: str, entries: Sequence[Entry], records: Records) -> list[str]:
    """Means over seeds, ours against the others of the same figure."""
    shown = [entry for entry in figure_entries(name, entries) if records[entry.key]]
    if not shown or shown[0].name != name:
        return []
    lines = []
    means = {entry.key: last_100_means(records[entry.key]) for entry in shown}
    for entry in shown:
        values = means[entry.key]
        spread = f", {min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
        lines.append(
            f"- {SIDES[entry.side]}'s {entry.name}, last 100 games: mean over {len(values)} of "
            f"{len(entry.seeds)} seeds {statistics.fmean(values):.2f}{spread}"
        )
    first = shown[0]
    for other in shown[1:]:
        against = f"{SIDES[first.side]}'s {first.name} / {SIDES[other.side]}'s {other.name}"
        ratio = welch_ratio(means[first.key], means[other.key])
        if ratio is not None:
            lines.append(f"- {against}: {describe_ratio(ratio)}")
        better = improvement(means[first.key], means[other.key])
        if better is not None:
            value, interval = better
            lines.append(
                f"- probability of improvement, {against}: {value:.2f} "
                f"(95 % interval {interval.low:.2f} to {interval.high:.2f})"
            )
    return ["\n".join(lines)]


def _provenance(entries: Sequence[Entry], records: Records) -> list[str]:
    """Versions, commits, machines and sources, each told once."""
    lines: list[str] = []
    for entry in entries:
        told: dict[str, list[int]] = {}
        for seed, record in records[entry.key].items():
            told.setdefault(_describe_origin(record), []).append(seed)
        for text, seeds in told.items():
            some = "seed" if len(seeds) == 1 else "seeds"
            lines.append(f"*{SIDES[entry.side]}, {some} {', '.join(map(str, seeds))}: {text}.*")
    return ["\n\n".join(lines)] if lines else []


def _describe_origin(record: Record) -> str:
    facts = record.facts
    parts = [facts["origin"]]
    if facts["source"]:
        parts.append(facts["source"])
    known = [f"{name} {value}" for name, value in facts["versions"].items() if value is not None]
    parts += [", ".join(known)] if known else []
    if facts["origin"] != "imported":
        parts.append(f"commit {facts['commit'] or 'not recorded'}")
    if facts["machine"]:
        parts.append(f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores")
    return "; ".join(parts)


def _published_line(entry: Entry, curves: list[Reference]) -> list[str]:
    """What others have at the same number of agent steps."""
    rows = _at_budget(entry, curves)
    told = [f"{row.implementation} {row.score:g} ({_seeds(row.seeds)})" for row in rows]
    steps = f"{entry.agent_steps:,}"
    return [f"Published at {steps} agent steps: {', '.join(told)}."] if told else []


def _references_table(
    entries: Sequence[Entry], references: tuple[list[Reference], list[Reference]]
) -> str:
    """Every figure of the matrix's games and algorithms, once, with its source."""
    used: dict[Reference, None] = {}
    for entry in entries:
        used |= dict.fromkeys(_at_budget(entry, references[0]))
    for entry in entries:
        used |= dict.fromkeys(select_references(references[1], entry))
    rows = [
        [row.algorithm, row.game, row.implementation, f"{row.agent_steps:,}", f"{row.score:g}",
         "" if row.std is None else f"{row.std:g}", str(row.seeds), row.protocol, row.source]
        for row in used
    ]  # fmt: skip
    head = ["", "Game", "Who", "Agent steps", "Score", "Std", "Seeds", "How", "Source"]
    return table(head, [[cell.replace("|", "/") for cell in row] for row in rows])


def _at_budget(entry: Entry, curves: list[Reference]) -> list[Reference]:
    near = select_references(curves, entry)
    return [row for row in near if row.agent_steps == entry.agent_steps]


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
