"""The drill's sweep: submitted as a user would, watched by its files, run again undisturbed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clustering.nodes import LocalNodes, NamespaceNodes

Nodes = NamespaceNodes | LocalNodes
CLOCK = "timestamp"
"""Together with the columns that end in _s, what two runs of the same config differ in."""
POLL_S = 0.5


def write_spec(path: Path, *, agent_steps: int) -> None:
    """A sweep of each algorithm with two seeds; a trial takes a CPU, and is saved three times."""
    spec = {
        "base": {
            "game_id": "breakout",
            "total_timesteps": agent_steps,
            "use_gpu": False,
            "resources": {"num_cpus": 1},
            "checkpointing": {"every_steps": agent_steps // 3},
            "dqn": {"replay_size": 10_000, "warmup_agent_steps": 500},
        },
        "grid": {"algorithm": ["A2C", "PPO", "DQN"], "seed": [1, 2]},
    }
    path.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")


class Submitted:
    """A sweep's job that `retro-ml submit` follows; `with` ends the following, not the job."""

    def __init__(
        self, spec: Path, output_dir: Path, *, address: str, environment: dict[str, str], log: Path
    ) -> None:
        command = [sys.executable, "-P", "-m", "retro_ml.submit", "--address", address, "--"]
        words = ["sweep", str(spec), "--output-dir", str(output_dir)]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, *words], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def __enter__(self) -> Submitted:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def exit_code(self) -> int | None:
        """None while the job runs."""
        return self._process.poll()


class Trials:
    """The trials in a sweep's folder: where each attempt of theirs ran, and how far it came."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self._folder = folder
        self._nodes = nodes
        self._homes: dict[tuple[str, int], str] = {}

    @property
    def names(self) -> list[str]:
        """Of the trials that have begun."""
        return sorted(path.parent.name for path in self._folder.glob("*/events.log"))

    def look(self) -> None:
        """Notes on which nodes the attempts are that are alive."""
        for name in self.names:
            for number, event in enumerate(read_events(self._folder / name, "run_started")):
                if (name, number) not in self._homes:
                    home = self._nodes.find_node(event["pid"])
                    if home is not None:
                        self._homes[name, number] = home

    def homes_of(self, name: str) -> list[str]:
        """The nodes of a trial's attempts, as far as they were seen."""
        return [home for (one, _), home in sorted(self._homes.items()) if one == name]

    def wait_for_saved(self, count: int, *, job: Submitted, timeout_s: float) -> dict[str, str]:
        """Until so many trials train on workers and have saved a checkpoint: where each one is.

        Raises SystemExit where that does not come about.
        """
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s and job.exit_code is None:
            self.look()
            at_work = {name: home for name in self.names if (home := self._find_saved(name))}
            if len(at_work) >= count:
                return at_work
            time.sleep(POLL_S)
        raise SystemExit(f"{count} trials were never at work at once: see {self._folder}")

    def wait_for_end(self, job: Submitted, *, timeout_s: float) -> int:
        """The job's exit code. Raises SystemExit."""
        deadline_s = time.monotonic() + timeout_s
        while (code := job.exit_code) is None:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the job did not end within {timeout_s:g} s: see {self._folder}")
            self.look()
            time.sleep(POLL_S)
        return code

    def _find_saved(self, name: str) -> str | None:
        """The node where a trial trains that has saved a checkpoint."""
        folder = self._folder / name
        starts = read_events(folder, "run_started")
        if not starts or not read_events(folder, "checkpoint_saved"):
            return None
        return self._nodes.find_node(starts[-1]["pid"])


def choose_victim(at_work: Mapping[str, str]) -> str:
    """The worker with the most trials."""
    return Counter(at_work.values()).most_common(1)[0][0]


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The data of a run's events of a kind, as far as their lines are whole."""
    path = folder / "events.log"
    lines = path.read_text("utf-8").splitlines(True) if path.exists() else []
    events = [json.loads(line) for line in lines if line[-1] == "\n"]
    return [event["data"] for event in events if event["event_type"] == kind]


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without what only a clock tells."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if name != CLOCK and not name.endswith("_s")}
        for row in rows
    ]


def read_scores(folder: Path) -> list[tuple[str, str, float]]:
    """A sweep's leaderboard: trial, state, score, the best first."""
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    return [(one["experiment_id"], one["state"], one["score"]) for one in board["trials"]]


def run_undisturbed(spec: Path, output_dir: Path) -> None:
    """The same sweep on this machine, without a cluster. Raises CalledProcessError."""
    words: Sequence[str] = [str(spec), "--output-dir", str(output_dir), "--quiet"]
    subprocess.run([sys.executable, "-P", "-m", "retro_ml.sweep", *words], check=True)
