"""`python -m retro_ml.export`, `retro-ml export`: a model.zip as a file for another runtime.

Exit codes: 0 done, 1 the file would not act as the agent does or could not be written, 2 bad input,
3 a library that the format needs is missing, 130 stopped by Ctrl-C. PyTorch is imported only when
the export really begins, Ray never.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from retro_ml.core.experiments.command import Parser, describe_unknown, refuse
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line, nearest_names
from retro_ml.core.experiments.run_paths import RunPaths

_ONE_MODEL = "one model at a time, all else are options"
UNAVAILABLE = 3

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}

_LONGEST_PATH = 200  # characters that are shown

_DESCRIPTION = """\
Write a trained model as a file for another runtime. It is compared with the agent first, on 1,000
observations of games that the agent plays, and written only if it chooses the same actions."""

_EPILOG = """\
formats:
  onnx          input observations [B, 4, 84, 84] uint8; outputs logits and value, or q_values
  torch-export  the same as a program for torch.export.load
  safetensors   the weights alone

examples:
  retro-ml export runs/my-run --to onnx
  retro-ml export model.zip --to safetensors --output weights.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Export one model as `argv` says; the process's exit code."""
    try:
        flags = _read_call(sys.argv[1:] if argv is None else argv)
        model = _find_model(flags.model)
        output = _choose_output(model, flags)
    except UsageError as error:
        return refuse("export", error.faults)
    return _export(model, output=output, to=flags.to)


def _read_call(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: UsageError with all faults."""
    parser = Parser(
        "export",
        usage=f"MODEL --to {'|'.join(_SUFFIXES)} [--output FILE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model.zip or a run's folder")
    parser.add_argument("--to", metavar="FORMAT", help="onnx, torch-export or safetensors")
    parser.add_argument(
        "--output", metavar="FILE", help="by default MODEL's name with the format's suffix"
    )
    flags, unknown = parser.parse_known_args(argv)
    faults = describe_unknown(unknown, parser, unexpected=_ONE_MODEL)
    if flags.model is None:
        faults.append("MODEL: missing -> a model.zip, or the folder of a run that has one")
    if flags.to is None:
        faults.append(f"--to: missing -> one of {', '.join(_SUFFIXES)}")
    elif flags.to not in _SUFFIXES:
        faults.append(f"--to: {flags.to} -> {nearest_names(flags.to, list(_SUFFIXES))}")
    if faults:
        raise UsageError(faults)
    return flags


def _find_model(given: str) -> Path:
    """The model's file, in a run's folder or itself. Raises: UsageError."""
    path, given = Path(given), as_line(given, longest=_LONGEST_PATH)
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise UsageError([f"MODEL: {given} -> no such file or folder"])
        folder = path.resolve()
        name = RunPaths(output_dir=str(folder.parent), experiment_id=folder.name).model_path.name
        if not (path / name).is_file():
            raise UsageError([f"MODEL: {given} -> this folder has no {name}"])
    except OSError as error:  # a name too long, or a folder on the way that may not be entered
        raise UsageError([f"MODEL: {given} -> cannot be read: {error.strerror}"]) from None
    return path / name


def _choose_output(model: Path, flags: argparse.Namespace) -> Path:
    """Raises: UsageError."""
    if flags.output is None:
        return model.with_suffix(_SUFFIXES[flags.to])
    output = Path(flags.output)
    try:
        if not output.name or output.is_dir():
            raise UsageError([f"--output: {flags.output} -> a file's path, this is a folder"])
        if not output.parent.is_dir():
            raise UsageError([f"--output: {flags.output} -> {output.parent} is no folder"])
        if output.exists() and output.samefile(model):
            raise UsageError([f"--output: {flags.output} -> another file than MODEL itself"])
    except OSError as error:
        raise UsageError([f"--output: {flags.output} -> {error.strerror}"]) from None
    return output


def _export(model: Path, *, output: Path, to: str) -> int:
    try:
        from retro_ml.core.artifacts.model_archive import ArchiveError
        from retro_ml.core.artifacts.storage import ArtifactError
        from retro_ml.evaluation.agent import Agent
        from retro_ml.evaluation.export import ExportDiffers, ExportUnavailable, export_agent

        done = export_agent(Agent.load(model), to=to, output=output)  # type: ignore[arg-type]
    except ArchiveError as error:
        return refuse("export", [str(error)])
    except ExportUnavailable as error:
        print(f"error: --to {to}: {error}", file=sys.stderr)
        return UNAVAILABLE
    except (ArtifactError, ExportDiffers) as error:
        print(f"error: {as_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    print(f"exported: {done.path}")
    if done.signature is not None:
        print(f"signature: {done.signature}")
    print(
        f"compared: the same action on {done.num_observations:,} of {done.num_observations:,} "
        f"observations, largest difference {done.largest_difference:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
