"""`python -m retro_ml.compare`, `retro-ml compare`: runs side by side.

Exit codes: 0 compared, 2 bad input, 3 storage does not answer, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retro_ml.core.artifacts.given_runs import STORAGE_FAILED, StorageError, open_runs
from retro_ml.core.experiments.command import (
    Parser,
    fail,
    print_answer,
    refuse,
    stoppable,
    tell_stopped,
)
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line

if TYPE_CHECKING:
    from retro_ml.evaluation.statistics import Interval
    from retro_ml.reporting.comparison import Comparison, Standing

_LONGEST_CELL = 40

_DESCRIPTION = """\
What differs in the configs of runs, and in what they reached: the score at agent steps that all
of them have, the final score with its interval, the speed. A folder of several runs, e.g. seeds,
counts as one side."""

_EPILOG = """\
examples:
  retro-ml compare runs/ppo-s1 runs/ppo-clip-s1
  retro-ml compare runs/baseline runs/new-idea    # folders of several seeds each
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """Compare as `argv` says; the process's exit code."""
    try:
        flags = _build_parser().parse_args(sys.argv[1:] if argv is None else argv)
        if len(flags.folders) < 2:
            raise UsageError(["RUN_OR_DIR: only one is given -> two or more, to be compared"])
        comparison = _compare(flags.folders)
    except UsageError as error:
        return refuse("compare", error.faults)
    except StorageError as error:
        return fail(f"RUN_OR_DIR: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "nothing was compared")
    for text in comparison.left_out:
        print(f"warning: left out: {as_line(text)}", file=sys.stderr)
    for text in comparison.notices:
        print(f"warning: {as_line(text)}", file=sys.stderr)
    if flags.json:
        print_answer(json.dumps(comparison.as_dict(), allow_nan=False))
    else:
        print_answer("\n".join(comparison_lines(comparison)))
    return 0


def comparison_lines(comparison: Comparison) -> list[str]:
    """The tables, line by line."""
    from retro_ml.reporting.run_folders import align_table

    rows = [["what differs", *map(_cell, comparison.sides)]]
    rows += [[name, *map(_show, values)] for name, values in comparison.differences.items()]
    lines = align_table(rows, left=1) if len(rows) > 1 else ["their configs are the same"]
    for game in dict.fromkeys(standing.game for standing in comparison.standings):
        standings = [standing for standing in comparison.standings if standing.game == game]
        lines += ["", *_game_lines(game, standings, sides=len(comparison.sides))]
    return lines


def _game_lines(game: str, standings: Sequence[Standing], *, sides: int) -> list[str]:
    from retro_ml.reporting.run_folders import align_table

    equal = standings[0].equal_agent_steps
    head = (
        game,
        "runs",
        "state",
        "steps",
        f"score at {equal:,}" if equal is not None else "score at equal steps",
        "final score",
        "95 % interval",
        "human = 1",
        "better than first",
        "steps/s",
    )
    rows = [head, *(_standing_cells(standing) for standing in standings)]
    over = [f"{_cell(s.side)}: {s.score_over}" for s in standings if s.score_over is not None]
    lines = align_table(rows, left=1)
    if over:
        lines.append("final score over: " + "; ".join(over))
    if len(standings) < sides:
        lines.append("not every side has a run of this game")
    return lines


def _standing_cells(standing: Standing) -> tuple[str, ...]:
    better = "-"
    if standing.probability_of_improvement is not None:
        better = f"{standing.probability_of_improvement:.2f}"
        better += f" ({_ends(standing.probability_interval, 2)})"
    return (
        _cell(standing.side),
        str(standing.runs),
        "/".join(standing.states),
        f"{standing.agent_steps:,}",
        _number(standing.score_at_equal, 1),
        _number(standing.score, 1),
        _ends(standing.interval, 1),
        _number(standing.human_normalised, 2),
        better,
        _number(standing.steps_per_s, 0),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ends(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "-"
    return f"{interval.low:,.{digits}f} to {interval.high:,.{digits}f}"


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return _cell(" | ".join(_show(item) for item in value))
    return _cell(value if isinstance(value, str) else json.dumps(value))


def _cell(text: str) -> str:
    return as_line(text, longest=_LONGEST_CELL)


def _compare(given: Sequence[str]) -> Comparison:
    """Raises: UsageError, StorageError."""
    from retro_ml.reporting.comparison import BadSide, Side, compare, load_side
    from retro_ml.reporting.run_records import is_of_record

    sides: list[Side] = []
    faults = []
    with open_runs(given, word="RUN_OR_DIR", needed=is_of_record) as folders:
        for folder in folders:
            try:
                sides.append(load_side(folder.path))
            except BadSide as error:
                faults.append(str(error).replace(str(folder.path), folder.address(folder.path)))
    if faults:
        raise UsageError(faults)
    return compare(sides)


def _build_parser() -> Parser:
    parser = Parser(
        "compare",
        usage="RUN_OR_DIR RUN_OR_DIR... [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        missing="RUN_OR_DIR: missing -> two or more folders of runs",
    )
    parser.add_argument(
        "folders",
        metavar="RUN_OR_DIR",
        nargs="+",
        help="the folder of a run, or one that runs are in, or its URI; the first is what others "
        "are held against",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on stdout"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
