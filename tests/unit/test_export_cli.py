"""`retro-ml export`: what it says to calls that cannot be met."""

import io
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from retro_ml import cli, export
from retro_ml.core.artifacts.model_archive import save_model_archive
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.unit


def call(*argv: str) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr; nothing may be on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        exit_code = export.main(argv)
    assert out.getvalue() == ""
    return exit_code, err.getvalue().splitlines()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = {n: t.numpy() for n, t in ActorCriticNetwork(4).state_dict().items()}
    config = ExperimentConfig(game_id="breakout", experiment_id="x").model_dump_json()
    path = tmp_path / "x" / "model.zip"
    path.parent.mkdir()
    save_model_archive(path, weights=weights, config_json=config, metadata={})
    return path


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--to", "onnx"], "MODEL: missing"),
        (["{model}"], "--to: missing -> one of onnx, torch-export, safetensors"),
        (["{model}", "--to", "onx"], "--to: onx -> did you mean onnx?"),
        (["{model}", "--to"], "--to: a value is missing"),
        (["{model}", "--to", "onnx", "--outputs", "x"], "--outputs: unknown -> did you mean"),
        (["nowhere", "--to", "onnx"], "MODEL: nowhere -> no such file or folder"),
        (["{folder}", "--to", "onnx"], "has no model.zip"),
        (["x" * 5_000, "--to", "onnx"], "no such file|cannot be read"),
        (["{model}", "--to", "onnx", "--output", "{folder}"], "this is a folder"),
        (["{model}", "--to", "onnx", "--output", "{folder}/a/b"], "is no folder"),
        (["{model}", "--to", "onnx", "--output", "{model}"], "another file than MODEL"),
    ],
)
def test_bad_calls_get_a_line_each(argv: list[str], fault: str, model: Path) -> None:
    places = {"model": str(model), "folder": str(model.parent.parent)}
    exit_code, lines = call(*[word.format(**places) for word in argv])

    assert exit_code == 2
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert any(part in lines[0] for part in fault.split("|"))
    assert lines[1] == "hint: retro-ml export --help lists every option"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(b"PK")
    exit_code, lines = call(str(tmp_path / "m.zip"), "--to", "safetensors")

    assert exit_code == 2
    assert "is no usable model.zip" in lines[0]


@pytest.fixture
def unplayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black screens in place of games, which take seconds."""
    monkeypatch.setattr(
        "retro_ml.evaluation.export.collect_observations",
        lambda agent, count: np.zeros((count, 4, 84, 84), np.uint8),
    )


@pytest.mark.usefixtures("unplayed")
def test_a_missing_library_is_named_with_its_remedy(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exit_code, lines = call(str(model.parent), "--to", "onnx")

    assert exit_code == 3
    assert lines == [
        "error: --to onnx: onnxruntime is not installed; pip install 'retro_ml[export]'"
    ]
    assert [path.name for path in model.parent.iterdir()] == ["model.zip"]


@pytest.mark.usefixtures("unplayed")
def test_a_temporary_folder_that_is_full_or_gone_does_not_matter(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(model.parent / "gone"))

    assert export.main([str(model), "--to", "safetensors"]) == 0
    assert "the same action on 1,000 of 1,000" in capsys.readouterr().out


@pytest.mark.usefixtures("unplayed")
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_where_pytorch_finds_no_temporary_folder_it_is_told(
    to: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(model)])
    exit_code, lines = call(str(model), "--to", to)

    assert exit_code == 1
    assert lines == [
        "error: cannot export: PyTorch needs a folder for temporary files: No usable temporary "
        f"directory found in ['{model}']; make room in one of them, or TMPDIR names another"
    ]
    assert [path.name for path in model.parent.iterdir()] == ["model.zip"]


def test_the_console_script_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "--help"])

    assert stopped.value.code == 0
    assert "torch-export" in capsys.readouterr().out
