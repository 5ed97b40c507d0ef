"""`retro-ml submit`: run a command of retro-ml on a Ray cluster, from where its head is reached.

Exit codes: the command's own (0 done, 1 training failed, 2 bad input, 3 the machine or cluster
cannot do it, 143 stopped with a checkpoint), 130 where Ctrl-C left the job running.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retro_ml.core.experiments.command import BAD_INPUT, Parser, refuse
from retro_ml.core.experiments.command_line import UsageError, parse_command_line
from retro_ml.core.experiments.faults import as_line, nearest_names
from retro_ml.run import build_experiment, build_sweep_call

if TYPE_CHECKING:
    from retro_ml.cluster.jobs import Jobs

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
WORDS = ("run", "sweep")
DECIDE_S = 5.0
"""How long after Ctrl-C a second one stops the job instead of leaving it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
STILL_THERE = {"PENDING", "RUNNING"}

_DESCRIPTION = """\
Run a command of retro-ml on a Ray cluster: submit it as a job, follow what it prints, end with its
exit code. The same command again finds the job that is there, or goes on from its checkpoint where
that job ended before its work did."""

_EPILOG = """\
Ctrl-C leaves the job running; a second one within 5 s stops it with a checkpoint.

examples:
  retro-ml submit --address http://head:8265 -- run --game-id pong --output-dir /mnt/runs
  retro-ml submit --no-wait -- run --config run.yaml --experiment-id mine
  retro-ml submit --job-id mine           follow it again
  retro-ml submit --job-id mine --stop    stop it with a checkpoint
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, follow or stop one job as `argv` says; the process's exit code."""
    try:
        flags, words = _read_call(sys.argv[1:] if argv is None else argv)
        job_id, words = _prepare(flags, words)
    except UsageError as error:
        return refuse("submit", error.faults)
    try:
        from retro_ml.cluster.jobs import Jobs, LaunchError
    except KeyboardInterrupt:
        return 130
    try:
        jobs = Jobs(flags.address, allow_open=flags.allow_open_cluster)
        if not words:
            if jobs.find(job_id) is None:
                _say(f"error: --job-id: {as_line(job_id)} -> no job of this name on the cluster")
                return BAD_INPUT
            return _attend(jobs, job_id, flags)
        job_id = _submit(jobs, job_id, words, ship=flags.ship)
        return _attend(jobs, job_id, flags)
    except LaunchError as error:
        _say(f"error: {as_line(str(error))}")
        return LaunchError.exit_code
    except KeyboardInterrupt:
        return 130


