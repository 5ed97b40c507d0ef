"""Runs taken together: what counts, curves, intervals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retro_ml.evaluation import statistics
from retro_ml.reporting import report_tables
from retro_ml.reporting.groups import Group, describe_uncounted, group_runs, interval_of
from retro_ml.reporting.report_tables import (
    aggregate_table,
    describe_scores,
    runs_table,
    scores_table,
)
from retro_ml.reporting.run_folders import find_runs
from retro_ml.reporting.run_records import load_run

pytestmark = pytest.mark.unit

MakeRun = Callable[..., Path]


def groups_below(folder: Path) -> list[Group]:
    return group_runs([load_run(paths) for paths in find_runs(folder)])


def test_seeds_are_one_group_and_settings_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(f"a{seed}", scores=[1, 2], seed=seed)
        make_run(f"b{seed}", scores=[5, 9], seed=seed, ppo={"clip": 0.3})
        make_run(f"c{seed}", scores=[1], seed=seed, algorithm="DQN", total_timesteps=200)

    groups = groups_below(tmp_path)

    # By game and algorithm, the best first.
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("DQN", 2),
        ("PPO, clip 0.3", 2),
        ("PPO, clip 0.1", 2),
    ]
    assert groups[1].settings == {"ppo.clip": 0.3}


def test_what_only_watches_a_run_makes_no_other_group(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[1, 2], seed=1)
    make_run("b", scores=[1, 2], seed=2, checkpointing={"keep": 7}, evaluation={"episodes": 3})

    assert len(groups_below(tmp_path)) == 1


def test_runs_that_were_stopped_early_do_not_count_beside_finished_ones(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("a", scores=[4, 4], seed=1, total_timesteps=400)
    make_run("b", scores=[0], seed=2, state="failed", total_timesteps=400)
    (group,) = groups_below(tmp_path)
    assert group.score() == 4

    make_run("c", scores=[8], seed=3, state="failed", folder=tmp_path / "only")
    (group,) = groups_below(tmp_path / "only")
    assert group.score() == 8


def test_evaluations_count_where_every_run_has_one(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[1], seed=1, evaluation=[10, 20])
    make_run("b", scores=[3], seed=2)
    (group,) = groups_below(tmp_path)
    assert (group.is_evaluated, group.score()) == (False, 2)
    assert describe_scores(group) == "the only training game"

    # Another group of the game without: the two would not be comparable.
    make_run("x", scores=[1], ppo={"clip": 0.3}, folder=tmp_path / "runs2")
    make_run("y", scores=[1], evaluation=[9], folder=tmp_path / "runs2")
    assert [group.is_evaluated for group in groups_below(tmp_path / "runs2")] == [False, False]

    make_run("c", scores=[1], seed=1, evaluation=[10, 20], folder=tmp_path / "both")
    make_run("d", scores=[3], seed=2, evaluation=[30], folder=tmp_path / "both")
    (group,) = groups_below(tmp_path / "both")
    assert (group.is_evaluated, group.score()) == (True, 22.5)
    assert describe_scores(group) == "1 to 2 evaluation games (noop)"


def test_an_evaluation_of_an_earlier_model_does_not_count(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("a", scores=[1, 3], seed=1, evaluation=[90], evaluated_at=100)
    (group,) = groups_below(tmp_path)

    assert (group.is_evaluated, group.score()) == (False, 2)
    assert describe_scores(group) == "the last 2 training games"
    assert describe_uncounted([group]) == [
        "Evaluated before training went on, which does not count: a (100 of 200 agent steps). "
        "`retro-ml evaluate` them again for the score of the model as it is now."
    ]
    (row,) = runs_table([group], lambda run: "").rows
    assert (row[8], row[-1]) == (90, "evaluated at 100 agent steps")


def test_of_two_protocols_the_evaluation_of_the_present_model_counts(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("a", scores=[1, 3], evaluation=[90], evaluated_at=100)
    other = json.loads((run / "evaluation-noop.json").read_text())
    other |= {"trained_agent_steps": 200, "episodes": [{"score": 7}]}
    (run / "evaluation-machado.json").write_text(json.dumps(other))
    (group,) = groups_below(tmp_path)

    assert (group.is_evaluated, group.score()) == (True, 7)
    assert describe_uncounted([group]) == []


def test_a_seed_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a.before-20260102-030405", scores=[1, 1], seed=1)
    newest = make_run("a", scores=[5, 5], seed=1)
    make_run("cut-off", scores=[9], seed=1, state="lost", total_timesteps=200)
    make_run("b", scores=[7, 7], seed=2)
    status = json.loads((newest / "status.json").read_text())
    status["updated_at"] = "2026-01-03T00:00:00+00:00"
    (newest / "status.json").write_text(json.dumps(status))
    (group,) = groups_below(tmp_path)

    assert [run.name for run in group.counted] == ["a", "b"]
    assert list(group.final_scores()) == [5, 7]
    assert describe_uncounted([group]) == [
        "a.before-20260102-030405, cut-off have the config and seed of another run and do not "
        "count: of such runs the one that came furthest does, the newest of equals."
    ]
    remarks = {row[0]: row[-1] for row in runs_table([group], lambda run: "").rows}
    assert remarks == {
        "a.before-20260102-030405": "not counted: config and seed of another run",
        "a": None,
        "cut-off": "not counted: config and seed of another run",
        "b": None,
    }


def test_of_unfinished_runs_of_a_seed_the_furthest_counts(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("far", scores=[1, 1, 1], seed=1, state="interrupted", total_timesteps=400)
    make_run("near", scores=[5], seed=1, state="interrupted", total_timesteps=400)
    (group,) = groups_below(tmp_path)

    assert [run.name for run in group.counted] == ["far"]


def test_the_curve_is_the_mean_over_runs_with_its_band(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[2, 2, 2], seed=1)
    make_run("b", scores=[4, 4, 4], seed=2)
    curve = groups_below(tmp_path)[0].curve

    assert curve is not None
    assert (curve.agent_steps[0], curve.agent_steps[-1]) == (100, 300)
    assert np.allclose(curve.mean, 3)
    assert curve.low is not None
    assert curve.high is not None
    # Of two runs a resample is (2, 2), (2, 4), (4, 2) or (4, 4).
    assert np.allclose(curve.low, 2)
    assert np.allclose(curve.high, 4)


def test_a_run_that_finished_no_game_has_no_score(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[])
    (group,) = groups_below(tmp_path)

    assert (group.score(), group.interval, group.curve) == (None, None, None)
    assert scores_table([group]).rows[0][4:] == (None,) * 10


def test_intervals_are_stratified_by_game() -> None:
    # Within a game the runs agree, so nothing varies however far the games lie apart.
    interval = interval_of(statistics.mean, np.array([1.0, 1.0]), np.array([9.0, 9.0, 9.0]))

    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((5.8, 5.8))


def test_no_interval_where_no_game_has_two_runs() -> None:
    assert interval_of(statistics.mean, np.array([1.0]), np.array([2.0])) is None


def test_many_games_take_no_longer_than_their_runs() -> None:
    samples = [np.arange(5.0) for _ in range(57)]

    interval = interval_of(statistics.interquartile_mean, *samples)

    assert interval is not None
    assert interval.low < 2 < interval.high


def test_human_normalised_over_games(make_run: MakeRun, tmp_path: Path) -> None:
    # Breakout: random 1.7, human 30.5; Pong: random -20.7, human 14.6.
    make_run("a", scores=[30.5], seed=1)
    make_run("b", scores=[1.7], seed=2)
    make_run("c", scores=[14.6], seed=1, game_id="pong")

    (row,) = aggregate_table(groups_below(tmp_path)).rows
    label, games, runs, iqm, interval, mean, _, median, gap = row

    assert (label, games, runs) == ("PPO", 2, 3)
    # A quarter of three scores, rounded down, is none: the IQM is the mean of 1, 0 and 1.
    assert iqm == pytest.approx(2 / 3)
    assert mean == pytest.approx(2 / 3)
    assert median == pytest.approx((0.5 + 1) / 2)
    assert gap == pytest.approx(1 / 3)
    assert interval.low == pytest.approx(1 / 3)


def test_a_thousand_groups_are_each_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Labelled:
        @property
        def label(self) -> str:
            asked.append(self)
            return f"PPO, clip {len(asked)}"

    monkeypatch.setattr(report_tables, "_aggregate_row", lambda label, own: (label, *[0] * 8))
    groups = [Labelled() for _ in range(1_000)]
    assert len(aggregate_table(groups).rows) == len(asked) == 1_000  # type: ignore[arg-type]


def test_the_scores_of_one_game_have_a_human_normalised_iqm(
    make_run: MakeRun, tmp_path: Path
) -> None:
    # Breakout: random 1.7, human 30.5, so these are 0, 1, 1, 1 and 5 of a human.
    for seed, score in enumerate((1.7, 30.5, 30.5, 30.5, 145.7)):
        make_run(f"a{seed}", scores=[score], seed=seed)
    (group,) = groups_below(tmp_path)
    table = scores_table([group])
    row = dict(zip([column.csv_names[0] for column in table.columns], table.rows[0], strict=True))

    # A quarter of five scores, rounded down, is one: the least and the best are left out.
    assert row["iqm"] == pytest.approx(30.5)
    assert row["human_normalised_iqm"] == pytest.approx(1.0)
    assert row["human_normalised"] == pytest.approx(8 / 5)
    interval = row["human_normalised_iqm_low"]
    ours, theirs = statistics.bootstrap(
        statistics.interquartile_mean, np.array([[0.0], [1.0], [1.0], [1.0], [5.0]])
    )
    assert (interval.low, interval.high) == pytest.approx((float(ours), float(theirs)))
    assert interval.low < 1.0 < interval.high
    assert interval != row["human_normalised_low"]
    headings = [column.heading for column in table.columns if column.in_page]
    assert headings[5:10] == [
        "IQM",
        "mean, human = 1",
        "IQM, human = 1",
        "its 95 % interval",
        "score over",
    ]
    assert b"human_normalised_iqm,human_normalised_iqm_low" in table.as_csv()


def test_of_a_single_run_the_iqm_is_over_its_games(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[1.7, 30.5, 30.5, 145.7])
    (row,) = scores_table(groups_below(tmp_path)).rows

    assert row[-1] == "games of one run"
    assert row[10] == pytest.approx(1.0)
    assert row[11].low < 1.0 < row[11].high
