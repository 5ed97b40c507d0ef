"""Commands with a model in storage: it comes from there, and what is made of it goes there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from retro_ml import evaluate, export, watch
from retro_ml import list as listing
from retro_ml.core.artifacts import given_runs
from retro_ml.core.artifacts.model_archive import save_model_archive
from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.integration


@pytest.fixture
def stored(s3: Any, tmp_path: Path) -> str:
    """The URI of a run with a model."""
    torch.manual_seed(0)
    weights = {k: v.numpy() for k, v in ActorCriticNetwork(4).state_dict().items()}
    config_json = ExperimentConfig(game_id="breakout").model_dump_json()
    path = tmp_path / "model.zip"
    save_model_archive(path, weights=weights, config_json=config_json, metadata={"agent_steps": 1})
    RemoteFolder("s3://runs/lab/x").put("model.zip", path.read_bytes())
    return "s3://runs/lab/x"


def test_a_model_in_storage_is_played_and_its_result_kept_beside_it(
    s3: Any, stored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([f"{stored}/", "--episodes", "1", "--quiet", "--json"]) == 0
    output = capsys.readouterr()
    kept = s3.objects("runs")["lab/x/evaluation-noop.json"]
    assert json.loads(kept) == json.loads(output.out)
    assert json.loads(kept)["model"] == "s3://runs/lab/x/model.zip"
    assert "result: s3://runs/lab/x/evaluation-noop.json" in output.err


def test_a_model_in_storage_is_exported_beside_it_or_to_a_file_here(
    s3: Any,
    stored: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def look_at_black_screens(agent: Any, count: int) -> Any:
        return np.zeros((count, 4, 84, 84), np.uint8)

    monkeypatch.setattr("retro_ml.evaluation.export.collect_observations", look_at_black_screens)
    here = tmp_path / "here.safetensors"
    words = ["--to", "safetensors"]
    assert export.main([f"{stored}/model.zip", *words, "--output", str(here)]) == 0
    assert s3.keys("runs") == {"lab/x/model.zip"}
    assert f"exported: {here}" in capsys.readouterr().out
    assert export.main([stored, *words]) == 0
    assert "exported: s3://runs/lab/x/model.safetensors" in capsys.readouterr().out
    sent = safetensors.numpy.load(s3.objects("runs")["lab/x/model.safetensors"])
    assert sent.keys() == safetensors.numpy.load_file(here).keys() != set()


def test_a_model_in_storage_is_filmed(
    s3: Any, stored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch.main([stored, "--quiet", "--scale", "1", "--no-strip"]) == 0
    assert "film: s3://runs/lab/x/videos/agent.mp4" in capsys.readouterr().out
    assert b"ftyp" in s3.objects("runs")["lab/x/videos/agent.mp4"][:64]


def test_runs_in_a_bucket_are_listed(s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = ExperimentConfig(game_id="breakout", experiment_id="x").model_dump_json()
    for name in ("x", "sweep/y"):
        run = RemoteFolder(f"s3://runs/lab/{name}")
        run.put("config.json", config.encode())
        run.put("status.json", b'{"state": "completed", "step": 7}')
    assert listing.main(["s3://runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["folder"] for run in found} == {"s3://runs/lab/x", "s3://runs/lab/sweep/y"}
    assert {(run["state"], run["agent_steps"]) for run in found} == {("completed", 7)}
    assert listing.main(["s3://nobucket/lab"]) in {2, 3}
    assert "s3://nobucket/lab" in capsys.readouterr().err


def test_what_is_not_there_is_said(
    s3: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate.main(["s3://runs/lab/nothing"]) == 2
    assert "s3://runs/lab/nothing -> there is no model.zip" in capsys.readouterr().err
    assert evaluate.main(["s3://KEY:secret@runs/lab"]) == 2
    assert "secret" not in capsys.readouterr().err
    assert export.main(["s3://runs/lab/model.zip", "--to", "onnx"]) == 2
    assert "s3://runs/lab -> there is no model.zip" in capsys.readouterr().err
    monkeypatch.setattr(given_runs, "PATIENCE_S", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for command in (evaluate.main, watch.main, lambda argv: export.main([*argv, "--to", "onnx"])):
        assert command(["s3://runs/lab/x"]) == 3
        assert "the endpoint does not answer" in capsys.readouterr().err
