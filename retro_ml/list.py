"""`python -m retro_ml.list`, `retro-ml list`: the experiments under a folder, as a table.

Exit codes: 0 listed, 2 bad input, 3 storage does not answer, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.given_runs import (
    STORAGE_FAILED,
    GivenFolder,
    StorageError,
    open_runs,
)
from retro_ml.core.experiments.command import (
    Parser,
    fail,
    print_answer,
    refuse,
    stoppable,
    tell_stopped,
)
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line, nearest_names
from retro_ml.reporting.run_folders import (
    STATES,
    RunSummary,
    align_table,
    describe_age,
    find_runs,
    is_of_summary,
    summarize,
)

_LONGEST_CELL = 60

# What can be sorted and filtered by; the values of a filter are compared as text, in any case.
FIELDS: dict[str, Callable[[RunSummary], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "game": lambda run: run.game,
    "algorithm": lambda run: run.algorithm,
    "seed": lambda run: run.seed,
    "steps": lambda run: run.step,
    "score": lambda run: run.score,
    "games": lambda run: run.games,
    "age": lambda run: run.updated_at,
}
# The best and the latest are what one looks for.
_FALLING = frozenset({"score", "steps", "games", "age"})

_EPILOG = """\
states:
  starting, running, completed, interrupted, failed: as the run says itself
  stopped   the scheduler of its sweep has given it up, for good
  lost      it says that it is running, but its process is gone; the same command goes on with it
  unknown   its status.json cannot be read

examples:
  retro-ml list runs --sort score
  retro-ml list runs --filter state=running --filter game=breakout
  retro-ml list s3://runs/lab
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """List experiments as `argv` says; the process's exit code."""
    try:
        flags = _build_parser().parse_args(sys.argv[1:] if argv is None else argv)
        filters = [_read_filter(text) for text in flags.filter]
        with open_runs([flags.folder], word="DIR", needed=is_of_summary) as (folder,):
            runs = _list_runs(folder.path, filters)
    except UsageError as error:
        return refuse("list", error.faults)
    except StorageError as error:
        return fail(f"DIR: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "nothing was listed")
    _sort(runs, flags.sort)
    if flags.json:
        text = json.dumps([_as_dict(run, folder) for run in runs], allow_nan=False)
    else:
        text = "\n".join(_table(_tell_apart(runs, Path(flags.folder)), now=datetime.now(UTC)))
    print_answer(text)
    return 0


def _build_parser() -> Parser:
    parser = Parser(
        "list",
        usage="[DIR] [options]",
        description="The experiments under a folder: state, game, algorithm, steps, score, age.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default="runs", help="or its URI (default: runs)"
    )
    parser.add_argument(
        "--sort",
        metavar="FIELD",
        choices=FIELDS,
        default="age",
        help=f"{', '.join(FIELDS)}; best, longest and latest first (default: age)",
    )
    parser.add_argument(
        "--filter",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="only runs with this value, in any case, or with it as a part of name or game; may be "
        "repeated",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array on stdout")
    return parser


def _read_filter(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        raise UsageError([f"--filter: {text} -> FIELD=VALUE, e.g. state=running"])
    if field not in FIELDS or field == "age":
        names = [name for name in FIELDS if name != "age"]
        raise UsageError([f"--filter: {field} -> {nearest_names(field, names)}"])
    if field == "state" and value.casefold() not in STATES:
        raise UsageError([f"--filter: {text} -> {nearest_names(value, list(STATES))}"])
    return field, value.casefold()


def _list_runs(folder: Path, filters: Sequence[tuple[str, str]]) -> list[RunSummary]:
    try:
        if not folder.is_dir():
            raise UsageError([f"DIR: {folder} -> no such folder; give the one that runs are in"])
        runs = [summarize(paths) for paths in find_runs(folder)]
    except OSError as error:
        raise UsageError([f"DIR: {folder} -> cannot be read: {error.strerror}"]) from None
    return [run for run in runs if all(_matches(run, *wanted) for wanted in filters)]


def _matches(run: RunSummary, field: str, value: str) -> bool:
    found = str(FIELDS[field](run)).casefold()
    return value in found if field in {"name", "game"} else value == found


def _tell_apart(runs: Sequence[RunSummary], folder: Path) -> list[RunSummary]:
    """Runs of the same name, e.g. of two sweeps, by their folders."""
    count = Counter(run.name for run in runs)
    return [
        run if count[run.name] == 1 else replace(run, name=os.path.relpath(run.folder, folder))
        for run in runs
    ]


def _sort(runs: list[RunSummary], field: str) -> None:
    key = FIELDS[field]
    runs.sort(key=lambda run: run.name)
    known = [run for run in runs if key(run) is not None]
    unknown = [run for run in runs if key(run) is None]
    known.sort(key=key, reverse=field in _FALLING)
    runs[:] = known + unknown


def _table(runs: Sequence[RunSummary], *, now: datetime) -> list[str]:
    if not runs:
        return ["no experiments there"]
    head = ("experiment", "state", "game", "algorithm", "seed", "steps", "done", "score", "age")
    rows = [head, *(_cells(run, now) for run in runs)]
    lines = align_table(rows, left=4)
    faults = [
        f"{as_line(run.name)}: {as_line(fault)}"
        for run in runs
        for fault in (*run.faults, *([run.error] if run.error else []))
    ]
    count = f"{len(runs):,} experiment" + ("s" if len(runs) != 1 else "")
    return [*lines, "", count, *faults[:20]] + (
        [f"and {len(faults) - 20:,} more such lines"] if len(faults) > 20 else []
    )


def _cells(run: RunSummary, now: datetime) -> tuple[str, ...]:
    step, total = run.step, run.total_timesteps
    return (
        as_line(run.name, longest=_LONGEST_CELL),
        run.state,
        as_line(run.game or "-", longest=_LONGEST_CELL),
        as_line(run.algorithm or "-", longest=_LONGEST_CELL),
        "-" if run.seed is None else str(run.seed),
        "-" if step is None else f"{step:,}",
        "-" if step is None or not total else f"{min(100, 100 * step // total)} %",
        "-" if run.score is None else f"{run.score:,.1f}",
        describe_age(run.updated_at, now=now),
    )


def _as_dict(run: RunSummary, folder: GivenFolder) -> dict[str, Any]:
    return {
        "experiment_id": run.name,
        "folder": folder.address(run.folder),
        "state": run.state,
        "game": run.game,
        "algorithm": run.algorithm,
        "seed": run.seed,
        "agent_steps": run.step,
        "total_timesteps": run.total_timesteps,
        "score": run.score,
        "games": run.games,
        "started_at": None if run.started_at is None else run.started_at.isoformat(),
        "updated_at": None if run.updated_at is None else run.updated_at.isoformat(),
        "error": run.error,
        "faults": list(run.faults),
    }


if __name__ == "__main__":
    sys.exit(main())
