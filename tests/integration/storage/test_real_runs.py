"""Real training whose only lasting place is an S3 server: its machine is lost, it goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.experiments.locations import staging_dir

pytestmark = pytest.mark.integration
TIMEOUT_S = 300.0
URI = "s3://runs/lab"
LENGTH = {"PPO": ("3072", "1024"), "DQN": ("1280", "256"), "A2C": ("6240", "1040")}
"""Agent steps of a run, and between two checkpoints."""


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    while _started:
        _started.pop().kill()


def start(algorithm: str, output_dir: str, *, staging: Path) -> subprocess.Popen[str]:
    total, every = LENGTH[algorithm]
    settings = ["use_gpu=false", f"checkpointing.every_steps={every}", "checkpointing.keep=2"]
    settings += ["dqn.warmup_agent_steps=300", "dqn.replay_size=5000"]
    arguments = ["--game-id", "breakout", "--algorithm", algorithm, "--seed", "1"]
    arguments += ["-n", total, "--output-dir", output_dir, "--experiment-id", "x"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "retro_ml.run", *arguments),
            *(part for setting in settings for part in ("--set", setting)),
        ],
        env={**environment, "RETRO_ML_STAGING": str(staging)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> str:
    errors = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 0, errors
    return errors


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "timestamp" and not k.endswith("_s")}
        for row in read_rows(run / "metrics.csv")
    ]


def state_of(run: Path) -> dict[str, bytes]:
    """Weights, optimizer and generators at the end, as they are in the last checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    names = ("module.safetensors", "learner.safetensors", "learner.json")
    return {name: (newest / name).read_bytes() for name in names}


@pytest.mark.parametrize("algorithm", ["PPO", pytest.param("DQN", marks=pytest.mark.nightly)])
def test_a_run_whose_machine_is_lost_goes_on_bit_for_bit_from_storage(
    s3: Any,
    tmp_path: Path,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
) -> None:
    finish(start(algorithm, str(tmp_path / "undisturbed"), staging=tmp_path))
    every = LENGTH[algorithm][1]

    lost = start(algorithm, URI, staging=tmp_path / "lost")
    manifest = f"lab/x/checkpoints/step-{int(every)}/manifest.json"

    def is_there() -> bool:
        there = s3.objects("runs")
        rows = there.get("lab/x/metrics.csv", b"")
        return manifest in there and b"\ntraining_step," in rows

    eventually(lambda: lost.poll() is not None or is_there())
    assert lost.poll() is None
    os.kill(lost.pid, signal.SIGKILL)
    lost.communicate(timeout=TIMEOUT_S)

    said = finish(start(algorithm, URI, staging=tmp_path / "new"))
    assert "fetching the run from s3://runs/lab/x" in said
    assert "going on from" in said
    assert "storage: all of it is in s3://runs/lab/x" in said
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "new"))
    run = staging_dir(URI) / "x"
    undisturbed = tmp_path / "undisturbed" / "x"
    assert rows_of(run) == rows_of(undisturbed)
    assert state_of(run) == state_of(undisturbed)

    there = s3.objects("runs")
    assert there["lab/x/metrics.csv"] == (run / "metrics.csv").read_bytes()
    (tmp_path / "model.zip").write_bytes(there["lab/x/model.zip"])
    weights = load_model_archive(tmp_path / "model.zip").weights
    theirs = load_model_archive(undisturbed / "model.zip").weights
    assert safetensors.numpy.save(weights) == safetensors.numpy.save(theirs)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        secret = os.environ[name].encode()
        assert secret not in said.encode()
        assert not any(secret in content for content in there.values())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(secret in path.read_bytes() for path in files)


@pytest.mark.nightly
def test_training_outlives_its_storage_and_the_same_command_sends_the_rest(
    s3: Any, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    process = start("A2C", URI, staging=tmp_path)
    eventually(lambda: any(key.endswith("manifest.json") for key in s3.keys("runs")))
    s3.stop()
    try:
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    finally:
        s3.start()
    assert process.returncode == 3, errors
    assert "training goes on, it is tried again" in errors
    assert "done: A2C on breakout, 6,240 agent steps" in errors
    assert "NOT ALL SENT to s3://runs/lab/x" in errors
    assert "Traceback" not in errors

    said = finish(start("A2C", URI, staging=tmp_path))
    assert "storage: all of it is in s3://runs/lab/x" in said
    there = s3.objects("runs")
    assert json.loads(there["lab/x/status.json"])["storage"]["state"] == "complete"
    assert "lab/x/checkpoints/step-6240/manifest.json" in there
