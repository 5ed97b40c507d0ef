"""A trial on a node that shares no disk with its driver: all goes by storage, a node's end too."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.experiments.locations import staging_dir

pytestmark = pytest.mark.integration
TIMEOUT_S = 240.0
RAY = str(Path(sys.executable).with_name("ray"))
COMMON = ("--disable-usage-stats", "--block", "--object-store-memory=100000000")


class Nodes:
    """A head without CPUs, and workers that each have a staging place of their own (a mount)."""

    def __init__(self, folder: Path, staging: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = {
            **environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RETRO_ML_STAGING": str(staging),
        }
        self._folder, self._staging = folder, staging
        self._started: list[subprocess.Popen[bytes]] = []
        port = self.address.rpartition(":")[2]
        self._start(
            [
                *(RAY, "start", "--head", f"--port={port}", "--num-cpus=0", *COMMON),
                *("--node-ip-address=127.0.0.1", "--include-dashboard=false"),
                f"--temp-dir={folder}/ray",
            ]
        )

    def add_worker(self) -> subprocess.Popen[bytes]:
        join = f"{RAY} start --address={self.address} --num-cpus=2 {' '.join(COMMON)}"
        mount = f"mount -t tmpfs tmpfs {self._staging}"
        return self._start(["unshare", "-m", "sh", "-c", f"{mount} && exec {join}"])

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """All of a node's processes at once, as when its machine is gone."""
        for pid in [*descendants(node.pid), node.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def stop(self) -> None:
        for node in reversed(self._started):
            if node.poll() is None:
                self.kill(node)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        said = self._folder / f"node-{len(self._started)}.txt"
        with said.open("wb") as output:
            node = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, cwd=self._folder
            )
        self._started.append(node)
        end_s = time.monotonic() + TIMEOUT_S
        while b"Ray runtime started" not in said.read_bytes():
            assert node.poll() is None, said.read_text()
            assert time.monotonic() < end_s
            time.sleep(0.1)
        return node


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(child.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [*descendants(int(child.parent.name)), int(child.parent.name)]
    return found


@pytest.fixture
def nodes(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    if os.geteuid() != 0:
        pytest.skip("a disk of its own for each node takes root")
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("no mount namespaces here")
    folder = tmp_path_factory.mktemp("n")
    staging = folder / "staging"
    staging.mkdir()
    nodes = Nodes(folder, staging)
    yield nodes
    nodes.stop()


def run_command(nodes: Nodes, *, agent_steps: int) -> list[str]:
    command = [sys.executable, "-m", "retro_ml.run", "--game-id", "breakout", "--algorithm", "A2C"]
    command += ["-n", str(agent_steps), "--seed", "1", "--ray-address", nodes.address]
    command += ["--output-dir", "s3://runs/lab", "--experiment-id", "x", "--set", "use_gpu=false"]
    command += ["--set", "checkpointing.every_steps=2080", "--set", "resources.num_cpus=1"]
    return command


@pytest.mark.nightly
def test_a_trial_on_another_node_goes_by_storage_and_survives_its_node(
    nodes: Nodes, s3: Any, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nodes.add_worker()
    command = run_command(nodes, agent_steps=8_000)
    run = subprocess.Popen(command, env=nodes.environment, stderr=subprocess.PIPE, text=True)
    eventually(
        lambda: (
            run.poll() is not None or any(key.endswith("manifest.json") for key in s3.keys("runs"))
        )
    )
    assert run.poll() is None, run.communicate()[1]
    nodes.kill(first)
    nodes.add_worker()
    errors = run.communicate(timeout=TIMEOUT_S)[1]

    assert run.returncode == 0, errors
    assert "storage: all of it is in s3://runs/lab/x" in errors
    monkeypatch.setenv("RETRO_ML_STAGING", nodes.environment["RETRO_ML_STAGING"])
    here = staging_dir("s3://runs/lab") / "x"
    assert not (here / "checkpoints").exists()
    steps = [r["step"] for r in read_rows(here / "metrics.csv") if r["type"] == "training_step"]
    assert steps == list(range(1040, 8321, 1040))
    there = s3.objects("runs")
    assert there["lab/x/model.zip"] == (here / "model.zip").read_bytes()
    assert "lab/x/checkpoints/step-8320/manifest.json" in there


@pytest.mark.nightly
def test_the_last_checkpoint_gets_through_a_slow_uplink_from_another_node(
    nodes: Nodes, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.add_worker()
    asked_at_s: list[float] = []

    def delay(method: str, path: str) -> None:
        if method in ("PUT", "POST") and "/checkpoints/" in path:
            asked_at_s.append(time.monotonic())
            time.sleep(3.0)

    s3.fault = delay
    run = subprocess.run(
        run_command(nodes, agent_steps=2_080),
        check=False,
        env=nodes.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert run.returncode == 0, run.stderr
    assert "storage: all of it is in s3://runs/lab/x" in run.stderr
    # Longer than Tune lets a trial's actor live after its last save.
    assert asked_at_s[-1] - asked_at_s[0] > 20.0
    monkeypatch.setenv("RETRO_ML_STAGING", nodes.environment["RETRO_ML_STAGING"])
    here = staging_dir("s3://runs/lab") / "x"
    assert load_model_archive(here / "model.zip").metadata["agent_steps"] == 2_080
    there = s3.keys("runs")
    assert {"lab/x/model.zip", "lab/x/checkpoints/step-2080/manifest.json"} <= there
