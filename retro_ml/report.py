"""`python -m retro_ml.report`, `retro-ml report`: runs -> report.html with figures and tables.

Exit codes: 0 done, 1 the report could not be written, 2 bad input, 3 storage does not answer, 130
and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from retro_ml.core.artifacts.given_runs import (
    STORAGE_FAILED,
    GivenFolder,
    StorageError,
    find_address,
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
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.locations import hide_credentials, is_uri

_DESCRIPTION = """\
One page, report.html, that says what was run and what came of it, and needs nothing but itself;
beside it report/ with each figure as PNG and SVG and each table as CSV."""

_EPILOG = """\
examples:
  retro-ml report runs/my-run
  retro-ml report runs/ppo-s1 runs/ppo-s2 runs/ppo-s3 --output reports/ppo
  retro-ml report runs/my-sweep
  retro-ml report s3://runs/lab/my-sweep --output reports/my-sweep

Runs of one config that differ in their seed alone are taken together, and each seed counts once.
Where all runs of a game have been through `retro-ml evaluate` since they were last trained, their
scores are those of the evaluations, otherwise those of the last training games.
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """Report as `argv` says; the process's exit code."""
    try:
        flags = _build_parser().parse_args(sys.argv[1:] if argv is None else argv)
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError(
                ["matplotlib: not installed, and it draws the figures -> pip install "
                 "'retro_ml[report]'"]
            )  # fmt: skip
        return _report(flags)
    except UsageError as error:
        return refuse("report", error.faults)
    except StorageError as error:
        return fail(f"RUN_OR_SWEEP_DIR: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "the report is not complete")


def _build_parser() -> Parser:
    parser = Parser(
        "report",
        usage="RUN_OR_SWEEP_DIR... [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        missing="RUN_OR_SWEEP_DIR: missing -> the folder of a run, or one that runs are in",
    )
    parser.add_argument(
        "folders",
        metavar="RUN_OR_SWEEP_DIR",
        nargs="+",
        help="the folder of a run, or one that runs are in, or its URI",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where to write (default: the folder or URI given; of several, the current folder)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--json", action="store_true", help="print what was made as one JSON object on stdout"
    )
    return parser


def _report(flags: argparse.Namespace) -> int:
    """Raises: UsageError, StorageError."""
    from retro_ml.core.artifacts.storage import ArtifactError
    from retro_ml.reporting.report import NothingToReport, is_of_report, write_report

    def notice(text: str) -> None:
        if not flags.quiet:
            print(text, file=sys.stderr)

    word = "RUN_OR_SWEEP_DIR"
    if any(is_uri(text) for text in flags.folders):
        notice("fetching what the report is made of")
    try:
        with open_runs(flags.folders, word=word, needed=is_of_report) as folders:
            report = write_report(folders, output=_choose_output(folders, flags), notice=notice)
            for folder in folders:
                folder.keep([path for path in report.files if path.is_relative_to(folder.path)])
            page, made = (find_address(path, folders) for path in (report.page, report.folder))
    except NothingToReport as error:
        raise UsageError(error.faults) from None
    except ArtifactError as error:
        text = str(error).replace("another --output-dir", "another --output")
        return fail(text, 1)
    for text in report.left_out:
        print(f"warning: left out: {as_line(text)}", file=sys.stderr)
    told = {"page": page, "folder": made, "runs": report.runs, "left_out": list(report.left_out)}
    print_answer(json.dumps(told) if flags.json else f"report: {page}")
    return 0


def _choose_output(folders: Sequence[GivenFolder], flags: argparse.Namespace) -> Path:
    """Raises: UsageError."""
    if flags.output is None:
        return folders[0].path if len(folders) == 1 else Path()
    if is_uri(flags.output):
        raise UsageError(
            [
                f"--output: {hide_credentials(flags.output)} -> a folder of this machine; without "
                "it the report of one URI is sent there"
            ]
        )
    return Path(flags.output)


if __name__ == "__main__":
    sys.exit(main())
