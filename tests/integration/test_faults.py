"""What may happen around a run: each fault ends it in order, or does not end it at all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from retro_ml.core.artifacts.checkpoint_files import find_checkpoints, verify_checkpoint
from retro_ml.core.artifacts.metrics_file import read_rows

pytestmark = pytest.mark.integration
TIMEOUT_S = 300.0


def start(output_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "retro_ml.run", "--game-id", "pong", "--algorithm", "A2C"]
    command += ["--output-dir", str(output_dir), "--experiment-id", "x", "--set", "use_gpu=false"]
    return subprocess.Popen(
        [*command, *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end_s
        time.sleep(0.05)


def has_rows(run: Path) -> bool:
    path = run / "metrics.csv"
    return path.exists() and any(row["type"] == "training_step" for row in read_rows(path))


def children_of(pid: int, name: str) -> list[int]:
    """The children whose command line has `name` in it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and name in command:
            found.append(int(stat.parent.name))
    return found


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the lines of a run and one checkpoint of 13 MB, not for two."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("daemon", ["gcs_server", "raylet"])
def test_a_ray_that_dies_ends_the_run_with_one_message(tmp_path: Path, daemon: str) -> None:
    run = tmp_path / "x"
    process = start(tmp_path, "-n", "1000000")
    wait_until(lambda: has_rows(run), process)
    (victim,) = children_of(process.pid, daemon)
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert "failed: Ray is gone" in errors
    assert "Traceback" not in errors
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert list(Path("/tmp").glob(f"retro_ml-{process.pid}-*")) == []
    assert not (run / "run.lock").exists()


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(small_disk: Path) -> None:
    run = small_disk / "x"
    arguments = ["-n", "4000", "--set", "checkpointing.every_steps=1000"]
    arguments += ["--set", "resources.max_failures=0"]
    process = start(small_disk, *arguments)
    _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 1, errors
    assert "No space left on device; free some space" in errors
    assert "Traceback" not in errors
    whole = [verify_checkpoint(folder.path) for folder in find_checkpoints(run / "checkpoints")]
    assert [manifest["agent_steps"] for manifest in whole] == [1040]
    assert max(row["step"] for row in read_rows(run / "metrics.csv")) >= 1040

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    process = start(small_disk, *arguments)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "going on from 1,040 agent steps" in errors
    assert training_steps(run) == [1040, 2080, 3120, 4160]


def test_a_disk_that_others_fill_ends_the_run(small_disk: Path) -> None:
    run = small_disk / "x"
    # No retries: the full disk would fail each of them, half a dozen seconds later.
    process = start(small_disk, "-n", "1000000", "--set", "resources.max_failures=0")
    wait_until(lambda: has_rows(run), process)
    fill(small_disk / "filler")
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, errors
    assert "No space left on device" in errors
    assert "Traceback" not in errors


def test_a_signal_before_the_first_row_is_obeyed_and_the_run_can_begin_anew(tmp_path: Path) -> None:
    run = tmp_path / "x"
    process = start(tmp_path, "-n", "2000")
    wait_until((run / "status.json").exists, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert not (run / "run.lock").exists()

    process = start(tmp_path, "-n", "2000")
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert training_steps(run) == [1040, 2080]


@pytest.mark.nightly
def test_a_learner_that_dies_is_replaced_and_the_trial_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "x"
    arguments = ["-n", "4000", "--set", "checkpointing.every_steps=1000"]
    arguments += ["--set", "resources.num_learners=1", "--set", "resources.num_cpus=1"]
    process = start(tmp_path, *arguments)
    wait_until(lambda: len(find_checkpoints(run / "checkpoints")) > 0, process)
    (raylet,) = children_of(process.pid, "raylet")
    (victim,) = children_of(raylet, "WrappedExecutable")
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert training_steps(run) == [1040, 2080, 3120, 4160]
    log = [json.loads(line) for line in (run / "events.log").read_text().splitlines()]
    starts = [event["data"] for event in log if event["event_type"] == "run_started"]
    assert len(starts) == 2
    assert starts[1]["from_step"] >= 1040


def training_steps(run: Path) -> list[int]:
    rows = read_rows(run / "metrics.csv")
    return [row["step"] for row in rows if row["type"] == "training_step"]
