"""Starts runs, stops them in time, and takes their results.

A run is a process of its own in runs/learning/NAME/. One program at a time trains: it holds a lock,
which its child holds as well, so that a run whose parent was killed is still known to be under way.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from benchmarking.machine import describe_machine
from benchmarking.results import save_text
from benchmarking.watch import NOT_HANDED_ON

from learning.matrix import Run, build_config
from learning.records import build_facts, describe_commit, save_record
from learning.run_folders import SB3_MODEL, Finished, read_finished

EPISODES = 100
"""Games of an evaluation."""
POLL_INTERVAL_S = 0.5
STOP_GRACE_S = 300.0
"""What a run may take to end when asked: an iteration, a checkpoint, bringing games back."""
STOPPED = 143
"""Exit code of retro_ml when it was asked to stop."""
EVALUATION_FACTS = ("model_sha256", "protocol", "seed", "mean", "standard_error", "capped")
_LOCK, _CALLS = ".lock", ".calls"


class Failed(Exception):
    """A run or an evaluation failed; the message says where its output is."""


class Busy(Exception):
    """Another one is at work; the message names its run."""


class Deadline(Exception):
    """Time is up: what was under way has been stopped, and will go on the next time."""


@contextmanager
def hold_lock(folder: Path) -> Iterator[BinaryIO]:
    """The only one that trains. Raises Busy."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            at_work = find_running(folder) or "another call"
            raise Busy(f"{at_work} is under way -> one at a time") from None
        try:
            yield file
        finally:
            file.truncate(0)


def find_running(folder: Path) -> str | None:
    """The run that is under way, if any."""
    try:
        with open(folder / _LOCK, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().decode() or None
    except FileNotFoundError:
        pass
    return None


def train(run: Run, *, runs: Path, data: Path, root: Path, lock: BinaryIO, end_s: float) -> None:
    """Trains a run to its end, evaluates it and keeps its record.

    Args:
        run: which.
        runs: the folder of all runs.
        data: where records are kept.
        root: the checkout.
        lock: from `hold_lock`.
        end_s: monotonic time at which to stop.

    Raises:
        Failed: with where its output is.
        Deadline: it was stopped.
    """
    lock.truncate(0)
    lock.write(run.name.encode())
    lock.flush()
    folder = runs / run.name
    finished = read_finished(run, folder)
    if finished is None:
        _note_call(runs, run, root)
        command = build_command(run, runs)
        _run(command, name=run.name, runs=runs, lock=lock, end_s=end_s)
        finished = read_finished(run, folder)
    if finished is None:
        raise Failed(f"{run.name} ended and is not complete: see {_output(runs, run.name)}")
    evaluation = evaluate(run, folder / SB3_MODEL, runs=runs, lock=lock, end_s=end_s)
    facts = build_record_facts(run, finished, evaluation, origin="trained")
    facts["commit"] = ", ".join(_read_calls(runs, run)) or None
    facts["machine"] = describe_machine()
    save_record(facts, finished.games, data)


def build_command(run: Run, runs: Path) -> list[str]:
    """What trains the run, or goes on with it; its config is written into a file."""
    folder = runs / run.name
    if run.entry.side == "sb3":
        # What was begun cannot be gone on with.
        shutil.rmtree(folder, ignore_errors=True)
        arguments = {
            "--folder": folder,
            "--game": run.entry.game,
            "--agent-steps": run.entry.agent_steps,
            "--schedule-agent-steps": run.entry.schedule_agent_steps,
            "--seed": run.seed,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        return [sys.executable, "-P", "-m", "learning.sb3_run", *words]
    path = runs / "configs" / f"{run.name}.json"
    save_text(build_config(run, output_dir=runs).model_dump_json(indent=1) + "\n", path)
    return [sys.executable, "-P", "-m", "retro_ml.run", "--config", str(path)]


def evaluate(
    run: Run, model: Path, *, runs: Path, lock: BinaryIO | None, end_s: float
) -> dict[str, Any]:
    """100 games of a model.zip, by the protocol that its game's id means.

    Raises Failed, or Deadline.
    """
    arguments = ["--episodes", str(EPISODES)]
    if run.entry.side == "sb3":
        module = ["-m", "learning.sb3_evaluate", "--model", str(model), "--run", run.name]
    else:
        module = ["-m", "retro_ml.evaluate", str(model), "--quiet", "--json"]
    name = f"{run.name}-evaluation"
    command = [sys.executable, "-P", *module, *arguments]
    _run(command, name=name, runs=runs, lock=lock, end_s=end_s)
    lines = _output(runs, name).read_text(encoding="utf-8").splitlines()
    answer = next(line for line in reversed(lines) if line.startswith("{"))
    return keep_evaluation(json.loads(answer))


def keep_evaluation(answer: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of an evaluation: no paths, every score."""
    kept = {name: answer[name] for name in EVALUATION_FACTS}
    mean = {name: answer["mean"][name] for name in ("value", "interval")}
    return {**kept, "mean": mean, "scores": [episode["score"] for episode in answer["episodes"]]}


def build_record_facts(
    run: Run, finished: Finished, evaluation: dict[str, Any], *, origin: str
) -> dict[str, Any]:
    """The JSON of a run that has its folder."""
    return build_facts(
        run,
        finished.games,
        origin=origin,
        agent_steps=finished.agent_steps,
        wall_clock_s=finished.wall_clock_s,
        config=finished.config,
        precision=finished.precision,
        versions=finished.versions,
        evaluation=evaluation,
    )


def _run(
    command: Sequence[str], *, name: str, runs: Path, lock: BinaryIO | None, end_s: float
) -> None:
    """Until the command has ended. Raises Failed, or Deadline when it had to be stopped."""
    path = _output(runs, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as output:
        process = subprocess.Popen(
            command,
            env={k: v for k, v in os.environ.items() if k not in NOT_HANDED_ON},
            cwd=runs,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock.fileno(),),
            # Ctrl-C is for this program, which stops the other in its own way.
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if time.monotonic() > end_s:
                    raise Deadline
                time.sleep(POLL_INTERVAL_S)
        finally:
            _stop(process)
    if process.returncode == STOPPED:
        raise Deadline
    if process.returncode != 0:
        raise Failed(f"{name} ended with exit code {process.returncode}: see {path}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _output(runs: Path, name: str) -> Path:
    return runs / "output" / f"{name}.txt"


def _note_call(runs: Path, run: Run, root: Path) -> None:
    """The commits that a run was trained with: it may be gone on with by another one."""
    commit = describe_commit(root)
    known = _read_calls(runs, run)
    if run.entry.side == "sb3":
        known = []
    if commit is not None and commit not in known:
        text = "".join(f"{line}\n" for line in [*known, commit])
        save_text(text, runs / "configs" / f"{run.name}{_CALLS}")


def _read_calls(runs: Path, run: Run) -> list[str]:
    path = runs / "configs" / f"{run.name}{_CALLS}"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
