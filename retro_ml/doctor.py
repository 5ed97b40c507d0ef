"""`retro-ml doctor`: can this machine, or a Ray cluster, run an experiment?

Exit codes: 0 it can, 2 bad input, 3 it cannot: then each fault is a line with its remedy. Ray and
PyTorch are imported only when the looking really begins.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retro_ml.core.experiments.command import Parser, print_answer, refuse
from retro_ml.core.experiments.command_line import UsageError, parse_command_line
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.options import RunOptions
from retro_ml.run import build_experiment

if TYPE_CHECKING:
    from retro_ml.cluster.node_checks import Check

CANNOT = 3
ANY_GAME = "breakout"

_DESCRIPTION = """\
Look whether this machine, or a Ray cluster, can run an experiment. The experiment is given as to
retro-ml run, all of whose options are accepted; without any it is PPO on Breakout."""

_EPILOG = """\
examples:
  retro-ml doctor
  retro-ml doctor --config run.yaml
  retro-ml doctor --address http://head:8265 --config run.yaml --output-dir /mnt/runs
  retro-ml doctor --address http://head:8265 --ship --output-dir /mnt/runs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Look as `argv` says; the process's exit code."""
    # What the rooms below warn of is among the checks.
    logging.getLogger("retro_ml").addHandler(logging.NullHandler())
    try:
        flags, words = _build_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        config, options = _read_experiment(words)
        checks = _examine(flags, config, options, words)
    except UsageError as error:
        return refuse("doctor", error.faults)
    except KeyboardInterrupt:
        return 130
    if flags.json:
        print_answer(json.dumps({"checks": [check.as_dict() for check in checks]}))
    else:
        _show(checks)
    for check in checks:
        if check.fault is not None:
            print(f"error: {check.name}: {as_line(check.fault)}", file=sys.stderr)
    return CANNOT if any(check.fault for check in checks) else 0


def _build_parser() -> Parser:
    parser = Parser(
        "doctor",
        usage="[--address ADDRESS] [--ship] [--json] [options of retro-ml run]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="a cluster: its dashboard (http://head:8265), or from inside it host:6379 or auto "
        "(otherwise RAY_ADDRESS, or else this machine)",
    )
    parser.add_argument(
        "--ship",
        action="store_true",
        help="as retro-ml submit --ship: look with this retro_ml, shipped to nodes that have its "
        "dependencies but not itself",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object")
    return parser


def _read_experiment(words: Sequence[str]) -> tuple[ExperimentConfig, RunOptions]:
    call = parse_command_line(words)
    if call.is_sweep:
        raise UsageError(["a sweep -> one of its experiments, that which takes the most"])
    if call.config_file is None and "game_id" not in call.fields:
        call.fields["game_id"] = ANY_GAME
    return build_experiment(call)


def _examine(
    flags: argparse.Namespace,
    config: ExperimentConfig,
    options: RunOptions,
    words: Sequence[str],
) -> Sequence[Check]:
    address = flags.address or options.ray_address or os.environ.get("RAY_ADDRESS")
    by_job = address is not None and address.startswith(("http://", "https://"))
    if flags.ship and not by_job:
        raise UsageError(
            ["--ship: unexpected -> with the head's dashboard, as --address http://head:8265"]
        )
    if address is None or address == "local":
        from retro_ml.cluster.machine_checks import check_machine

        return check_machine(config)
    if by_job:
        from retro_ml.cluster.cluster_checks import check_cluster_by_job

        return check_cluster_by_job(address, config, options, words=words, ship=flags.ship)
    from retro_ml.cluster.cluster_checks import check_cluster

    return check_cluster(address, config, options)


def _show(checks: Sequence[Check]) -> None:
    """A line for each check that found nothing wrong."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        if check.fault is None:
            print_answer(f"{check.name:<{width}}  {as_line(check.found)}")


if __name__ == "__main__":
    sys.exit(main())
