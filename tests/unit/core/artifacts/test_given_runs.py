"""What was made of runs in storage is kept where it cannot be sent."""

import shutil
from pathlib import Path

import pytest

from retro_ml.core.artifacts.given_runs import GivenFolder, GivenModel
from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError
from retro_ml.core.experiments.command import Terminated

pytestmark = pytest.mark.unit


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GivenModel:
    """One fetched from a storage to which nothing can be sent any more."""
    put_off(StorageError("no answer"), monkeypatch)
    (tmp_path / "x/videos").mkdir(parents=True)
    return GivenModel(tmp_path / "x/model.zip", None, RemoteFolder("s3://runs/x"))


def put_off(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(remote: RemoteFolder, name: str, content: object) -> None:
        if not name.endswith("first"):
            raise error

    monkeypatch.setattr(RemoteFolder, "put", put)


def make(path: Path, content: str = "made") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_a_film_that_cannot_be_sent_is_kept_under_a_free_name(
    model: GivenModel, here: Path
) -> None:
    for content, name in (("1", "agent.mp4"), ("2", "agent-2.mp4"), ("3", "agent-3.mp4")):
        film = make(model.path.parent / "videos/agent.mp4", content)
        with pytest.raises(StorageError) as raised:
            model.keep(film)
        assert str(raised.value) == f"no answer; what was made is kept here, as {name}"
        assert (here / name).read_text() == content


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_so_is_one_whose_sending_is_stopped(
    kind: type[KeyboardInterrupt], model: GivenModel, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off(kind(), monkeypatch)
    with pytest.raises(kind) as raised:
        model.keep(make(model.path.parent / "evaluation.json"))
    assert str(raised.value) == "what was made is kept here, as evaluation.json"
    assert (here / "evaluation.json").read_text() == "made"


def test_where_nothing_can_be_kept_it_is_said(
    model: GivenModel, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "move", move)
    with pytest.raises(StorageError, match="; what was made cannot be kept here: No space left"):
        model.keep(make(model.path.parent / "evaluation.json"))


def test_what_lies_elsewhere_stays_there(model: GivenModel, here: Path) -> None:
    assert model.keep(make(here / "mine.onnx")) == str(here / "mine.onnx")
    assert (here / "mine.onnx").exists()


def test_a_report_s_files_are_kept_in_one_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off(StorageError("no answer"), monkeypatch)
    make(here / "sweep")
    folder = GivenFolder(tmp_path / "sweep", RemoteFolder("s3://runs/sweep"))
    made = [make(folder.path / name) for name in ("first", "report.html", "report/a.png")]
    make(folder.path / "run/config.json")
    with pytest.raises(StorageError, match="no answer; what was made is kept here, as sweep-2"):
        folder.keep(made)
    kept = [path for path in (here / "sweep-2").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(here)) for path in kept) == [
        "sweep-2/first",
        "sweep-2/report.html",
        "sweep-2/report/a.png",
    ]


def test_nothing_made_leaves_nothing(here: Path, tmp_path: Path) -> None:
    GivenFolder(tmp_path / "sweep", RemoteFolder("s3://runs/sweep")).keep([])
    assert list(here.iterdir()) == []
