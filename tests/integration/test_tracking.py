"""A real run that W&B and MLflow are told of, without a network; their files read back."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None or importlib.util.find_spec("mlflow") is None,
    reason="wandb and mlflow are not installed: pip install 'retro_ml[wandb,mlflow]'",
)
def test_both_services_are_told_the_numbers_and_no_file_the_keys(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": SECRET,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_TOKEN": SECRET,
    }
    words = "--game-id pong -n 256 --seed 1 --experiment-id told --track wandb,mlflow --quiet"
    settings = "--ppo.rollout-length 16 --ppo.minibatch-size 64 --resources.num-cpus 1 --no-use-gpu"
    done = subprocess.run(
        [sys.executable, "-m", "retro_ml.run", *words.split(), *settings.split()],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("retro_ml")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("told", "FINISHED")
    assert run.data.params["ppo/rollout_length"] == "16"
    history = client.get_metric_history(run.info.run_id, "train/entropy")
    assert [point.step for point in history] == [128, 256]

    (kept,) = (tmp_path / "runs" / "told" / "wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"train/entropy" in content
    assert b"records" not in content

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in done.stdout + done.stderr
