"""The main job as a user runs it: a process of its own, its screen, its files, its exit code."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import numpy as np
import pytest

from retro_ml import Agent, ExperimentConfig
from retro_ml.core.artifacts.checkpoint_files import find_checkpoints, verify_checkpoint
from retro_ml.core.artifacts.metrics_file import COLUMNS

pytestmark = pytest.mark.integration


@pytest.fixture
def empty_home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retro_ml.run", *arguments]


def surroundings(home: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "XDG_", "COV_"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": root, "TMPDIR": "/tmp"}


def ray_folders_of(pid: int) -> list[Path]:
    return list(Path("/tmp").glob(f"retro_ml-{pid}-*"))


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *children_of(child)]
    return found


def test_the_main_job_leaves_every_artifact_and_nothing_else(
    tmp_path: Path, empty_home: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        command(
            *("--env", "BreakoutNoFrameskip-v4", "--algo", "ppo", "-n", "3000", "--seed", "42"),
            *("--output-dir", "runs", "--experiment-id", "main", "--json"),
        ),
        cwd=work,
        env=surroundings(empty_home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result = json.loads(output)
    assert result["success"] is True
    assert result["agent_steps"] == 3072

    run = work / "runs" / "main"
    assert [path.name for path in work.iterdir()] == ["runs"]
    assert list(empty_home.iterdir()) == []
    assert ray_folders_of(process.pid) == []
    expected = {"config.json", "status.json", "metrics.json", "metrics.csv", "events.log"}
    expected |= {"training.log", "model.zip", "checkpoints", "tensorboard"}
    assert {path.name for path in run.iterdir()} == expected

    config = ExperimentConfig.model_validate_json((run / "config.json").read_text())
    assert config.game_id == "BreakoutNoFrameskip-v4"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["error"]) == ("completed", 3072, None)
    assert status["versions"]["ray"] == "2.60.0"

    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [column.name for column in COLUMNS]
    assert len(rows) == len(metrics)
    steps = [row["step"] for row in metrics if row["type"] == "training_step"]
    assert steps == [1024, 2048, 3072]
    games = [row for row in metrics if row["type"] == "episode_finished"]
    assert len(games) == result["games"] > 0
    assert result["final_reward"] == pytest.approx(np.mean([game["reward"] for game in games]))
    events = [json.loads(line) for line in (run / "events.log").read_text().splitlines()]
    kinds = [event["event_type"] for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_completed"
    assert kinds.count("checkpoint_saved") == 1

    (checkpoint,) = find_checkpoints(run / "checkpoints")
    assert verify_checkpoint(checkpoint.path)["agent_steps"] == 3072
    agent = Agent.load(run / "model.zip")
    batch = np.zeros((3, 4, 84, 84), np.uint8)
    assert agent.act(batch, deterministic=True).shape == (3,)
    assert agent.metadata["game"]["action_meanings"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(
    tmp_path: Path, empty_home: Path, signum: signal.Signals, code: int
) -> None:
    run = tmp_path / "runs" / "stopped"
    process = subprocess.Popen(
        command(
            *("--game-id", "pong", "--algorithm", "A2C", "-n", "1000000"),
            *("--output-dir", str(tmp_path / "runs"), "--experiment-id", "stopped"),
        ),
        env=surroundings(empty_home),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: (run / "metrics.csv").exists() and "training_step" in read(run))
        assert ray_folders_of(process.pid) != []
        children = children_of(process.pid)
        addresses = listening_addresses([process.pid, *children])
        assert addresses
        assert all(address.is_loopback for address in addresses), addresses
        # A terminal's Ctrl-C reaches the whole group of processes, and so does `timeout`.
        os.killpg(process.pid, signum)
        _, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == code, errors
    assert ray_folders_of(process.pid) == []
    assert "Traceback" not in errors
    assert "SIGTERM received" not in errors  # Abseil's handler, which aborts after three seconds
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    (checkpoint,) = find_checkpoints(run / "checkpoints")
    assert verify_checkpoint(checkpoint.path)["agent_steps"] == status["step"]
    assert (run / "model.zip").exists()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def listening_addresses(pids: list[int]) -> set[IPv4Address | IPv6Address]:
    """Where these processes accept TCP connections, from the kernel's own tables."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
    addresses: set[IPv4Address | IPv6Address] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: listening
                words = bytes.fromhex(fields[1].partition(":")[0])
                # Each word of four bytes stands in the machine's own order.
                swapped = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ip_address(swapped)
                addresses.add(getattr(address, "ipv4_mapped", None) or address)
    return addresses


def read(run: Path) -> str:
    return (run / "metrics.csv").read_text()


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
