"""`python -m retro_ml.run`, `retro-ml run`: arguments -> ExperimentConfig -> run_experiment.

Several games, algorithms or seeds are a sweep's: `retro_ml.sweep`.

Exit codes: 0 done, 1 training failed, 2 bad input, 3 the machine or cluster cannot do it, 130 and
143 stopped by a signal. Ray and torch are imported only when training really begins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retro_ml.core.experiments.command import fail, print_answer, refuse
from retro_ml.core.experiments.command_line import CommandLine, UsageError, parse_command_line
from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.core.experiments.layers import (
    LayerError,
    load_config_file,
    merge_layers,
    parse_override,
)
from retro_ml.core.experiments.options import RunOptions

if TYPE_CHECKING:
    from retro_ml.core.engine.result import ExperimentResult
    from retro_ml.core.experiments.sweep_config import SweepConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run one experiment as `argv` says; the process's exit code."""
    try:
        call = parse_command_line(sys.argv[1:] if argv is None else argv)
        if call.is_sweep:
            return _run_sweep(call)
        config, options = build_experiment(call)
    except UsageError as error:
        return refuse("run", error.faults)
    if call.print_config:
        print_answer(json.dumps(config.model_dump(mode="json"), indent=2))
        return 0
    if call.dry_run:
        return _plan(config)
    return _run(config, options=options, as_json=call.as_json)


def build_experiment(call: CommandLine) -> tuple[ExperimentConfig, RunOptions]:
    """The validated config and options of a call. Raises: UsageError with all faults."""
    fields, unreadable = _merge_fields(call)
    faults = list(unreadable)
    config = options = None
    try:
        options = RunOptions.model_validate(call.options)
    except ValidationError as error:
        faults += describe_faults(error, RunOptions)
    try:
        config = ExperimentConfig.model_validate(fields)
    except ValidationError as error:
        lines = config_faults(error)
        if unreadable:  # what is missing may stand there
            lines = [line for line in lines if ": missing ->" not in line]
        faults += lines
    if config is None or options is None or faults:
        raise UsageError(faults)
    return config, options


def build_sweep_call(call: CommandLine) -> tuple[SweepConfig, RunOptions]:
    """The sweep that a call of several games, algorithms or seeds is. Raises: UsageError."""
    from retro_ml.core.experiments.command_line_sweep import sweep_fields
    from retro_ml.sweep import build_sweep

    fields, faults = _merge_fields(call)
    spec, more = sweep_fields(call, fields)
    faults += more
    options = RunOptions()
    try:
        options = RunOptions.model_validate(call.options)
    except ValidationError as error:
        faults += describe_faults(error, RunOptions)
    if faults:
        raise UsageError(faults)
    return build_sweep(spec), options


def _run_sweep(call: CommandLine) -> int:
    from retro_ml.sweep import run_call

    config, options = build_sweep_call(call)
    return run_call(
        config,
        options,
        print_config=call.print_config,
        dry_run=call.dry_run,
        as_json=call.as_json,
    )


def _merge_fields(call: CommandLine) -> tuple[dict[str, Any], list[str]]:
    """File, overrides and flags as one mapping, and what could not be read of them."""
    fields: dict[str, Any] = {}
    unreadable: list[str] = []
    try:
        if call.config_file is not None:
            fields = load_config_file(call.config_file)
    except LayerError as error:
        unreadable.append(f"--config {error}")
    for override in call.overrides:
        try:
            fields = merge_layers(fields, parse_override(override))
        except LayerError as error:
            unreadable.append(str(error))
    return merge_layers(fields, call.fields), unreadable


def _plan(config: ExperimentConfig) -> int:
    from retro_ml.cluster.plan import plan_lines, plan_run

    print_answer("\n".join(plan_lines(config, plan_run(config))))
    return 0


def _run(config: ExperimentConfig, *, options: RunOptions, as_json: bool) -> int:
    try:
        from retro_ml.api import run_experiment
        from retro_ml.cluster.job_entry import note_work_left
        from retro_ml.core.engine.progress_text import delivery_words
        from retro_ml.core.engine.run_faults import BadMachine, BadRunFolder, BadStorage
    except KeyboardInterrupt:
        return 130
    try:
        result = run_experiment(config, options=options)
    except KeyboardInterrupt:  # while waiting for a lock or for storage, before the start
        return 130
    except (BadMachine, BadStorage) as error:
        return fail(str(error), error.exit_code)
    except BadRunFolder as error:
        return refuse("run", [str(error)])
    if _goes_on(result, config, options):
        note_work_left()
    if as_json:
        print_answer(json.dumps(result.as_dict()))
    if options.progress == "quiet" and result.error is not None:  # otherwise it was shown
        print(f"error: {result.error}", file=sys.stderr)
    if options.progress == "quiet" and result.storage is not None and not result.storage.complete:
        print(f"error: storage: {delivery_words(result.storage)}", file=sys.stderr)
    return result.exit_code


def _goes_on(result: ExperimentResult, config: ExperimentConfig, options: RunOptions) -> bool:
    """Whether the hours were over first, so that the same command has something to go on with."""
    from retro_ml.core.engine.resume_point import is_finished

    if result.exit_code != 0 or options.restart_behavior != "resume":
        return False
    reached = {"state": result.state, "step": result.agent_steps, "reward": result.final_reward}
    return not is_finished(reached, config, options)


if __name__ == "__main__":
    sys.exit(main())
