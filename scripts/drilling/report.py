"""The drill's table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from drilling.rounds import KINDS, Round

BEGIN, END = "<!-- drill -->", "<!-- end of drill -->"


def is_clean(one: Round) -> bool:
    """Nothing lost, doubled, different or left behind."""
    same = one.same_order and one.weights_equal
    return same and not (one.rows_lost or one.rows_doubled or one.left_behind)


def build_table(rounds: Sequence[Round]) -> str:
    """A Markdown table: a line for each algorithm, and one for all."""
    names = list(dict.fromkeys(one.algorithm for one in rounds))
    head = ["", "Runs", "Kills", "Resumes", "Rows", "Rows lost", "Rows doubled", "Weights equal",
            "Left behind", "Seconds lost per kill"]  # fmt: skip
    lines = [_line(name, [one for one in rounds if one.algorithm == name]) for name in names]
    lines.append(_line("all", rounds))
    table = [head, ["---"] * len(head), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    kinds = Counter(kill["kind"] for one in rounds for kill in one.kills)
    told = ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS)
    return f"{text}\n\nKilled: {told}.\n"


def replace_table(text: str, table: str) -> str:
    """A document with the part between the two comments replaced. Raises ValueError without."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} have to stand in the document, in this order")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def _line(name: str, rounds: Sequence[Round]) -> list[str]:
    kills = sum(len(one.kills) for one in rounds)
    equal = sum(one.weights_equal and one.same_order for one in rounds)
    lost_s = [(one.wall_s - one.undisturbed_s) / len(one.kills) for one in rounds if one.kills]
    counts = [
        len(rounds),
        kills,
        sum(one.resumes for one in rounds),
        sum(one.rows for one in rounds),
        sum(one.rows_lost for one in rounds),
        sum(one.rows_doubled for one in rounds),
    ]
    cells = [f"{count:,}" for count in counts]
    left = sum(len(one.left_behind) for one in rounds)
    median = f"{statistics.median(lost_s):.0f}" if lost_s else ""
    return [name, *cells, f"{equal} of {len(rounds)}", str(left), median]
