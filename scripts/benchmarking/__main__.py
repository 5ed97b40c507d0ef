"""`scripts/benchmark`: measures, shows, and keeps what it found.

Full: docs/benchmarks.md and docs/data/benchmarks.json are rewritten at the end. Quick, or with
`--out`: benchmarks.md and benchmarks.json in a folder. The JSON of a measurement under way is in
that folder (runs/benchmark otherwise) after each run.

Exit codes: 0 all ran, 1 a program failed, 2 bad arguments, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from benchmarking.groups import FULL, GROUP_NAMES, GROUPS, QUICK, Effort, Group
from benchmarking.machine import describe_commit, describe_machine, describe_versions
from benchmarking.report import build_markdown, describe_run, replace_results, summarize
from benchmarking.results import (
    Results,
    add_run,
    begin_group,
    build_results,
    keep_other_groups,
    save_results,
    save_text,
)
from benchmarking.watch import watch

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, DATA = ROOT / "docs/benchmarks.md", ROOT / "docs/data/benchmarks.json"
NAME_JSON, NAME_MD = "benchmarks.json", "benchmarks.md"


class Stopped(BaseException):
    """A signal; not an Exception, so that nothing takes it for a fault."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message} -> see scripts/benchmark --help", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as `argv` says; the process's exit code."""
    call = parse(argv)
    stop = _Signals()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    folder = Path(call.out) if call.out is not None else ROOT / "runs/benchmark"
    in_docs = call.out is None and not call.quick
    groups = [group for group in GROUPS if call.only is None or group.name in call.only]
    try:
        results = _begin(call, groups, DATA if in_docs else folder / NAME_JSON)
        partial = folder / NAME_JSON
        try:
            for group in groups:
                measure(group, QUICK if call.quick else FULL, results, partial)
        except Stopped:
            _save(results, partial)
            print(f"\nstopped; what was measured so far, also in {partial}:\n")
            print(build_markdown(results))
            raise
        return _conclude(results, partial, in_docs=in_docs)
    except Stopped as stopped:
        return 128 + stopped.signum
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror} -> choose another folder with --out")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the process with one message and exit code 2 where they are wrong."""
    parser = _Parser(prog="scripts/benchmark", description="Measures retro_ml beside others.")
    parser.add_argument(
        "--quick", action="store_true", help="once instead of three times, and shorter: 8 minutes"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write benchmarks.json and benchmarks.md there, not into docs"
    )
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        type=_group_names,
        help=f"measure these anew and keep the rest: {', '.join(GROUP_NAMES)}",
    )
    return parser.parse_args(argv)


def measure(group: Group, effort: Effort, results: Results, partial: Path) -> None:
    """All programs of a group, taking turns."""
    begin_group(results, group, commit=describe_commit(ROOT))
    repetitions = 1 if group.once else effort.repetitions
    print(f"== {group.name}: {group.meaning}", flush=True)
    for repetition in range(1, repetitions + 1):
        for program in group.build(effort, repetition):
            began_s = time.monotonic()
            watched = watch(program, repetition=repetition, scratch=partial.parent)
            if watched.error is not None:  # it may quote our own files
                watched.error = watched.error.replace(str(ROOT), ".")
            add_run(results, group, watched)
            _save(results, partial)
            told = describe_run(asdict(watched), results, group.name)
            took_s = time.monotonic() - began_s
            print(f"{repetition}/{repetitions} {program.name}: {told} ({took_s:.0f} s)", flush=True)


def _begin(call: argparse.Namespace, groups: list[Group], earlier: Path) -> Results:
    results = build_results(
        machine=describe_machine(),
        versions=describe_versions(),
        mode="quick" if call.quick else "full",
    )
    if call.only is not None:
        names = {group.name for group in groups}
        left_aside = keep_other_groups(results, earlier, measured_now=names)
        if left_aside is not None:
            print(f"note: {left_aside}", flush=True)
    return results


def _save(results: Results, path: Path) -> None:
    results["summary"] = summarize(results)
    save_results(results, path)


def _conclude(results: Results, partial: Path, *, in_docs: bool) -> int:
    markdown = build_markdown(results)
    print(f"\n{markdown}")
    if in_docs:
        document = replace_results(DOCUMENT.read_text(encoding="utf-8"), markdown)
        save_text(document, DOCUMENT)
        save_results(results, DATA)
    else:
        save_text(markdown, partial.with_name(NAME_MD))
    written = (DOCUMENT, DATA) if in_docs else (partial.with_name(NAME_MD), partial)
    print(f"written: {written[0]} and {written[1]}")
    return int(any(_errors(results)))


def _errors(results: Results) -> list[str]:
    runs = [run for group in results["groups"].values() for run in group["runs"]]
    return [run["error"] for run in runs if run["error"] is not None]


def _group_names(text: str) -> set[str]:
    names = {name.strip() for name in text.split(",")}
    unknown = sorted(names - set(GROUP_NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, unknown))}: not among {', '.join(GROUP_NAMES)}"
        )
    return names


class _Signals:
    """The first ends the measurements, the second the waiting for them; then all is on its way."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, signum: int, frame: Any) -> None:
        self._seen += 1
        if self._seen <= 2:
            raise Stopped(signum)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
