"""Runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retro_ml import compare as command

pytestmark = pytest.mark.unit

MakeRun = Callable[..., Path]


def compare(capsys: pytest.CaptureFixture[str], *folders: Path) -> dict:
    assert command.main([*map(str, folders), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_runs(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    short = make_run("short", scores=[2, 4], seed=1, total_timesteps=400)
    long = make_run("long", scores=[1, 1, 10, 10], seed=1, ppo={"clip": 0.3})

    found = compare(capsys, short, long)

    assert found["sides"] == ["short", "long"]
    assert found["differences"] == {"ppo.clip": [0.1, 0.3]}
    first, second = found["standings"]
    assert first["equal_agent_steps"] == second["equal_agent_steps"] == 200
    assert (first["score_at_equal"], second["score_at_equal"]) == (3.0, 1.0)
    assert (first["score"], second["score"]) == (3.0, 5.5)
    assert second["probability_of_improvement"] is None  # one run each


def test_seeds_against_seeds(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (old, new) in enumerate([(1, 2), (2, 3)]):
        make_run(f"s{seed}", scores=[old], seed=seed, folder=tmp_path / "old")
        make_run(f"s{seed}", scores=[new], seed=seed, folder=tmp_path / "new")

    found = compare(capsys, tmp_path / "old", tmp_path / "new")

    assert found["differences"] == {}
    assert [standing["score"] for standing in found["standings"]] == [1.5, 2.5]
    # Pairs (2, 1), (2, 2), (3, 1), (3, 2): three wins and a draw.
    assert found["standings"][1]["probability_of_improvement"] == 0.875
    assert found["standings"][1]["probability_interval"]["high"] == 1.0


def test_a_seed_counts_once_and_an_earlier_models_evaluation_not_at_all(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make_run("a.before-20260102-030405", scores=[1], seed=1, folder=old, state="failed")
    make_run("a", scores=[3], seed=1, folder=old, evaluation=[9])
    make_run("a", scores=[5, 7], seed=1, folder=new, evaluation=[90], evaluated_at=100)
    # Neither is the other's: what is compared may be a sweep of one seed.
    make_run("b", scores=[8, 8], seed=1, folder=new, evaluation=[80], ppo={"clip": 0.3})

    found = compare(capsys, old, new)
    standings = [(standing["runs"], standing["score"]) for standing in found["standings"]]
    assert standings == [(1, 3), (2, 7)]
    doubles, past = found["notices"]
    assert doubles.startswith("a.before-20260102-030405 has the config and seed of another run")
    assert "does not count: a (100 of 200 agent steps)" in past

    assert command.main([str(old), str(new)]) == 0
    assert capsys.readouterr().err.splitlines() == [f"warning: {doubles}", f"warning: {past}"]


def test_the_words(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("a", scores=[2, 4], seed=1)
    make_run("b", scores=[2, 8], seed=2, state="running")
    make_run("c", scores=[-20], game_id="pong", total_timesteps=200)

    assert command.main([str(tmp_path / "runs" / name) for name in "abc"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].split() == ["what", "differs", "a", "b", "c"]
    assert ["seed", "1", "2", "0"] in [line.split() for line in lines]
    assert any("score at 200" in line for line in lines)
    assert any(line.startswith("b") and "lost" in line and "5.0" in line for line in lines)
    assert lines.count("not every side has a run of this game") == 2


def test_sides_of_the_same_name(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run("a", scores=[1], folder=tmp_path / "old" / "runs")
    make_run("a", scores=[2], folder=tmp_path / "new" / "runs")
    monkeypatch.chdir(tmp_path)

    found = compare(capsys, Path("old/runs"), Path("new/runs"), Path("old/runs"))

    assert found["sides"] == ["old/runs", "new/runs", "old/runs (2)"]
    standings = [(standing["side"], standing["score"]) for standing in found["standings"]]
    assert standings == [("old/runs", 1.0), ("new/runs", 2.0), ("old/runs (2)", 1.0)]


def test_runs_that_cannot_be_read(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, torn = make_run("a", scores=[1]), make_run("b", scores=[1])
    (torn / "config.json").write_text("{")

    assert command.main([str(good)]) == 2
    assert "only one is given" in capsys.readouterr().err
    assert command.main([str(good), str(torn), str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert "config.json is damaged" in err
    assert "no such folder" in err
