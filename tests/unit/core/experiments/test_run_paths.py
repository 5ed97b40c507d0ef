"""The names of a run's files."""

from pathlib import Path

import pytest

from retro_ml.core.experiments.run_paths import RunPaths

pytestmark = pytest.mark.unit


def test_every_name_is_as_documented() -> None:
    paths = RunPaths(output_dir="/data/runs", experiment_id="one")

    folder = Path("/data/runs/one")
    assert paths.experiment_dir == folder
    assert paths.config_path == folder / "config.json"
    assert paths.status_path == folder / "status.json"
    assert paths.metrics_json_path == folder / "metrics.json"
    assert paths.metrics_csv_path == folder / "metrics.csv"
    assert paths.events_path == folder / "events.log"
    assert paths.log_path == folder / "training.log"
    assert paths.model_path == folder / "model.zip"
    assert paths.checkpoints_dir == folder / "checkpoints"
    assert paths.checkpoint_dir(50_176) == folder / "checkpoints" / "step-50176"
    assert paths.evaluation_path("noop") == folder / "evaluation-noop.json"
    assert paths.tune_dir == folder / "tune"


def test_a_relative_folder_is_seen_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert RunPaths("runs", "one").experiment_dir == tmp_path / "runs" / "one"


def test_asking_for_paths_makes_nothing(tmp_path: Path) -> None:
    paths = RunPaths(str(tmp_path), "one")

    assert paths.checkpoint_dir(1).parent == paths.checkpoints_dir
    assert list(tmp_path.iterdir()) == []
