"""`retro-ml evaluate s3://...`: the model comes from storage, the result goes there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retro_ml import evaluate
from retro_ml.core.artifacts.model_archive import save_model_archive
from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.integration


def test_a_model_in_storage_is_played_and_its_result_kept_beside_it(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = {k: v.numpy() for k, v in ActorCriticNetwork(4).state_dict().items()}
    config_json = ExperimentConfig(game_id="breakout").model_dump_json()
    path = tmp_path / "model.zip"
    save_model_archive(path, weights=weights, config_json=config_json, metadata={"agent_steps": 1})
    RemoteFolder("s3://runs/lab/x").put("model.zip", path.read_bytes())

    assert evaluate.main(["s3://runs/lab/x/", "--episodes", "1", "--quiet", "--json"]) == 0
    output = capsys.readouterr()
    kept = s3.objects("runs")["lab/x/evaluation-noop.json"]
    assert json.loads(kept) == json.loads(output.out)
    assert "result: s3://runs/lab/x/evaluation-noop.json" in output.err


def test_what_is_not_there_is_said(
    s3: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate.main(["s3://runs/lab/nothing"]) == 2
    assert "s3://runs/lab/nothing -> there is no model.zip" in capsys.readouterr().err
    assert evaluate.main(["s3://KEY:secret@runs/lab"]) == 2
    assert "secret" not in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "STORAGE_PATIENCE_S", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert evaluate.main(["s3://runs/lab/x"]) == 3
    assert "the endpoint does not answer" in capsys.readouterr().err