def _read_call(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own flags, and the words behind `--`. Raises: UsageError with all faults."""
    own, words = _split(list(argv))
    parser = _build_parser()
    flags, unknown = parser.parse_known_args(own)
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    faults = [
        f"{word}: unknown -> {nearest_names(word, known)}"
        if word.startswith("-")
        else f"{word}: unexpected -> what the job is to run stands behind --"
        for word in unknown
    ]
    if flags.address is None:
        flags.address = os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not words and flags.job_id is None:
        faults.append("--: missing -> the command to run behind it, e.g. -- run --game-id pong")
    if words and flags.stop:
        faults.append("--stop: unexpected -> give --job-id, and no command")
    if words and words[0] not in WORDS:
        faults.append(f"{words[0]}: no job -> one of {', '.join(WORDS)}")
    if faults:
        raise UsageError(faults)
    return flags, words


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _build_parser() -> Parser:
    parser = Parser(
        "submit",
        usage="[options] -- run|sweep ...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help=f"the head's dashboard (otherwise RAY_API_SERVER_ADDRESS, or else {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--job-id",
        metavar="NAME",
        help="the job's name (by default the experiment's or the sweep's); without a command: the "
        "job to follow",
    )
    parser.add_argument("--no-wait", action="store_true", help="submit it and leave")
    parser.add_argument(
        "--stop", action="store_true", help="with --job-id: stop it with a checkpoint, then leave"
    )
    parser.add_argument(
        "--ship",
        action="store_true",
        help="ship this retro_ml too, to nodes that have its dependencies but not itself",
    )
    parser.add_argument(
        "--allow-open-cluster",
        action="store_true",
        help="use a Ray cluster without token authentication, where whoever reaches it runs code "
        "(CVE-2023-48022)",
    )
    return parser


def _prepare(flags: argparse.Namespace, words: list[str]) -> tuple[str, list[str]]:
    """The job's name and its words.

    Raises: UsageError with all faults that can be seen from here.
    """
    if flags.job_id is not None and not _NAME.fullmatch(flags.job_id):
        raise UsageError(
            [f"--job-id: {flags.job_id} -> up to 100 letters, digits, and . _ - behind the first"]
        )
    if not words:
        return flags.job_id, []
    if any(word.split("=")[0].replace("_", "-") == "--ray-address" for word in words):
        raise UsageError(["--ray-address: unexpected -> the job runs on the cluster at --address"])
    name, output_dir, words = _read_job(words)
    if "://" not in output_dir and not os.path.isabs(output_dir):
        raise UsageError(
            [
                f"output_dir: {output_dir} -> the whole name of a folder that all nodes share, or "
                "s3://...: a job's own folder is gone after it (--output-dir)"
            ]
        )
    if flags.allow_open_cluster:
        words = [*words, "--allow-open-cluster"]
    return flags.job_id or name, words


def _read_job(words: list[str]) -> tuple[str, str, list[str]]:
    """Name and output folder of what the words describe, and the words with that name.

    Raises: UsageError with all of its faults.
    """
    from retro_ml.sweep import read_sweep

    if words[0] == "sweep":
        sweep = read_sweep(words[1:])
        # Its file has another name there, after which it would be named.
        return sweep.sweep_id, sweep.output_dir, _with_name(words, "--name", sweep.sweep_id)
    call = parse_command_line(words[1:])
    if call.is_sweep:
        sweep, _ = build_sweep_call(call)
        name, output_dir = sweep.sweep_id, sweep.output_dir
    else:
        config, _ = build_experiment(call)
        name, output_dir = config.experiment_id, config.output_dir
    return name, output_dir, _with_name(words, "--experiment-id", name)


def _with_name(words: list[str], flag: str, name: str) -> list[str]:
    if any(word.split("=")[0].replace("_", "-") == flag for word in words):
        return words
    return [*words, flag, name]


def _submit(jobs: Jobs, name: str, words: list[str], *, ship: bool) -> str:
    """Starts the job, or finds it; its name. Raises LaunchError."""
    from retro_ml.cluster.job_package import build_entrypoint, pack, take_files

    words, files = take_files(words)
    entrypoint = build_entrypoint(words, ship=ship)
    job_id, newest = _look_up(jobs, name, entrypoint)
    if newest is not None:
        known_id, status = newest
        succeeded = status == "SUCCEEDED"
        if status in STILL_THERE or (succeeded and not jobs.has_work_left(known_id)):
            _say(f"job {known_id} is there already: {status.lower()}")
            return known_id
        how = "with work left" if succeeded else status.lower()
        _say(f"job {known_id} has ended ({how}); {job_id} goes on")
    with tempfile.TemporaryDirectory(prefix="retro_ml-job-") as folder:
        runtime_env = pack(Path(folder), files, ship=ship)
        jobs.start(job_id, entrypoint=entrypoint, runtime_env=runtime_env)
    _say(f"job {job_id} submitted to {jobs.address}")
    return job_id


def _look_up(jobs: Jobs, name: str, entrypoint: str) -> tuple[str, tuple[str, str] | None]:
    """A name that is free, and the newest job with these words: its name and status.

    A name is used once: what goes on with the job `x` is `x-2`, `x-3` and so on.

    Raises:
        LaunchError: one with other words is running.
    """
    from retro_ml.cluster.jobs import LaunchError

    job_id, number = name, 1
    newest = None
    while (found := jobs.find(job_id)) is not None:
        if found.entrypoint == entrypoint:
            newest = job_id, str(found.status.value)
        elif found.status in STILL_THERE:
            raise LaunchError(
                f"job {job_id} is running with other words: {found.entrypoint} -> wait for it, "
                f"stop it (retro-ml submit --job-id {job_id} --stop), or choose another --job-id"
            )
        number += 1
        job_id = f"{name}-{number}"
    return job_id, newest


def _attend(jobs: Jobs, job_id: str, flags: argparse.Namespace) -> int:
    """Follows the job, or does what else was asked for; the exit code. Raises LaunchError."""
    again = f"retro-ml submit --address {jobs.address} --job-id {job_id}"
    if flags.stop:
        jobs.stop(job_id)
        _say(f"job {job_id} saves a checkpoint and ends; {again} follows it")
        return 0
    if flags.no_wait:
        _say(f"follow it: {again}")
        return 0
    stopping = False
    while True:
        try:
            outcome = jobs.follow(job_id, _show, notice=_say)
        except KeyboardInterrupt:
            if stopping or not _wants_stop(job_id):
                _say(f"the job goes on; follow it: {again}; stop it: {again} --stop")
                return 130
            stopping = True
            jobs.stop(job_id)
            _say("stopping: the job saves a checkpoint first; Ctrl-C leaves it to itself")
            continue
        if outcome.error is not None:
            _say(f"error: {as_line(outcome.error)}")
        return outcome.exit_code


def _wants_stop(job_id: str) -> bool:
    _say(f"Ctrl-C once more within {DECIDE_S:g} s stops job {job_id}; otherwise it goes on alone")
    try:
        time.sleep(DECIDE_S)
    except KeyboardInterrupt:
        return True
    return False


def _show(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # a reader that has seen enough (`| head`): the job goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
