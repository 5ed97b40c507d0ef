"""`python -m retro_ml.export`, `retro-ml export`: a model.zip as a file for another runtime.

Exit codes: 0 done, 1 the file would not act as the agent does or could not be written, 2 bad input,
3 a library that the format needs is missing or storage does not answer, 130 and 143 stopped by a
signal. PyTorch is imported only when the export really begins, Ray never.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
from retro_ml.core.experiments.faults import nearest_names

_ONE_MODEL = "one model at a time, all else are options"
UNAVAILABLE = 3

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}

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
  retro-ml export s3://runs/lab/my-run --to onnx    writes s3://runs/lab/my-run/model.onnx
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """Export one model as `argv` says; the process's exit code."""
    try:
        flags = _read_call(sys.argv[1:] if argv is None else argv)
        with open_model(flags.model) as model:
            return _export(model, output=_choose_output(model.path, flags), to=flags.to)
    except UsageError as error:
        return refuse("export", error.faults)
    except StorageError as error:
        return fail(f"MODEL: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "nothing was written")


def _read_call(argv: Sequence[str]) -> argparse.Namespace:
    """Raises: UsageError with all faults."""
    parser = Parser(
        "export",
        usage=f"MODEL --to {'|'.join(_SUFFIXES)} [--output FILE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model.zip or a run's folder, or the URI of one"
    )
    parser.add_argument("--to", metavar="FORMAT", help="onnx, torch-export or safetensors")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="by default MODEL's name with the format's suffix, in storage where MODEL is there",
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


def _export(model: GivenModel, *, output: Path, to: str) -> int:
    """Raises: StorageError."""
    try:
        from retro_ml.core.artifacts.model_archive import ArchiveError
        from retro_ml.core.artifacts.storage import ArtifactError
        from retro_ml.evaluation.agent import Agent
        from retro_ml.evaluation.export import ExportDiffers, ExportUnavailable, export_agent

        agent = Agent.load(model.path)
        done = export_agent(agent, to=to, output=output)  # type: ignore[arg-type]
    except ArchiveError as error:
        return refuse("export", [model.in_words(error)])
    except ExportUnavailable as error:
        return fail(f"--to {to}: {error}", UNAVAILABLE)
    except (ArtifactError, ExportDiffers) as error:
        return fail(model.in_words(error), 1)
    print_answer(f"exported: {model.keep(done.path)}")
    if done.signature is not None:
        print_answer(f"signature: {done.signature}")
    print_answer(
        f"compared: the same action on {done.num_observations:,} of {done.num_observations:,} "
        f"observations, largest difference {done.largest_difference:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
