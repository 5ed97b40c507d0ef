"""Runs found and their states told."""

import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from retro_ml import list as listing
from retro_ml.core.engine.processes import describe_machine
from retro_ml.core.engine.run_lock import RunLock
from retro_ml.reporting.run_folders import FileFault, describe_age, find_runs, load_json, summarize

pytestmark = pytest.mark.unit

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MakeRun = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return [paths.experiment_dir.name for paths in find_runs(folder)]


def test_a_run_a_folder_of_runs_and_a_folder_of_those(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("b", scores=[1])
    make_run("a", scores=[1])
    make_run("c", scores=[1], folder=tmp_path / "runs" / "sweep")
    (tmp_path / "runs" / "nothing").mkdir()
    (tmp_path / "runs" / ".hidden").symlink_to(run)

    assert names(run) == ["b"]
    assert names(tmp_path / "runs") == ["a", "b", "c"]
    assert names(tmp_path) == ["a", "b", "c"]


def test_links_are_not_followed(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[1])
    (tmp_path / "runs" / "round").symlink_to(tmp_path)

    assert names(tmp_path) == ["a"]


def test_a_run_under_way_with_nobody_at_work_is_lost(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1], state="running")
    (paths,) = find_runs(run)
    assert summarize(paths).state == "lost"

    lock = RunLock(paths.lock_path)
    lock.acquire(notice=print)
    try:
        assert summarize(paths).state == "running"
        assert paths.lock_path.exists()
    finally:
        lock.release()
    assert summarize(paths).state == "lost"


def test_a_dead_holder_of_this_machine_and_a_living_one_of_another(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1], state="running")
    (paths,) = find_runs(run)
    lease = {
        "host": socket.gethostname(),
        "machine": describe_machine(),
        "nonce": "0",
        "driver": {"pid": os.getpid(), "started_ticks": 1},
        "trainer": None,
        "renewals": 3,
    }
    paths.lock_path.write_text(json.dumps(lease))
    assert summarize(paths).state == "lost"

    paths.lock_path.write_text(json.dumps({**lease, "host": "elsewhere", "machine": "other"}))
    assert summarize(paths).state == "running"

    long_ago = paths.lock_path.stat().st_mtime - 3600
    os.utime(paths.lock_path, (long_ago, long_ago))
    assert summarize(paths).state == "lost"


def test_what_files_tell_wrongly_is_not_told(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1])
    (run / "status.json").write_text(
        '{"state": ["x"], "step": -5, "reward": 1e999, "games": true, "updated_at": "then"}'
    )
    (paths,) = find_runs(run)
    summary = summarize(paths)

    assert summary.state == "unknown"
    assert (summary.step, summary.score, summary.games, summary.updated_at) == (None,) * 4
    assert summary.game == "breakout"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is missing"),
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_file_that_is_no_json_object_is_told_in_words(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "status.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(FileFault, match=told):
        load_json(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "status.json")

    with pytest.raises(FileFault, match="no regular file"):
        load_json(tmp_path / "status.json")


def test_ages() -> None:
    ages = [5, 65, 3 * 3600 + 5, 49 * 3600]
    told = [describe_age(TIME, now=TIME + timedelta(seconds=age)) for age in ages]

    assert told == ["5 s", "1 min", "3 h", "2 d"]
    assert describe_age(None, now=TIME) == "-"


def test_the_table(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("worse", scores=[1, 3], algorithm="DQN")
    make_run("better", scores=[30], state="failed", seed=4)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "config.json").write_text("{")
    (tmp_path / "runs" / "torn" / "metrics.csv").write_text("")

    assert listing.main([str(tmp_path / "runs"), "--sort", "score"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[:2] for line in lines[1:4]] == [
        ["better", "failed"],
        ["worse", "completed"],
        ["torn", "unknown"],
    ]
    assert lines[5] == "3 experiments"
    assert lines[6:] == [
        "better: RuntimeError: no more",
        "torn: config.json is damaged: it is no JSON",
        "torn: status.json is missing",
    ]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("a", scores=[1], folder=tmp_path / "one")
    make_run("a", scores=[1], folder=tmp_path / "two")
    make_run("b", scores=[1], folder=tmp_path / "two")

    assert listing.main([str(tmp_path), "--sort", "name"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["one/a", "two/a", "b"]


def test_a_folder_that_goes_away_meanwhile_is_left_out(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a", scores=[1])
    (tmp_path / "runs" / "gone").mkdir()
    real = os.scandir

    def scan(folder: Path) -> object:
        if Path(folder).name == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scan)

    assert names(tmp_path / "runs") == ["a"]


def test_filters_and_json(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("one", scores=[1, 3], algorithm="DQN")
    make_run("two", scores=[30], state="failed", game_id="ALE/Pong-v5")

    assert listing.main([str(tmp_path), "--json", "--filter", "game=pong"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["experiment_id"], run["state"], run["score"]) == ("two", "failed", 30.0)

    assert listing.main([str(tmp_path), "--json", "--filter", "algorithm=dqn"]) == 0
    assert [run["experiment_id"] for run in json.loads(capsys.readouterr().out)] == ["one"]


def test_a_trial_that_its_sweep_gave_up_is_stopped(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("a", scores=[1], state="stopped")
    make_run("b", scores=[1])

    assert listing.main([str(tmp_path), "--json", "--filter", "state=stopped"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["experiment_id"], run["state"]) == ("a", "stopped")
    with pytest.raises(SystemExit):
        listing.main(["--help"])
    assert "  stopped   the scheduler of its sweep" in capsys.readouterr().out


def test_names_that_would_move_the_terminal_are_escaped(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", scores=[1])
    (run / "config.json").write_text(json.dumps({"experiment_id": "x\x1b[2J\n" + "y" * 500}))

    assert listing.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out

    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) < 200


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nowhere"], "DIR: nowhere -> no such folder"),
        (["--sort", "size"], "--sort: invalid choice"),
        (["--filter", "state"], "FIELD=VALUE"),
        (["--filter", "stat=x"], "did you mean state?"),
        (["--filter", "state=complete"], "did you mean completed?"),
        (["--colour"], "--colour"),
    ],
)
def test_a_bad_call_is_refused_in_words(
    argv: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    assert listing.main(argv) == 2
    assert told in capsys.readouterr().err
