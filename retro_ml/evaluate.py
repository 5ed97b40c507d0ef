"""`python -m retro_ml.evaluate`, `retro-ml evaluate`: a trained model's score by a named protocol.

Exit codes: 0 done, 1 the result could not be written, 2 bad input, 3 storage does not answer, 130
stopped by Ctrl-C. PyTorch is imported only when the games really begin, Ray never.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retro_ml.core.experiments.command import Parser, describe_unknown, print_answer, refuse
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.core.experiments.locations import hide_credentials, is_uri, normalize_uri
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.evaluation.protocols import EvaluationOptions

if TYPE_CHECKING:
    from retro_ml.core.artifacts.remote_folder import RemoteFolder

_ONE_MODEL = "one model at a time, all else are options"
STORAGE_FAILED = 3
STORAGE_PATIENCE_S = 20.0

_DESCRIPTION = """\
Play whole games with a trained model and say how good it is. For a run's folder the result is
also written there, as evaluation-<protocol>.json; the folder may be in storage (s3://...)."""

_EPILOG = """\
examples:
  retro-ml evaluate runs/my-run
  retro-ml evaluate model.zip --protocol machado --episodes 30 --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate one model as `argv` says; the process's exit code."""
    try:
        flags, options = _read_call(sys.argv[1:] if argv is None else argv)
        if flags.model is not None and is_uri(flags.model):
            return _evaluate_stored(flags.model, options=options, flags=flags)
        paths, model = _find_model(flags.model)
    except UsageError as error:
        return refuse("evaluate", error.faults)
    return _evaluate(model, paths=paths, options=options, flags=flags)


def _evaluate_stored(uri: str, *, options: EvaluationOptions, flags: argparse.Namespace) -> int:
    """The model of a run in storage, and the result back to it. Raises: UsageError."""
    from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError

    try:
        run = RemoteFolder(normalize_uri(uri), patience_s=STORAGE_PATIENCE_S)
    except ValueError as error:
        raise UsageError([f"MODEL: {hide_credentials(uri)} -> {error}"]) from None
    with TemporaryDirectory(prefix="retro_ml-") as folder:
        paths = RunPaths(output_dir=folder, experiment_id=run.uri.rpartition("/")[2])
        paths.experiment_dir.mkdir()
        try:
            run.download(paths.model_path.name, paths.model_path)
            code = _evaluate(paths.model_path, paths=paths, options=options, flags=flags, to=run)
        except ObjectMissing:
            name = paths.model_path.name
            raise UsageError(
                [f"MODEL: {run.uri} -> there is no {name}: give the URI of a run that has one"]
            ) from None
        except StorageError as error:
            print(f"error: MODEL: {error}", file=sys.stderr)
            return STORAGE_FAILED
    return code


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


def _find_model(given: str) -> tuple[RunPaths | None, Path]:
    """The run, if a run's folder was given, and the model's file. Raises: UsageError."""
    path = Path(given)
    try:
        if path.is_file():
            return None, path
        if not path.is_dir():
            raise UsageError([f"MODEL: {given} -> no such file or folder"])
    except OSError as error:  # a name too long, or a folder on the way that may not be entered
        raise UsageError([f"MODEL: {given} -> cannot be read: {error.strerror}"]) from None
    folder = path.resolve()
    paths = RunPaths(output_dir=str(folder.parent), experiment_id=folder.name)
    if not paths.model_path.is_file():
        raise UsageError(
            [
                f"MODEL: {given} -> this folder has no {paths.model_path.name}: give the folder "
                "of a run that has saved its model, or a model.zip"
            ]
        )
    if not os.access(folder, os.W_OK):
        raise UsageError(
            [
                f"MODEL: {given} -> the result cannot be written there: make the folder writable, "
                f"or give {path / paths.model_path.name} and use --json"
            ]
        )
    return paths, path / paths.model_path.name


def _evaluate(
    model: Path,
    *,
    paths: RunPaths | None,
    options: EvaluationOptions,
    flags: argparse.Namespace,
    to: RemoteFolder | None = None,
) -> int:
    try:
        from retro_ml.core.artifacts.model_archive import ArchiveError
        from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
        from retro_ml.evaluation.evaluate import evaluate_model
        from retro_ml.evaluation.report import EvaluationProgress, evaluation_lines

        with EvaluationProgress(None if flags.quiet else sys.stderr) as progress:
            evaluation = evaluate_model(model, **options.model_dump(), on_step=progress)
        document = json.dumps(evaluation.as_dict(), allow_nan=False)
        print_answer(document if flags.json else "\n".join(evaluation_lines(evaluation)))
        if paths is not None:
            path = paths.evaluation_path(evaluation.protocol.name)
            content = document.encode() + b"\n"
            if to is None:
                replace_atomically(path, lambda file: file.write(content))
            else:
                to.put(path.name, content)
            print(f"result: {path if to is None else f'{to.uri}/{path.name}'}", file=sys.stderr)
    except ArchiveError as error:
        return refuse("evaluate", [str(error)])
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: no result was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
