"""One round: a run, killed again and again, taken up by the same command until it is done."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarking.processes import MARKER, ProcessFamily

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.experiments.run_paths import RunPaths

ALGORITHMS = ("PPO", "A2C", "DQN")
KINDS = ("driver", "trainer", "everything", "inside a checkpoint")
MAX_KILLS = 8
"""In one round; what comes after is left to end."""
FIRST_S = 1.0
"""Kills come between so long after an attempt's start and the time that an undisturbed run takes;
one inside a checkpoint waits for the next one then."""
REMAINS_S = 30.0
"""How long what belongs to a killed run may take to disappear."""
SETTINGS = {
    "PPO": ["ppo.schedule_agent_steps=10000000"],
    "A2C": ["a2c.schedule_agent_steps=10000000"],
    "DQN": ["dqn.warmup_agent_steps=500", "dqn.replay_size=10000"],
}
LENGTH = {"PPO": 5_120, "A2C": 7_280, "DQN": 3_072}
EVERY = {"PPO": 1_024, "A2C": 1_040, "DQN": 512}
"""Agent steps of a round and between two checkpoints."""


@dataclass
class Round:
    """What became of one run."""

    algorithm: str
    number: int
    kills: list[dict[str, Any]] = field(default_factory=list)
    """`{"kind", "after_s", "step"}`, the agent steps in metrics.csv at that moment."""
    resumes: int = 0
    """Calls of the same command after the first."""
    exit_codes: list[int] = field(default_factory=list)
    rows: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    """Rows that the undisturbed run has not, or has less often."""
    same_order: bool = True
    weights_equal: bool = True
    wall_s: float = 0.0
    undisturbed_s: float = 0.0
    left_behind: list[str] = field(default_factory=list)
    """Processes and folders of killed drivers that were there half a minute later. Where all
    processes are killed, nobody is left to remove a folder but the next start."""

    def describe(self) -> str:
        """One line."""
        kinds = ", ".join(f"{kill['kind']} at {kill['step']:,}" for kill in self.kills) or "no kill"
        found = (
            f"{self.rows_lost} rows lost, {self.rows_doubled} doubled, "
            f"weights {'equal' if self.weights_equal else 'DIFFERENT'}"
        )
        left = f", left behind: {'; '.join(self.left_behind)}" if self.left_behind else ""
        return f"{kinds}; {self.resumes} resumes; {found}{left} ({self.wall_s:.0f} s)"


def run_undisturbed(algorithm: str, folder: Path) -> float:
    """The run that others are compared with, made once; seconds that it took."""
    name = f"undisturbed-{algorithm.lower()}"
    note = folder / f"{name}.json"
    if not note.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        began_s = time.monotonic()
        subprocess.run(_command(algorithm, name, folder), check=True, cwd=folder)
        note.write_text(json.dumps(time.monotonic() - began_s), encoding="utf-8")
    return float(json.loads(note.read_text(encoding="utf-8")))


def play_round(
    algorithm: str, number: int, *, folder: Path, chance: random.Random, undisturbed_s: float
) -> Round:
    """Runs, kills, goes on, compares."""
    name = f"round-{number}"
    shutil.rmtree(folder / name, ignore_errors=True)
    played = Round(algorithm, number, undisturbed_s=undisturbed_s)
    command = _command(algorithm, name, folder)
    paths = RunPaths(str(folder), name)
    began_s = time.monotonic()
    with (folder / f"{name}.txt").open("wb") as output:
        while True:
            exit_code = _attempt(command, played, paths, chance=chance, output=output)
            played.exit_codes.append(exit_code)
            if exit_code == 0:
                break
            if exit_code != -signal.SIGKILL:
                raise SystemExit(f"{name} ended with exit code {exit_code}: see {output.name}")
            played.resumes += 1
    played.wall_s = round(time.monotonic() - began_s, 1)
    _compare(played, paths, RunPaths(str(folder), f"undisturbed-{algorithm.lower()}"))
    return played


def _command(algorithm: str, name: str, folder: Path) -> list[str]:
    values = [*SETTINGS[algorithm], f"checkpointing.every_steps={EVERY[algorithm]}"]
    values += ["use_gpu=false", "resources.max_failures=100"]
    arguments = ["--game-id", "BreakoutNoFrameskip-v4", "--algorithm", algorithm, "--seed", "1"]
    arguments += ["--total-timesteps", str(LENGTH[algorithm]), "--quiet"]
    arguments += ["--output-dir", str(folder), "--experiment-id", name]
    sets = [part for value in values for part in ("--set", value)]
    return [sys.executable, "-m", "retro_ml.run", *arguments, *sets]


def _attempt(
    command: list[str], played: Round, paths: RunPaths, *, chance: random.Random, output: Any
) -> int:
    """Starts the command and kills it, if it is still there at the time drawn."""
    marker = uuid.uuid4().hex
    family = ProcessFamily(marker)
    process = subprocess.Popen(
        command,
        env={**os.environ, MARKER: marker},
        cwd=paths.experiment_dir.parent,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    began_s = time.monotonic()
    while len(played.kills) < MAX_KILLS:
        kind, after_s = chance.choice(KINDS), chance.uniform(FIRST_S, played.undisturbed_s)
        if not _wait(process, paths, kind=kind, until_s=began_s + after_s):
            break
        step = _last_step(paths)
        if _kill(process, family, paths, kind=kind):
            since_s = round(time.monotonic() - began_s, 2)
            played.kills.append({"kind": kind, "after_s": since_s, "step": step})
        if process.poll() is not None:
            break
        began_s = time.monotonic()  # the trainer alone was killed: the run goes on by itself
    process.wait()
    if process.returncode != 0 and played.kills[-1]["kind"] == "driver":
        played.left_behind += _find_remains(family, process.pid)
    return process.returncode


def _wait(process: subprocess.Popen[bytes], paths: RunPaths, *, kind: str, until_s: float) -> bool:
    """Until the moment of the kill; False if the process has ended before."""
    while time.monotonic() < until_s:
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    while kind == "inside a checkpoint" and not list(paths.checkpoints_dir.glob(".step-*")):
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return process.poll() is None


def _kill(
    process: subprocess.Popen[bytes], family: ProcessFamily, paths: RunPaths, *, kind: str
) -> bool:
    """SIGKILL; False where there is no trainer to be killed yet."""
    if kind == "driver":
        process.kill()
        process.wait()
        return True
    if kind == "trainer":
        return any(_kill_one(pid) for pid in _find_trainers(family))
    for pid in family.find():
        _kill_one(pid)
    process.wait()
    return True


def _find_trainers(family: ProcessFamily) -> Iterator[int]:
    for pid in family.find():
        with suppress(OSError):
            if b"TrialActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield pid


def _kill_one(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _find_remains(family: ProcessFamily, driver: int) -> list[str]:
    end_s = time.monotonic() + REMAINS_S
    while True:
        remains = [f"process {pid}" for pid in family.find()]
        remains += [str(path) for path in Path("/tmp").glob(f"retro_ml-{driver}-*")]
        if not remains or time.monotonic() > end_s:
            return remains
        time.sleep(0.2)


def _last_step(paths: RunPaths) -> int:
    if not paths.metrics_csv_path.exists():
        return 0
    return max((row["step"] for row in read_rows(paths.metrics_csv_path)), default=0)


def _compare(played: Round, paths: RunPaths, undisturbed: RunPaths) -> None:
    ours, theirs = _rows(paths), _rows(undisturbed)
    played.rows = len(theirs)
    played.rows_lost = (Counter(theirs) - Counter(ours)).total()
    played.rows_doubled = (Counter(ours) - Counter(theirs)).total()
    played.same_order = ours == theirs
    whole = json.loads(paths.metrics_json_path.read_text(encoding="utf-8"))["metrics"]
    played.rows_lost += len(ours) - len(whole)
    played.weights_equal = _read_state(paths) == _read_state(undisturbed)


def _rows(paths: RunPaths) -> list[str]:
    """Without the clock's columns."""
    rows = []
    for row in read_rows(paths.metrics_csv_path):
        kept = {k: v for k, v in row.items() if k != "timestamp" and not k.endswith("_s")}
        rows.append(json.dumps(kept))
    return rows


def _read_state(paths: RunPaths) -> dict[str, bytes]:
    """Weights, optimizer and generators at the end."""
    folder = max(
        paths.checkpoints_dir.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-"))
    )
    names = ("module.safetensors", "learner.safetensors", "learner.json")
    return {name: (folder / name).read_bytes() for name in names}
