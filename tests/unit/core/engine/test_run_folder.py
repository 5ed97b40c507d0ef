"""The run's folder: made whole, or one message and nothing left behind."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.engine.run_folder import BadRunFolder, make_run_folder
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit


def make_config(output_dir: Path) -> ExperimentConfig:
    return ExperimentConfig(game_id="breakout", experiment_id="x", output_dir=str(output_dir))


def test_the_folder_holds_the_config_alone(tmp_path: Path) -> None:
    config = make_config(tmp_path / "a" / "b")
    make_run_folder(config)

    assert [path.name for path in config.experiment_dir.iterdir()] == ["config.json"]
    assert ExperimentConfig.model_validate_json(config.config_path.read_text()) == config


def test_an_existing_experiment_is_refused_untouched(tmp_path: Path) -> None:
    make_run_folder(make_config(tmp_path))
    (tmp_path / "x" / "model.zip").write_text("mine")

    with pytest.raises(BadRunFolder, match=r"experiment_id: x -> .*choose another"):
        make_run_folder(make_config(tmp_path))

    assert (tmp_path / "x" / "model.zip").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadRunFolder, match=r"output_dir: .*Not a directory"):
            make_run_folder(make_config(output_dir))
    (tmp_path / "x").write_text("mine")
    with pytest.raises(BadRunFolder, match="in the way"):
        make_run_folder(make_config(tmp_path))

    assert {path.name for path in tmp_path.iterdir()} == {"file", "x"}


@pytest.mark.parametrize("failing", ["experiment folder", "config file"])
def test_an_unwritable_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if failing == "config file":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        make = Path.mkdir
        monkeypatch.setattr(
            Path, "mkdir", lambda p, **kw: refuse() if p.name == "x" else make(p, **kw)
        )
    with pytest.raises(BadRunFolder, match=r"Permission denied.*--output-dir"):
        make_run_folder(make_config(tmp_path / "a" / "b"))

    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadRunFolder, match="No space left"):
        make_run_folder(make_config(tmp_path / "a"))

    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_name_too_long_for_the_disk_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(BadRunFolder, match="File name too long"):
        make_run_folder(make_config(tmp_path / ("n" * 300)))
    assert list(tmp_path.iterdir()) == []
