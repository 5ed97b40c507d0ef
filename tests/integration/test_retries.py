"""The contract of a RayJob's retries, rehearsed: each attempt is the same entrypoint with the same
experiment id in a new Ray cluster, of which nothing but the storage is left to the next."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarking.processes import MARKER, ProcessFamily

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.deploy.kustomize import manifests_folder, render
from retro_ml.deploy.run_manifests import render_run

pytestmark = pytest.mark.integration
TIMEOUT_S = 300.0
LENGTH, EVERY = 4_160, 1_040


class Attempt:
    """A Ray head of its own, as in a pod, and what runs on it; all of it dies together."""

    def __init__(self, folder: Path) -> None:
        marker = uuid.uuid4().hex
        self.family = ProcessFamily(marker)
        self.port = free_port()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.scratch = Path(f"/tmp/r{marker[:8]}")  # Ray's sockets take a short path
        self.env |= {
            MARKER: marker,
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # 15 by default: behind whatever else runs here
        }
        self.output = folder / f"attempt-{marker}.txt"
        call = ["ray", "start", "--head", "--block", f"--port={self.port}", "--num-cpus=2"]
        call += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        call += ["--object-store-memory=100000000", f"--temp-dir={self.scratch}"]
        self.head = self._start([str(Path(sys.executable).parent / call[0]), *call[1:]])
        end_s = time.monotonic() + TIMEOUT_S
        while not answers(self.port):
            assert self.head.poll() is None, self.output.read_text()
            assert time.monotonic() < end_s
            time.sleep(0.2)

    def drive(self, entrypoint: str) -> subprocess.Popen[bytes]:
        words = entrypoint.split()
        assert words[:2] == ["retro-ml", "run"]
        # KubeRay sets the address in every pod.
        address = {"RAY_ADDRESS": f"127.0.0.1:{self.port}"}
        return self._start([sys.executable, "-m", "retro_ml.run", *words[2:]], **address)

    def _start(self, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as file:
            return subprocess.Popen(
                command,
                env={**self.env, **more},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[list[Attempt]]:
    made: list[Attempt] = []
    yield made
    for attempt in made:
        attempt.family.kill()
        shutil.rmtree(attempt.scratch, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def job(tmp_path: Path, name: str) -> tuple[str, RunPaths]:
    """The entrypoint of a rendered RayJob, its config map a file and its volume a folder here."""
    config = ExperimentConfig(
        game_id="pong",
        algorithm="A2C",
        seed=3,
        total_timesteps=LENGTH,
        experiment_id=name,
        checkpointing={"every_steps": EVERY},
        resources={"num_cpus": 2},
    )
    manifests = render_run(config, overlay="cpu", image=None, memory_bytes=2**30, disk_bytes=0)
    (entrypoint,) = [m["spec"]["entrypoint"] for m in manifests if m["kind"] == "RayJob"]
    (mapping,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap"]
    mounted = tmp_path / "config.yaml"
    fields = yaml.safe_load(mapping["config.yaml"])
    volume = tmp_path / "volume"
    mounted.write_text(yaml.safe_dump({**fields, "output_dir": str(volume)}))
    return (
        entrypoint.replace("/etc/retro-ml/config.yaml", str(mounted)),
        RunPaths(str(volume), name),
    )


def last_step(paths: RunPaths) -> int:
    if not paths.metrics_csv_path.exists():
        return 0
    return max((row["step"] for row in read_rows(paths.metrics_csv_path)), default=0)


def rows(paths: RunPaths) -> list[dict[str, Any]]:
    """Without the clock's columns."""
    return [
        {k: v for k, v in row.items() if k != "timestamp" and not k.endswith("_s")}
        for row in read_rows(paths.metrics_csv_path)
    ]


def weights(paths: RunPaths) -> bytes:
    folders = paths.checkpoints_dir.glob("step-*")
    newest = max(folders, key=lambda path: int(path.name.removeprefix("step-")))
    return (newest / "module.safetensors").read_bytes()


@pytest.mark.nightly
def test_a_new_cluster_goes_on_where_the_killed_one_was(
    tmp_path: Path, attempts: list[Attempt]
) -> None:
    entrypoint, paths = job(tmp_path, "retried")
    attempts.append(Attempt(tmp_path))
    driver = attempts[0].drive(entrypoint)
    end_s = time.monotonic() + TIMEOUT_S
    while last_step(paths) <= EVERY:  # beyond the first checkpoint
        assert driver.poll() is None, attempts[0].output.read_text()
        assert time.monotonic() < end_s
        time.sleep(0.05)
    attempts[0].family.kill()
    assert not answers(attempts[0].port)
    assert json.loads(paths.status_path.read_text())["state"] == "running"

    attempts.append(Attempt(tmp_path))
    assert attempts[1].drive(entrypoint).wait(timeout=TIMEOUT_S) == 0
    assert "going on from" in attempts[1].output.read_text()
    # A submitter that comes again after the end finds the run finished.
    assert attempts[1].drive(entrypoint).wait(timeout=TIMEOUT_S) == 0

    undisturbed_entrypoint, undisturbed = job(tmp_path, "undisturbed")
    assert attempts[1].drive(undisturbed_entrypoint).wait(timeout=TIMEOUT_S) == 0
    assert json.loads(paths.status_path.read_text())["state"] == "completed"
    assert rows(paths) == rows(undisturbed)
    assert weights(paths) == weights(undisturbed)


def test_the_shipped_job_can_be_trained(tmp_path: Path) -> None:
    """Its config is valid, and it is the one that its retries find."""
    for name in ("cpu", "gpu", "gpu-spot", "autoscaling", "kueue"):
        manifests = render(manifests_folder() / "overlays" / name)
        (mapping,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap"]
        config = ExperimentConfig.model_validate(yaml.safe_load(mapping["config.yaml"]))
        assert config.output_dir == "/runs"
        assert config.experiment_id == "breakout-ppo"
