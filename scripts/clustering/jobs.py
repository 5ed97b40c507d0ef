"""Jobs of the drill: submitted as a user would, watched by their files, done again undisturbed.

A job is the words behind `retro-ml submit --`, and the experiments that it leaves.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK = "timestamp"
"""Together with the columns that end in _s, what two runs of the same config differ in."""


@dataclass(frozen=True)
class Job:
    """One command for the cluster."""

    words: tuple[str, ...]
    experiments: tuple[str, ...]
    """The folders that it leaves, by their paths in the output folder."""


def run_jobs(output_dir: Path, *, agent_steps: int) -> list[Job]:
    """Three runs, one of each algorithm, on a CPU each."""
    jobs = []
    for algorithm in ("A2C", "PPO", "DQN"):
        name = f"drill-{algorithm.lower()}"
        total = agent_steps // (4 if algorithm == "DQN" else 1)  # it is so much slower
        settings = [
            "resources.num_cpus=1",
            f"checkpointing.every_steps={total // 8}",
            "use_gpu=false",
            *(
                ["dqn.replay_size=10000", "dqn.warmup_agent_steps=500"]
                if algorithm == "DQN"
                else []
            ),
        ]
        words = [
            *("run", "--game-id", "BreakoutNoFrameskip-v4", "--algorithm", algorithm),
            *("--total-timesteps", str(total)),
            *("--seed", "1", "--output-dir", str(output_dir), "--experiment-id", name),
        ]
        words += [word for setting in settings for word in ("--set", setting)]
        jobs.append(Job(tuple(words), (name,)))
    return jobs


class Submitted:
    """A job that `retro-ml submit` follows; `with` ends the following, not the job."""

    def __init__(self, job: Job, *, address: str, environment: dict[str, str], log: Path) -> None:
        self.job = job
        self.log = log
        command = [sys.executable, "-P", "-m", "retro_ml.submit", "--address", address, "--"]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, *job.words], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def __enter__(self) -> Submitted:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """The exit code. Raises TimeoutExpired."""
        return self._process.wait(timeout_s)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's events.log."""
    path = folder / "events.log"
    if not path.exists():
        return []
    return [
        json.loads(line) for line in path.read_text("utf-8").splitlines(True) if line[-1] == "\n"
    ]


def find_trainer(folder: Path) -> int | None:
    """The process id of a run's newest attempt, once it has saved a checkpoint."""
    events = read_events(folder)
    starts = [event["data"]["pid"] for event in events if event["event_type"] == "run_started"]
    saved = any(event["event_type"] == "checkpoint_saved" for event in events)
    return starts[-1] if starts and saved else None


def wait_for_trainers(folders: Sequence[Path], timeout_s: float) -> dict[Path, int]:
    """Until every run trains and has saved a checkpoint: their process ids. Raises SystemExit."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = {folder: find_trainer(folder) for folder in folders}
        if all(found.values()):
            return {folder: pid for folder, pid in found.items() if pid is not None}
        time.sleep(0.5)
    raise SystemExit(f"not all runs began within {timeout_s:g} s: see {folders[0].parent}")


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without what only a clock tells."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if name != CLOCK and not name.endswith("_s")}
        for row in rows
    ]


def run_undisturbed(job: Job, output_dir: Path) -> None:
    """The same command on this machine, without a cluster. Raises CalledProcessError."""
    words = [str(output_dir) if word == _folder_of(job) else word for word in job.words]
    command = [sys.executable, "-P", "-m", f"retro_ml.{words[0]}", *words[1:], "--quiet"]
    subprocess.run(command, check=True)


def _folder_of(job: Job) -> str:
    return job.words[job.words.index("--output-dir") + 1]
