"""Runs in storage: listed, compared and reported as those in a folder are."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro_ml import compare, evaluate, report
from retro_ml import list as listing
from retro_ml.core.artifacts import given_runs
from retro_ml.core.artifacts.given_runs import GivenFolder, open_runs
from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError
from retro_ml.core.engine.run_claim import Claim
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.reporting.run_folders import is_of_summary

pytestmark = pytest.mark.unit
MakeRun = Callable[..., Path]
CLAIM = Claim(generation=1, nonce="0", host="far", machine="far", pid=1, started_ticks=1)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


@pytest.fixture
def uri(make_run: MakeRun, tmp_path: Path) -> str:
    """Two runs and a sweep of two, with more files than are read."""
    for name, scores in (("a", [1.0, 2.0, 3.0]), ("b", [4.0, 5.0, 6.0])):
        run = make_run(name, scores=scores, seed=len(scores))
        (run / "model.zip").write_bytes(b"large")
        (run / "checkpoints" / "step-1").mkdir(parents=True)
        (run / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
    for seed in (1, 2):
        folder = tmp_path / "runs" / "sweep"
        make_run(f"s{seed}", scores=[7.0, 8.0], folder=folder, seed=seed, evaluation=[9.0, seed])
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text("{}")
    return f"file://{tmp_path}/runs"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_what_is_needed_is_fetched(uri: str) -> None:
    with open_runs([f"{uri}/a", uri], word="DIR", needed=is_of_summary) as (one, several):
        assert files(one.path) == ["config.json", "status.json"]
        assert files(several.path) == [
            f"{run}/{name}"
            for run in ("a", "b", "sweep/s1", "sweep/s2")
            for name in ("config.json", "status.json")
        ]
        assert one.address(one.path / "x") == f"{uri}/a/x"


def test_runs_are_listed_under_their_uris(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main([uri, "--sort", "name", "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert [run["folder"] for run in stored] == [
        f"{uri}/{name}" for name in ("a", "b", "sweep/s1", "sweep/s2")
    ]
    assert listing.main([uri.removeprefix("file://"), "--sort", "name", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    for run in (*stored, *here):
        del run["folder"]
    assert stored == here


@pytest.mark.parametrize(
    ("renewed", "age_s", "state"), [(True, 5, "running"), (True, 600, "lost"), (False, 0, "lost")]
)
def test_a_run_in_storage_is_under_way_while_its_claim_is_renewed(
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    renewed: bool,
    age_s: float,
    state: str,
) -> None:
    run = make_run("a", scores=[1], state="running")
    if renewed:
        CLAIM.save(run / "claim.json")
        os.utime(run / "claim.json", (time.time() - age_s,) * 2)
    assert listing.main([f"file://{tmp_path}/runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == state


def test_stored_runs_are_compared(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = uri.removeprefix("file://")
    assert compare.main([f"{folder}/a", f"{folder}/sweep"]) == 0
    here = capsys.readouterr().out
    assert compare.main([f"{uri}/a", f"{uri}/sweep"]) == 0
    assert capsys.readouterr().out == here
    assert compare.main([f"{uri}/a", f"{folder}/sweep"]) == 0
    assert capsys.readouterr().out == here


def links(page: Path) -> list[str]:
    return re.findall(r'href="([^"#]*)"', page.read_text())


def test_a_report_is_sent_to_where_its_runs_are(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([f"{uri}/sweep"]) == 0
    assert capsys.readouterr().out == f"report: {uri}/sweep/report.html\n"
    sweep = tmp_path / "runs" / "sweep"
    assert "report/runs.csv" in files(sweep)
    found = links(sweep / "report.html")
    assert {"sweep.json", "s1", "s1/metrics.csv"} <= set(found)
    here = [link for link in found if not link.startswith("https://")]
    assert [link for link in here if not (sweep / link).exists()] == []


def test_a_report_elsewhere_names_the_uris(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path / "runs")
    output = tmp_path / "page"
    assert report.main([f"{uri}/sweep", f"{uri}/a", "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out == f"report: {output}/report.html\n"
    found = links(output / "report.html")
    assert {f"{uri}/sweep/sweep.json", f"{uri}/a", f"{uri}/sweep/s1/metrics.csv"} <= set(found)
    assert str(tmp_path / "scratch") not in (output / "report.html").read_text()
    assert files(tmp_path / "runs") == before


@pytest.mark.parametrize("command", [listing.main, report.main])
def test_what_is_not_there_is_said(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([f"file://{tmp_path}/none"]) == 2
    assert f"file://{tmp_path}/none -> no run is in it" in capsys.readouterr().err
    assert command(["s3://KEY:secret@runs/lab"]) == 2
    error = capsys.readouterr().err
    assert "no keys and no options in the URI" in error
    assert "secret" not in error


def test_every_bad_uri_is_told(uri: str, tmp_path: Path) -> None:
    bad = [f"file://{tmp_path}/none", f"{uri}/a", "s4://x"]
    with pytest.raises(UsageError) as refused, open_runs(bad, word="RUN", needed=is_of_summary):
        pass
    assert [fault.partition(" -> ")[0] for fault in refused.value.faults] == [
        f"RUN: file://{tmp_path}/none",
        "RUN: s4://x",
    ]


@pytest.mark.parametrize(
    "command", [listing.main, report.main, lambda argv: compare.main([*argv, "x"])]
)
def test_storage_that_does_not_answer_is_exit_code_3(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: RemoteFolder) -> None:
        raise StorageError(f"cannot list it in {self.uri}: the endpoint does not answer")

    monkeypatch.setattr(RemoteFolder, "list_times", fail)
    assert command(["s3://runs/lab"]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "s3://runs/lab: the endpoint does not answer" in lines[0]


@pytest.fixture(params=["gone", "none"])
def no_scratch(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder for temporary files is gone, or none could be found; what is said of it."""
    gone = tmp_path / "gone"
    if request.param == "gone":
        monkeypatch.setattr(tempfile, "tempdir", str(gone))
        return f" into {gone}: No such file or directory"
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(gone)])
    return f": No usable temporary directory found in ['{gone}']"


