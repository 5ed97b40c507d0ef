"""`python -m retro_ml.sweep`, `retro-ml sweep`: a spec -> SweepConfig -> run_sweep.

Exit codes: 0 done, 1 a trial failed, 2 bad input, 3 the machine or cluster cannot do it, 130 and
143 stopped by a signal. Ray and torch are imported only when training really begins.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retro_ml.core.experiments.command import Parser, fail, print_answer, refuse
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import describe_faults, nearest_names
from retro_ml.core.experiments.layers import (
    LayerError,
    load_config_file,
    merge_layers,
    parse_override,
)
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.suites import SUITES, suite_path
from retro_ml.core.experiments.sweep_config import SweepConfig, sweep_faults

if TYPE_CHECKING:
    from retro_ml.core.engine.sweep_result import SweepResult

_DESCRIPTION = """\
Train every combination of a spec's games, algorithms, seeds and hyperparameters, several at once,
and say who won. Everything is kept in one folder, <output-dir>/<name>, a folder in it for each
trial. The same command goes on with what is left of a sweep that was interrupted."""

_EPILOG = f"""\
SPEC is a YAML or JSON file, or one of the suites that come with retro_ml: {", ".join(SUITES)}.

examples:
  retro-ml sweep my-sweep.yaml
  retro-ml sweep my-sweep.yaml --set max_concurrent=4 --set base.total_timesteps=1_000_000
  retro-ml sweep atari-5 --dry-run
"""
_TEXTS = ("restart_behavior", "ray_address", "track")
_SWITCHES = ("allow_open_cluster", "wait_for_nodes")
"""Options of a call that a sweep takes as a run does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sweep as `argv` says; the process's exit code."""
    try:
        flags, config, options = _read(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        return refuse("sweep", error.faults)
    return run_call(
        config,
        options,
        print_config=flags.print_config,
        dry_run=flags.dry_run,
        as_json=flags.json,
    )


def read_sweep(argv: Sequence[str]) -> SweepConfig:
    """The sweep that a command line describes. Raises: UsageError with all faults."""
    return _read(argv)[1]


def build_sweep(fields: dict[str, Any]) -> SweepConfig:
    """The sweep of these fields. Raises: UsageError with all faults."""
    try:
        return SweepConfig.model_validate(fields)
    except ValidationError as error:
        raise UsageError(sweep_faults(error)) from None


def run_call(
    config: SweepConfig, options: RunOptions, *, print_config: bool, dry_run: bool, as_json: bool
) -> int:
    """Does what a call asks for; the process's exit code."""
    if print_config:
        print_answer(config.model_dump_json(indent=2))
        return 0
    if dry_run:
        print_answer("\n".join(_plan_lines(config)))
        return 0
    try:
        from retro_ml.api import run_sweep
        from retro_ml.cluster.job_entry import note_work_left
        from retro_ml.core.engine.progress_text import delivery_words
        from retro_ml.core.engine.run_faults import BadRunFolder, BadStorage
    except KeyboardInterrupt:
        return 130
    try:
        result = run_sweep(config, options=options)
    except KeyboardInterrupt:  # while waiting for a lock or for storage, before the start
        return 130
    except BadStorage as error:
        return fail(str(error), error.exit_code)
    except BadRunFolder as error:
        return refuse("sweep", [str(error)])
    if _goes_on(result, config, options):
        note_work_left()
    if as_json:
        print_answer(json.dumps(result.as_dict()))
    if options.progress == "quiet" and result.error is not None:  # otherwise it was shown
        print(f"error: {result.error}", file=sys.stderr)
    if options.progress == "quiet":
        for one in result.failed:
            print(f"error: {one.experiment_id}: {one.error}", file=sys.stderr)
        if result.storage is not None and not result.storage.complete:
            print(f"error: storage: {delivery_words(result.storage)}", file=sys.stderr)
    return result.exit_code


def _goes_on(result: SweepResult, config: SweepConfig, options: RunOptions) -> bool:
    """Whether the hours were over first, so that the same command has something to go on with.

    A budget of agent steps is spent for good: only another command goes on, with a larger one.
    """
    if result.exit_code != 0 or options.restart_behavior != "resume":
        return False
    budget = config.max_agent_steps
    spent = budget is not None and sum(one.agent_steps for one in result.standings) >= budget
    return result.state == "interrupted" and not spent


def _read(argv: Sequence[str]) -> tuple[argparse.Namespace, SweepConfig, RunOptions]:
    flags, options = _read_call(argv)
    return flags, _read_spec(flags), options


def _build_parser() -> Parser:
    parser = Parser(
        "sweep",
        usage="SPEC [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("spec", metavar="SPEC", nargs="?", help="a spec's file, or a suite's name")
    parser.add_argument("--name", help="the sweep's name and folder (default: the file's name)")
    parser.add_argument("--output-dir", metavar="DIR", help="the folder that its own is made in")
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="set a field of the spec, e.g. base.total_timesteps=10_000; may be repeated",
    )
    for name in _TEXTS:
        field = RunOptions.model_fields[name]
        default = f" (default: {field.default})" if field.default else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="TEXT",
            help=f"{field.description}{default}".replace("experiment exists", "sweep exists"),
        )
    for name in _SWITCHES:
        field = RunOptions.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action="store_true", default=None, help=field.description)
    parser.add_argument(
        "--print-config", action="store_true", help="print the complete spec as JSON and stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the trials and what they would take, and stop"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on stdout"
    )
    return parser


