"""`scripts/learning_benchmark`: trains what is missing, keeps it, rewrites docs/learning.md.

The same call goes on where the last one stopped.

Exit codes: 0 done, or stopped when the hours were over; 1 a run failed (the others are made all the
same), or a file could not be read or written; 2 bad arguments, records that are not of the matrix,
or another call is at work; 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from learning.matrix import Entry, MatrixError, Run, load_matrix, order_runs
from learning.plan import describe_standings, estimate_hours, find_standings
from learning.records import BadGames, Game, build_facts, is_done, save_record
from learning.report import write_report
from learning.run_folders import (
    SB3_MODEL,
    BadRunFolder,
    check_records,
    find_entry,
    is_length,
    load_config,
    read_import,
    read_retro_ml,
)
from learning.train import (
    Busy,
    Deadline,
    Failed,
    build_record_facts,
    evaluate,
    hold_lock,
    train,
)

ROOT = Path(__file__).resolve().parents[2]
RUNS, DOCS = ROOT / "runs/learning", ROOT / "docs"
DATA = DOCS / "data/learning"


class Stopped(BaseException):
    """A signal; not an Exception, so that nothing takes it for a fault."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message} -> see scripts/learning_benchmark --help", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` says; the process's exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        entries = load_matrix()
        call = parse(argv, entries)
        check_records(entries, DATA)
        chosen = [one for one in entries if call.only is None or one.name in call.only]
        if call.list:
            print(describe_standings(find_standings(chosen, runs=RUNS, data=DATA)))
            return 0
        if call.adopt is not None:
            adopt(Path(call.adopt), entries)
        elif call.import_sb3 is not None:
            import_sb3(Path(call.import_sb3), chosen, source=call.source)
        elif not call.report:
            return train_all(chosen, entries, hours=call.hours)
        write_report(entries, docs=DOCS)
        print(f"written: {DOCS / 'learning.md'}")
        return 0
    except Stopped as stopped:
        return 128 + stopped.signum
    except (MatrixError, BadRunFolder, BadGames, Busy) as error:
        return _tell(str(error), 2)
    except (Failed, Deadline) as error:
        return _tell(str(error) or "stopped", 1)
    except OSError as error:
        if error.filename is None:
            raise
        return _tell(f"{error.filename}: {error.strerror}", 1)


def parse(argv: Sequence[str] | None, entries: Sequence[Entry]) -> argparse.Namespace:
    """The arguments; ends the process with one message and exit code 2 where they are wrong."""
    names = list(dict.fromkeys(entry.name for entry in entries))
    parser = _Parser(
        prog="scripts/learning_benchmark",
        description="Trains the matrix in scripts/learning/matrix.yaml, one run at a time, and "
        "rewrites docs/learning.md after each. The same call goes on where the last one stopped.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="what is done, under way and missing")
    what.add_argument("--report", action="store_true", help="only rewrite docs/learning.md")
    what.add_argument(
        "--adopt", metavar="RUN_DIR", help="take over a finished run whose config is in the matrix"
    )
    what.add_argument(
        "--import-sb3",
        metavar="FILE",
        help="take over games of Stable-Baselines3: a CSV of seed, agent_steps, score, frames",
    )
    parser.add_argument("--source", metavar="TEXT", help="where the imported games are from")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--hours",
        type=_positive,
        default=math.inf,
        help="stop after so long; a run of retro_ml under way goes on the next time, one of "
        "Stable-Baselines3 is not begun unless it can end",
    )
    call = parser.parse_args(argv)
    if (call.import_sb3 is None) != (call.source is None):
        parser.error("--import-sb3 and --source: one needs the other")
    return call


def train_all(chosen: Sequence[Entry], entries: Sequence[Entry], *, hours: float) -> int:
    """Every missing run, one after another; the report after each. One that fails stops no other.

    Returns the exit code.
    """
    end_s = time.monotonic() + hours * 3_600
    exit_code = 0
    with hold_lock(RUNS) as lock:
        for run in order_runs(chosen):
            if is_done(run, DATA):
                continue
            left = (end_s - time.monotonic()) / 3_600
            estimate = estimate_hours(run.entry, DATA)
            if left <= 0:
                break
            if run.entry.side == "sb3" and estimate > left:
                _say(f"{run.name} takes about {estimate:.1f} h: left for the next call")
                continue
            try:
                if not _train_one(run, lock, end_s):
                    break
            except Failed as failed:
                exit_code = _tell(str(failed), 1)
                continue
            write_report(entries, docs=DOCS)
    print(describe_standings(find_standings(chosen, runs=RUNS, data=DATA)))
    return exit_code


def adopt(folder: Path, entries: tuple[Entry, ...]) -> None:
    """Keeps a finished run of retro_ml, and evaluates its model.

    Raises BadRunFolder, Failed.
    """
    folder = folder.resolve()
    run = find_entry(load_config(folder), entries)
    _check_missing(run)
    finished = read_retro_ml(folder)
    if finished is None:
        raise BadRunFolder(f"{folder}: not completed -> finish it by the command that began it")
    _say(f"{run.name}: evaluating")
    RUNS.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(run, folder / SB3_MODEL, runs=RUNS, lock=None, end_s=math.inf)
    facts = build_record_facts(run, finished, evaluation, origin="adopted")
    save_record(facts, finished.games, DATA)
    _say(f"{run.name}: {facts['last_100_mean']:.2f}, evaluation {evaluation['mean']['value']:.2f}")


def import_sb3(path: Path, chosen: Sequence[Entry], *, source: str) -> None:
    """Keeps games of runs of Stable-Baselines3 that were made elsewhere. Raises BadRunFolder."""
    theirs = [entry for entry in chosen if entry.side == "sb3"]
    if len(theirs) != 1:
        raise BadRunFolder(f"--import-sb3: {len(theirs)} entries are sb3's -> choose with --only")
    entry = theirs[0]
    games = read_import(path)
    if not games:
        raise BadRunFolder(f"{path}: holds no games")
    for seed, some in games.items():
        if seed not in entry.seeds:
            raise BadRunFolder(f"{path}: seed {seed} -> one of {', '.join(map(str, entry.seeds))}")
        _check_missing(Run(entry, seed))
        _check_length(some, entry, f"{path}: seed {seed}")
    for seed, some in games.items():
        facts = build_facts(
            Run(entry, seed),
            some,
            origin="imported",
            source=source,
            agent_steps=entry.agent_steps,
            precision=entry.precision,
            versions={},
        )
        save_record(facts, some, DATA)
        _say(f"{facts['run']}: {facts['last_100_mean']:.2f}")


def _train_one(run: Run, lock: BinaryIO, end_s: float) -> bool:
    """False when time is up."""
    _say(f"{run.name}: about {estimate_hours(run.entry, DATA):.1f} h in all")
    try:
        train(run, runs=RUNS, data=DATA, root=ROOT, lock=lock, end_s=end_s)
    except Deadline:
        _say(f"{run.name}: stopped; the same call goes on")
        return False
    _say(f"{run.name}: done")
    return True


def _check_missing(run: Run) -> None:
    if is_done(run, DATA):
        raise BadRunFolder(f"{run.name} is done -> remove its .json in {DATA} to make it anew")


def _check_length(games: Sequence[Game], entry: Entry, where: str) -> None:
    if not is_length(games[-1].step, entry):
        wanted = f"{entry.agent_steps:,} agent steps"
        raise BadRunFolder(f"{where}: ends after {games[-1].step:,} -> a run of {wanted}")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of hours above 0")
    return value


def _stop(signum: int, frame: Any) -> None:
    raise Stopped(signum)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M')} {text}", file=sys.stderr, flush=True)


def _tell(message: str, exit_code: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