@pytest.mark.usefixtures("no_scratch")
def test_runs_that_are_here_need_no_temporary_folder(make_run: MakeRun) -> None:
    one, two = make_run("a", scores=[1]), make_run("b", scores=[2])
    assert listing.main([str(one.parent)]) == 0
    assert compare.main([str(one), str(two)]) == 0
    assert report.main([str(one.parent), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (listing.main, "DIR"),
        (report.main, "RUN_OR_SWEEP_DIR"),
        (lambda argv: compare.main([*argv, "x"]), "RUN_OR_DIR"),
        (evaluate.main, "MODEL"),
    ],
)
def test_without_a_temporary_folder_storage_is_refused_in_words(
    command: Any, word: str, uri: str, no_scratch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([f"{uri}/a"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: {word}: {uri}/a -> cannot be fetched{no_scratch}; TMPDIR names another folder"
    ]


def test_names_that_lead_elsewhere_are_not_followed(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evil = ("../x", "/etc", ".hidden", "a/../../x", "a//b", "", "x\ny", "a/b/c/d/e")
    names = {f"{run}/{name}": 1.0 for run in evil for name in ("config.json", "status.json")}
    names |= {"fine/config.json": 1.0, "fine/status.json": 1.0, "fine/inside/config.json": 1.0}
    monkeypatch.setattr(RemoteFolder, "list_times", lambda self: names)
    fetched: list[str] = []

    def download(self: RemoteFolder, name: str, target: Path) -> None:
        fetched.append(name)
        target.write_text("{}")

    monkeypatch.setattr(RemoteFolder, "download", download)
    with open_runs([uri], word="DIR", needed=is_of_summary) as (folder,):
        assert isinstance(folder, GivenFolder)
        assert files(tmp_path / "scratch")
    assert sorted(fetched) == ["fine/config.json", "fine/status.json"]
    assert given_runs.MAX_DEPTH == 4


def test_a_report_that_cannot_be_sent_is_kept_here(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(remote: RemoteFolder, name: str, content: bytes) -> None:
        raise StorageError("no answer")

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(RemoteFolder, "put", put)
    assert report.main([f"{uri}/a", "--quiet"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("error: RUN_OR_SWEEP_DIR: no answer; what was made is kept here, as a")
    assert (here / "a/report.html").is_file()
    assert list((here / "a/report").glob("*.csv"))