def _read_call(argv: Sequence[str]) -> tuple[argparse.Namespace, RunOptions]:
    parser = _build_parser()
    flags, unknown = parser.parse_known_args(argv)
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    faults = []
    for word in unknown:
        flag = word.partition("=")[0]
        if word.startswith("-"):
            faults.append(f"{flag}: unknown -> {nearest_names(flag, known)}")
        else:
            faults.append(f"{word}: unexpected -> one spec at a time, all else are options")
    if flags.spec is None:
        faults.append(f"SPEC: missing -> a YAML or JSON file, or one of {', '.join(SUITES)}")
    given = {
        name: getattr(flags, name)
        for name in (*_TEXTS, *_SWITCHES)
        if getattr(flags, name) is not None
    }
    if flags.quiet:
        given["progress"] = "quiet"
    options = RunOptions()
    try:
        options = RunOptions.model_validate(given)
    except ValidationError as error:
        faults += describe_faults(error, RunOptions)
    if faults:
        raise UsageError(faults)
    return flags, options


def _read_spec(flags: argparse.Namespace) -> SweepConfig:
    """The spec's fields, with those of the command line over them."""
    path = flags.spec
    if path in SUITES and not os.path.lexists(path):
        path = str(suite_path(path))
    try:
        fields = load_config_file(path)
        for override in flags.set:
            fields = _override(fields, parse_override(override))
    except LayerError as error:
        faults = [str(error)]
        if not os.path.lexists(flags.spec) and not Path(flags.spec).suffix:
            faults.append(f"SPEC: {flags.spec} -> {nearest_names(flags.spec, list(SUITES))}")
        raise UsageError(faults) from None
    for name in ("name", "output_dir"):
        if getattr(flags, name) is not None:
            fields[name] = getattr(flags, name)
    fields.setdefault("name", Path(path).stem)
    return build_sweep(fields)


def _override(fields: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """A field of the spec set; what is swept has its path as one key, e.g. grid.ppo.clip."""
    for section in ("grid", "distributions"):
        value: Any = override.get(section)
        path: list[str] = []
        while isinstance(value, dict) and len(value) == 1 and (section == "grid" or len(path) < 2):
            name, value = next(iter(value.items()))
            path.append(name)
        if path:
            below = fields.get(section)
            swept = dict(below) if isinstance(below, dict) else {}
            return fields | {section: swept | {".".join(path): value}}
    return merge_layers(fields, override)


def _plan_lines(config: SweepConfig) -> list[str]:
    from retro_ml.cluster.sweep_plan import sweep_plan_lines

    return sweep_plan_lines(config)


if __name__ == "__main__":
    sys.exit(main())
