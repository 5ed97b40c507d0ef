"""`python -m retro_ml.evaluate`, `retro-ml evaluate`: a trained model's score by a named protocol.

Exit codes: 0 done, 1 the result could not be written, 2 bad input, 3 storage does not answer, 130
and 143 stopped by a signal. PyTorch is imported only when the games really begin, Ray never.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from retro_ml.core.artifacts.given_runs import (
    STORAGE_FAILED,
    GivenModel,
    StorageError,
    open_model,
)
from retro_ml.core.experiments.command import (
    Parser,
    describe_unknown,
    fail,
    print_answer,
    refuse,
    stoppable,
    tell_stopped,
)
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.evaluation.protocols import EvaluationOptions

_ONE_MODEL = "one model at a time, all else are options"

_DESCRIPTION = """\
Play whole games with a trained model and say how good it is. For a run's folder the result is
also written there, as evaluation-<protocol>.json; the folder may be in storage (s3://...)."""

_EPILOG = """\
examples:
  retro-ml evaluate runs/my-run
  retro-ml evaluate model.zip --protocol machado --episodes 30 --json
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate one model as `argv` says; the process's exit code."""
    try:
        flags, options = _read_call(sys.argv[1:] if argv is None else argv)
        with open_model(flags.model) as model:
            _refuse_unwritable(model)
            return _evaluate(model, options=options, flags=flags)
    except UsageError as error:
        return refuse("evaluate", error.faults)
    except StorageError as error:
        return fail(f"MODEL: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "no result was written")


def _read_call(argv: Sequence[str]) -> tuple[argparse.Namespace, EvaluationOptions]:
    """Flags and validated options. Raises: UsageError with all faults."""
    parser = _build_parser()
    flags, unknown = parser.parse_known_args(argv)
    faults = describe_unknown(unknown, parser, unexpected=_ONE_MODEL)
    if flags.model is None:
        faults.append("MODEL: missing -> a model.zip, or the folder of a run that has one")
    given = {
        name: value
        for name, value in vars(flags).items()
        if name in EvaluationOptions.model_fields and value is not None
    }
    try:
        options = EvaluationOptions.model_validate(given)
    except ValidationError as error:
        faults += describe_faults(error, EvaluationOptions)
    if faults:
        raise UsageError(faults)
    return flags, options


def _build_parser() -> Parser:
    parser = Parser(
        "evaluate",
        usage="MODEL [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model.zip, or a run's folder or URI"
    )
    for name, field in EvaluationOptions.model_fields.items():
        words: dict[str, Any] = {"help": str(field.description).replace("%", "%%")}
        if field.annotation is bool:
            words["action"] = "store_true"
        else:
            words["metavar"] = "N" if field.annotation is int else "NAME"
        if field.default:
            words["help"] += f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", **words)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on stdout"
    )
    return parser


def _refuse_unwritable(model: GivenModel) -> None:
    """Raises: UsageError where the result cannot be written into the run's folder."""
    folder = model.path.parent
    if model.run is not None and not os.access(folder, os.W_OK):
        raise UsageError(
            [
                f"MODEL: {folder} -> the result cannot be written there: make the folder writable, "
                f"or give {model.path} and use --json"
            ]
        )


def _evaluate(model: GivenModel, *, options: EvaluationOptions, flags: argparse.Namespace) -> int:
    """Raises: StorageError."""
    try:
        from retro_ml.core.artifacts.model_archive import ArchiveError
        from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
        from retro_ml.evaluation.evaluate import evaluate_model
        from retro_ml.evaluation.report import EvaluationProgress, evaluation_lines

        with EvaluationProgress(None if flags.quiet else sys.stderr) as progress:
            evaluation = evaluate_model(model.path, **options.model_dump(), on_step=progress)
        evaluation = replace(evaluation, model=model.address)
        document = json.dumps(evaluation.as_dict(), allow_nan=False)
        print_answer(document if flags.json else "\n".join(evaluation_lines(evaluation)))
        if model.run is not None:
            path = model.run.evaluation_path(evaluation.protocol.name)
            replace_atomically(
                path, lambda file: file.write(document.encode() + b"\n"), shared=True
            )
            print(f"result: {model.keep(path)}", file=sys.stderr)
    except ArchiveError as error:
        return refuse("evaluate", [model.in_words(error)])
    except ArtifactError as error:
        return fail(str(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
