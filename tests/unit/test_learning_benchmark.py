"""The learning benchmark's own arithmetic, bookkeeping and report; nothing is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning import __main__ as command
from learning import train
from learning.arithmetic import (
    last_mean,
    running_mean,
    student_quantile,
    time_to_score,
    welch_ratio,
)
from learning.bars import build_answers, improvement
from learning.figures import (
    build_band,
    build_curve,
    describe_line,
    figure_entries,
    save_figure,
)
from learning.matrix import (
    Entry,
    MatrixError,
    Run,
    build_config,
    load_matrix,
    order_runs,
)
from learning.plan import describe_standings, estimate_hours, find_standings
from learning.records import (
    BadGames,
    Game,
    build_facts,
    load_games,
    load_record,
    save_games,
    save_record,
)
from learning.references import Reference, load_references, select_references
from learning.report import build_markdown, load_records, replace_results
from learning.run_folders import (
    BadRunFolder,
    check_records,
    find_entry,
    read_finished,
    read_import,
    read_retro_ml,
)

from retro_ml.core.artifacts.metrics_file import build_header, build_row
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit


def entry(side: str = "retro_ml", **fields: Any) -> Entry:
    given: dict[str, Any] = {
        "name": "tiny",
        "side": side,
        "game": "BreakoutNoFrameskip-v4",
        "algorithm": "PPO",
        "agent_steps": 2_000,
        "schedule_agent_steps": 10_000_000,
        "precision": "fp32",
        "seeds": (1, 2),
        "hours": 0.5,
    }
    return Entry.model_validate(given | fields)


def games(score: float, *, count: int = 120, seconds: float | None = 1.0) -> list[Game]:
    """One game every ten agent steps, all of one score."""
    return [
        Game(10 * number, score, 40, None if seconds is None else seconds * number)
        for number in range(1, count + 1)
    ]


def keep(run: Run, score: float, folder: Path, *, origin: str = "trained", **facts: Any) -> None:
    evaluation = {
        "mean": {"value": score + 1, "interval": {"low": score, "high": score + 2}},
        "capped": 0,
    }
    given = {"agent_steps": 2_048, "precision": "fp32", "versions": {"torch": "2"}}
    given |= {"evaluation": evaluation, "wall_clock_s": 1_800.0}
    played = games(score)
    save_record(build_facts(run, played, origin=origin, **(given | facts)), played, folder)


# Arithmetic


def test_a_running_mean_begins_with_the_hundredth_game() -> None:
    scores = [float(number) for number in range(1, 103)]

    assert running_mean(scores) == pytest.approx([50.5, 51.5, 52.5])
    assert running_mean([1.0, 2.0, 4.0], window=2) == pytest.approx([1.5, 3.0])
    assert running_mean(scores[:99]).size == 0


def test_the_last_mean_takes_what_there_is() -> None:
    assert last_mean([7.0] * 50 + [1.0] * 100) == 1.0
    assert last_mean([2.0, 4.0]) == 3.0
    assert last_mean([]) is None


def test_the_time_is_that_of_the_game_that_brings_the_mean_there() -> None:
    scores = [0.0] * 100 + [20.0] * 100
    times = [float(number) for number in range(200)]

    # 70 games of 20 in the last hundred: the 170th game.
    assert time_to_score(scores, times, score=14) == 169.0
    assert time_to_score(scores, times, score=20.5) is None


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    # scipy 1.17.1: scipy.stats.t.ppf(probability, freedom)
    [
        (0.95, 1.0, 6.313751514675037),
        (0.95, 2.7, 2.4638889362708496),
        (0.95, 5.42, 1.981062850621938),
        (0.975, 30.0, 2.0422724563012378),
    ],
)
def test_students_quantiles(probability: float, freedom: float, expected: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_the_ratio_is_welchs() -> None:
    ours, theirs = [14.39, 15.2, 13.1, 16.0, 14.8], [15.02, 14.05, 13.74]

    ratio = welch_ratio(ours, theirs)

    # scipy 1.17.1: r = scipy.stats.ttest_ind(numpy.log(ours), numpy.log(theirs), equal_var=False,
    # alternative="greater"); exp of the difference of means, exp(r.confidence_interval(0.95).low)
    assert ratio is not None
    assert ratio.value == pytest.approx(1.0284909595036513, rel=1e-9)
    assert ratio.low == pytest.approx(0.9464666799156148, rel=1e-9)
    assert (ratio.ours, ratio.theirs) == (5, 3)


def test_a_ratio_of_single_seeds_has_no_interval() -> None:
    single = welch_ratio([14.0], [7.0, 7.0])
    equal = welch_ratio([6.0, 6.0], [3.0, 3.0])

    assert single is not None
    assert single.value == pytest.approx(2.0)
    assert single.low is None
    assert equal is not None
    assert equal.low == pytest.approx(2.0)
    assert welch_ratio([14.0], []) is None
    assert welch_ratio([-20.0, 3.0], [1.0, 2.0]) is None


def test_the_probability_of_improvement_counts_pairs() -> None:
    # 3 beats 1 and 2; 2 beats 1 and draws with 2: 3.5 of 4.
    found = improvement([3.0, 2.0], [1.0, 2.0])

    assert found is not None
    assert found[0] == pytest.approx(3.5 / 4)
    assert 0.0 <= found[1].low < found[0] <= found[1].high <= 1.0
    assert improvement([3.0], [1.0, 2.0]) is None


# The matrix


def test_every_run_of_the_matrix_is_a_valid_experiment() -> None:
    entries = load_matrix()

    for run in order_runs(entries):
        config = build_config(run, output_dir="runs")
        assert config.experiment_id == run.name
        assert config.total_timesteps == run.entry.agent_steps
        assert config.resources.precision == run.entry.precision
        assert config.seed == run.seed
        if run.entry.schedule_agent_steps is not None:
            assert config.schedule_agent_steps == run.entry.schedule_agent_steps


def test_the_matrix_holds_what_is_to_be_shown() -> None:
    found = {
        (one.algorithm, one.game, one.side, one.agent_steps, one.precision): one
        for one in load_matrix()
    }
    breakout = "BreakoutNoFrameskip-v4"

    ours = found["PPO", breakout, "retro_ml", 500_000, "fp32"]
    assert len(ours.seeds) == 5
    assert ours.schedule_agent_steps == 10_000_000
    assert [(bar.measure, bar.above) for bar in ours.bars[:2]] == [
        ("last_100", 11),
        ("ratio", 0.85),
    ]
    assert len(found["PPO", breakout, "sb3", 500_000, "fp32"].seeds) == 5
    bf16 = found["PPO", breakout, "retro_ml", 500_000, "bf16"]
    assert len(bf16.seeds) == 3
    assert [bar.at_most for bar in bf16.bars if bar.measure == "time_to_score"] == [0.5]
    single = {
        ("PPO", breakout, 1_000_000): (1, 19),
        ("PPO", "PongNoFrameskip-v4", 2_000_000): (1, 13),
        ("A2C", breakout, 1_000_000): (2, 15),
        ("DQN", "ALE/Breakout-v5", 500_000): (1, 5),
    }
    for (algorithm, game, steps), (seeds, above) in single.items():
        one = found[algorithm, game, "retro_ml", steps, "auto"]
        assert (len(one.seeds), one.bars[0].above) == (seeds, above)
    assert found["DQN", "ALE/Breakout-v5", "retro_ml", 500_000, "auto"].preset == "dopamine"


def test_the_sides_take_turns() -> None:
    runs = order_runs([entry(), entry("sb3", seeds=(1, 2, 3)), entry(name="other", seeds=(7,))])

    assert [run.name for run in runs] == [
        "tiny-retro_ml-s1",
        "tiny-sb3-s1",
        "tiny-retro_ml-s2",
        "tiny-sb3-s2",
        "tiny-sb3-s3",
        "other-retro_ml-s7",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {name: a}", "side"),
        ("- {name: a, side: sb3, game: breakout, algorithm: DQN, agent_steps: 10, precision: fp32,"
         " seeds: [1], hours: 1}", "PPO in fp32 alone"),
        ("- {name: a, side: retro_ml, game: brekout, algorithm: DQN, agent_steps: 10,"
         " precision: fp32, seeds: [1], hours: 1}", "a/retro_ml: game_id"),
        ("- {name: a, side: retro_ml, game: breakout, algorithm: DQN, agent_steps: 10,"
         " precision: fp32, seeds: [1], hours: 1, bars: [{measure: ratio, to: b/sb3}]}", "b/sb3"),
    ],
)  # fmt: skip
def test_a_wrong_matrix_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(MatrixError, match=told):
        load_matrix(path)


# Records and runs


def test_games_and_facts_come_back(tmp_path: Path) -> None:
    run = Run(entry(), 1)
    played = [Game(8, 1234567.0, 40, 0.5), Game(16, -21.0, 44, None), Game(16, 0.5, 44, 2.0)]
    facts = build_facts(
        run,
        played,
        origin="adopted",
        agent_steps=16,
        precision="fp32",
        versions={},
        config={"seed": 1, "output_dir": "/home/somebody", "experiment_id": "mine"},
    )

    save_record(facts, played, tmp_path)
    record = load_record(run, tmp_path)

    assert record is not None
    assert list(record.games) == played
    assert record.facts == facts
    assert record.facts["config"] == {"seed": 1}
    assert record.last_100_mean == pytest.approx((1234567.0 - 21.0 + 0.5) / 3)
    assert not record.is_timed
    assert load_record(Run(entry(), 2), tmp_path) is None


def test_a_damaged_file_of_games_is_told(tmp_path: Path) -> None:
    path = tmp_path / "games.csv"
    path.write_text("step,score,frames,time_s\n1,x,4,\n", encoding="utf-8")
    with pytest.raises(BadGames, match="line 2"):
        load_games(path)

    path.write_text("step,frames\n1,4\n", encoding="utf-8")
    with pytest.raises(BadGames, match="no column score"):
        load_games(path)


def make_run_folder(folder: Path, run: Run, *, state: str = "completed") -> ExperimentConfig:
    """What retro_ml leaves, without a real model."""
    config = build_config(run, output_dir=folder.parent)
    config = config.model_copy(update={"experiment_id": folder.name})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    status = {"state": state, "step": 2_048, "versions": {"torch": "2"}}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    (folder / "model.zip").write_bytes(b"")
    rows = [
        (EventType.EPISODE_FINISHED, {"step": 512, "reward": 3.0, "length": 9, "frames": 36}),
        (EventType.TRAINING_STEP, {"step": 1_024, "reward": 3.0, "time_total_s": 10.0}),
        (EventType.EPISODE_FINISHED, {"step": 1_536, "reward": 5.0, "length": 9, "frames": 40}),
        (EventType.TRAINING_STEP, {"step": 2_048, "reward": 4.0, "time_total_s": 30.0}),
    ]
    lines = b"".join(build_row(MetricEvent.now(kind, "mine", data)) for kind, data in rows)
    (folder / "metrics.csv").write_bytes(build_header() + lines)
    return config


def test_a_finished_run_of_retro_ml_is_read_with_its_clock(tmp_path: Path) -> None:
    run = Run(entry(), 1)
    make_run_folder(tmp_path / "mine", run)

    finished = read_retro_ml(tmp_path / "mine")

    assert finished is not None
    # Half way between two iterations' ends.
    assert finished.games == [Game(512, 3.0, 36, 5.0), Game(1_536, 5.0, 40, 20.0)]
    assert (finished.agent_steps, finished.wall_clock_s) == (2_048, 30.0)
    assert finished.precision == "fp32"


def test_an_unfinished_run_is_not_taken_for_finished(tmp_path: Path) -> None:
    run = Run(entry(), 1)
    make_run_folder(tmp_path / "mine", run, state="interrupted")
    their = tmp_path / "theirs"
    their.mkdir()
    save_games(games(1.0), their / "games.csv")

    assert read_finished(run, tmp_path / "mine") is None
    assert read_finished(run, tmp_path / "nowhere") is None
    assert read_finished(Run(entry("sb3"), 1), their) is None


def test_a_run_with_the_matrixs_config_is_found(tmp_path: Path) -> None:
    entries = (entry(name="other", agent_steps=9_000), entry("sb3"), entry())
    config = make_run_folder(tmp_path / "mine", Run(entry(), 2))

    assert find_entry(config, entries).name == "tiny-retro_ml-s2"


@pytest.mark.parametrize(
    "fields",
    [
        {"seeds": (1, 3)},
        {"agent_steps": 3_000},
        {"agent_steps": 1_000},
        {"schedule_agent_steps": 5_000},
        {"precision": "bf16"},
        {"fields": {"clip": 0.2}},
        {"game": "PongNoFrameskip-v4"},
    ],
)
def test_another_config_is_not_adopted(fields: dict[str, Any], tmp_path: Path) -> None:
    config = make_run_folder(tmp_path / "mine", Run(entry(), 2))

    with pytest.raises(BadRunFolder, match="nearest, tiny-retro_ml-s"):
        find_entry(config, (entry(**fields), entry("sb3")))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command works in a folder of its own, with a matrix of two entries."""
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(command, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(command, "DATA", tmp_path / "docs/data/learning")
    monkeypatch.setattr(command, "load_matrix", lambda: (entry(), entry("sb3")))
    monkeypatch.setattr(command, "write_report", lambda entries, docs: None)
    monkeypatch.setattr(command.signal, "signal", lambda signum, handler: None)
    return tmp_path


def test_adopting_keeps_the_run_and_refuses_another(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"mean": {"value": 4.5, "interval": {"low": 4, "high": 5}}, "capped": 0}
    monkeypatch.setattr(command, "evaluate", lambda *args, **options: answer)
    make_run_folder(place / "mine", Run(entry(), 2))
    make_run_folder(place / "other", Run(entry(agent_steps=4_000), 2))

    assert command.main(["--adopt", str(place / "mine")]) == 0
    record = load_record(Run(entry(), 2), place / "docs/data/learning")
    assert record is not None
    assert record.facts["origin"] == "adopted"
    assert record.last_100_mean == 4.0
    assert str(place) not in json.dumps(record.facts)

    assert command.main(["--adopt", str(place / "other")]) == 2
    assert "total_timesteps: 4,000 there, 2,000 now" in capsys.readouterr().err
    assert command.main(["--adopt", str(place / "mine")]) == 2
    assert "is done" in capsys.readouterr().err
    assert command.main(["--adopt", str(place / "nowhere")]) == 2


def test_importing_says_where_games_are_from(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "theirs.csv"
    path.write_text("seed,agent_steps,score,frames\n1,1000,3,40\n1,1990,5,44\n", encoding="utf-8")

    assert command.main(["--import-sb3", str(path), "--source", "a colleague"]) == 0
    record = load_record(Run(entry("sb3"), 1), place / "docs/data/learning")
    assert record is not None
    assert (record.facts["origin"], record.facts["source"]) == ("imported", "a colleague")
    assert record.facts["evaluation"] is None
    assert [game.score for game in record.games] == [3.0, 5.0]

    path.write_text("seed,agent_steps,score,frames\n2,500,3,40\n", encoding="utf-8")
    assert command.main(["--import-sb3", str(path), "--source", "x"]) == 2
    assert "ends after 500 -> a run of 2,000 agent steps" in capsys.readouterr().err
    path.write_text("seed,agent_steps,score,frames\n9,2000,3,40\n", encoding="utf-8")
    assert command.main(["--import-sb3", str(path), "--source", "x"]) == 2
    path.write_text("seed,score\n9,2000\n", encoding="utf-8")
    with pytest.raises(BadRunFolder, match="KeyError"):
        read_import(path)


def keep_with_config(run: Run, score: float, folder: Path) -> None:
    config = build_config(run, output_dir="elsewhere").model_dump(mode="json")
    keep(run, score, folder, config=config)


def test_records_of_another_matrix_are_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place / "docs/data/learning"
    keep_with_config(Run(entry(), 1), 3.0, data)
    keep(Run(entry("sb3"), 1), 3.0, data)
    check_records((entry(), entry("sb3")), data)

    for changed in (entry(fields={"clip": 0.2}), entry(agent_steps=3_000), entry(precision="bf16")):
        with pytest.raises(MatrixError, match="tiny-retro_ml-s1 is kept with another config"):
            check_records((changed,), data)
    with pytest.raises(MatrixError, match="agent_steps: 2,048 there, 4,000 now -> remove its"):
        check_records((entry("sb3", agent_steps=4_000),), data)

    keep_with_config(Run(entry(fields={"clip": 0.2}), 2), 3.0, data)
    assert command.main(["--list"]) == 2
    error = capsys.readouterr().err
    assert "tiny-retro_ml-s2 is kept with another config: ppo.clip: 0.2 there, 0.1 now" in error


def test_what_is_done_is_not_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, made = place / "docs/data/learning", []

    def pretend(run: Run, **options: Any) -> None:
        made.append(run.name)
        keep(run, 3.0, data)
        if len(made) == 2:
            raise train.Deadline

    monkeypatch.setattr(command, "train", pretend)
    keep(Run(entry(), 1), 3.0, data)

    assert command.main([]) == 0
    assert made == ["tiny-sb3-s1", "tiny-retro_ml-s2"]
    assert command.main([]) == 0
    assert made[2:] == ["tiny-sb3-s2"]


def test_a_run_that_fails_stops_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def fail(run: Run, **how: Any) -> None:
        begun.append(run.name)
        raise train.Failed(f"{run.name} ended with exit code 1")

    monkeypatch.setattr(command, "train", fail)

    assert command.main([]) == 1
    assert begun == ["tiny-retro_ml-s1", "tiny-sb3-s1", "tiny-retro_ml-s2", "tiny-sb3-s2"]
    assert "error: tiny-sb3-s1 ended with exit code 1" in capsys.readouterr().err


def test_a_run_that_cannot_go_on_is_not_begun_without_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(command, "train", lambda run, **options: made.append(run.name))

    assert command.main(["--hours", "0.4"]) == 0
    assert made == ["tiny-retro_ml-s1", "tiny-retro_ml-s2"]


def test_one_call_at_a_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with train.hold_lock(place / "runs") as lock:
        lock.write(b"tiny-retro_ml-s1")
        lock.flush()
        assert train.find_running(place / "runs") == "tiny-retro_ml-s1"
        assert command.main([]) == 2
    assert "tiny-retro_ml-s1 is under way" in capsys.readouterr().err
    assert train.find_running(place / "runs") is None


def test_a_run_is_gone_on_with_by_the_same_command(tmp_path: Path) -> None:
    run, their = Run(entry(), 1), Run(entry("sb3"), 1)
    (tmp_path / their.name).mkdir()
    (tmp_path / their.name / "games.csv").touch()

    first, second = train.build_command(run, tmp_path), train.build_command(run, tmp_path)
    began_anew = train.build_command(their, tmp_path)

    config = ExperimentConfig.model_validate_json(Path(first[-1]).read_text(encoding="utf-8"))
    assert first == second
    assert config.experiment_dir == tmp_path / run.name
    assert began_anew[3] == "learning.sb3_run"
    assert not (tmp_path / their.name).exists()


def test_standings_tell_what_is_left(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    keep(Run(entry(), 1), 3.0, data)
    (runs / "tiny-retro_ml-s2").mkdir(parents=True)
    status = json.dumps({"step": 1_500})
    (runs / "tiny-retro_ml-s2/status.json").write_text(status, encoding="utf-8")
    (runs / "tiny-sb3-s1").mkdir()
    save_games(games(1.0), runs / "tiny-sb3-s1/games.csv")

    found = find_standings([entry(), entry("sb3", hours=0.8)], runs=runs, data=data)

    assert [(one.run.name, one.state, one.agent_steps) for one in found] == [
        ("tiny-retro_ml-s1", "done", 2_048),
        ("tiny-sb3-s1", "begun", 1_200),
        ("tiny-retro_ml-s2", "begun", 1_500),
        ("tiny-sb3-s2", "missing", 0),
    ]
    # A quarter of the half hour that the finished one took; theirs have to begin anew.
    assert [one.hours_left for one in found] == pytest.approx([0.0, 0.8, 0.125, 0.8])
    assert "1 of 4 runs done, about 1.7 h left" in describe_standings(found)


def test_the_clock_of_adopted_runs_is_no_estimate(tmp_path: Path) -> None:
    keep(Run(entry(), 1), 3.0, tmp_path, origin="adopted", wall_clock_s=9e9)

    assert estimate_hours(entry(), tmp_path) == 0.5


# Bars and report


BARS = (
    {"measure": "last_100", "above": 11},
    {"measure": "ratio", "to": "tiny/sb3", "above": 0.85, "goal": 1},
    {"measure": "within_spread", "to": "tiny/sb3"},
    {"measure": "time_to_score", "to": "tiny/sb3", "score": 3, "at_most": 0.5},
)


def statuses(entries: list[Entry], folder: Path) -> list[str]:
    return [answer.status for answer in build_answers(entries, load_records(entries, folder))]


def test_bars_are_judged_when_all_their_runs_are_there(tmp_path: Path) -> None:
    entries = [entry(bars=BARS), entry("sb3")]
    assert statuses(entries, tmp_path) == ["not run yet"] * 4

    keep(Run(entries[0], 1), 14.0, tmp_path)
    keep(Run(entries[1], 1), 14.2, tmp_path)
    assert statuses(entries, tmp_path) == ["so far"] * 4

    keep(Run(entries[0], 2), 14.4, tmp_path)
    keep(Run(entries[1], 2), 14.1, tmp_path)
    # Their clocks are equal: a ratio of 1 where 0.5 is asked.
    assert statuses(entries, tmp_path) == ["met", "met", "met", "missed"]


def test_a_missed_bar_is_missed(tmp_path: Path) -> None:
    entries = [entry(bars=BARS), entry("sb3")]
    for seed, ours, theirs in ((1, 5.0, 14.0), (2, 6.0, 14.5)):
        keep(Run(entries[0], seed), ours, tmp_path)
        keep(Run(entries[1], seed), theirs, tmp_path)

    assert statuses(entries, tmp_path)[:3] == ["missed", "missed", "missed"]


def test_single_seeds_decide_no_ratio(tmp_path: Path) -> None:
    entries = [entry(bars=BARS[1:2], seeds=(1,)), entry("sb3", seeds=(1,))]
    keep(Run(entries[0], 1), 14.0, tmp_path)
    keep(Run(entries[1], 1), 7.0, tmp_path)

    assert statuses(entries, tmp_path) == ["undecided"]


def test_clocks_of_other_machines_do_not_count(tmp_path: Path) -> None:
    entries = [entry(bars=BARS[3:], seeds=(1,)), entry("sb3", seeds=(1,))]
    keep(Run(entries[0], 1), 14.0, tmp_path)
    keep(Run(entries[1], 1), 14.0, tmp_path, origin="imported", source="elsewhere")

    answer = build_answers(entries, load_records(entries, tmp_path))[0]

    assert answer.status == "undecided"
    assert answer.found == "no timed run of Stable-Baselines3's tiny"


def test_the_report_shows_what_there_is_and_nothing_else(tmp_path: Path) -> None:
    entries = [entry(bars=BARS, tried="a longer warm-up"), entry("sb3")]
    keep(Run(entries[0], 1), 14.0, tmp_path)
    keep(Run(entries[1], 1), 13.0, tmp_path, origin="imported", source="a colleague | 2024",
         evaluation=None)  # fmt: skip
    curve = [Reference("Breakout", "PPO", "zoo", 2_000, 14.7, 5.7, 1, "no sticky", "a | b")]

    text = build_markdown(
        entries,
        load_records(entries, tmp_path),
        figures={"tiny": "images/learning-tiny.svg"},
        references=(curve, []),
    )

    ours = "| retro_ml | 1 | 14.00 | 15.00 (14.00 to 16.00) | 120 | 2,048 | 0.50 | trained, fp32 |"
    assert ours in text
    assert "| retro_ml | 2 | not run yet |" in text
    assert "| Stable-Baselines3 | 1 | 13.00 | no model | 120 | 2,048 |  | imported, fp32 |" in text
    assert "14.00; 1 of 2 seeds | so far |" in text
    assert "1.08, too few seeds for an interval; seeds: 1 over 1" in text
    assert "probability of improvement" not in text
    assert "imported; a colleague | 2024; torch 2" in text
    assert "Tried: a longer warm-up" in text
    assert "Published at 2,000 agent steps: zoo 14.7 (1 seed)." in text
    assert text.count("| PPO | Breakout | zoo | 2,000 | 14.7 | 5.7 | 1 | no sticky | a / b |") == 1
    assert "![Learning curves of tiny](images/learning-tiny.svg)" in text


def test_the_report_takes_its_place_in_the_document() -> None:
    document = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"

    found = replace_results(document, "new\n")

    assert found == "before\n<!-- results -->\n\nnew\n\n<!-- end of results -->\nafter\n"
    assert replace_results(found, "new\n") == found
    with pytest.raises(ValueError, match="have to stand"):
        replace_results("nothing", "new\n")


def test_curves_and_bands(tmp_path: Path) -> None:
    run = Run(entry(), 1)
    keep(run, 3.0, tmp_path)
    record = load_record(run, tmp_path)
    assert record is not None

    steps, means = build_curve(record)
    band = build_band([(steps, means), (steps + 100, means + 2)])

    assert (steps[0], steps[-1]) == (1_000, 1_200)
    assert means == pytest.approx(np.full(21, 3.0))
    assert band is not None
    assert (band[0][0], band[0][-1]) == (1_100, 1_200)
    assert band[1].mean(axis=0) == pytest.approx(np.full(len(band[0]), 4.0))
    assert build_band([(steps, means), (steps + 5_000, means)]) is None


def test_a_figure_shows_what_its_bars_speak_of() -> None:
    bar = {"measure": "within_spread", "to": "tiny/retro_ml"}
    entries = [entry(), entry("sb3"), entry(name="half", bars=(bar,))]

    assert [one.key for one in figure_entries("half", entries)] == [
        "half/retro_ml",
        "tiny/retro_ml",
    ]
    assert [one.key for one in figure_entries("tiny", entries)] == ["tiny/retro_ml", "tiny/sb3"]


def test_the_legend_says_how_many_of_the_seeds_are_drawn() -> None:
    one, five = entry(seeds=(1,)), entry("sb3", seeds=(1, 2, 3, 4, 5))

    assert describe_line(one, drawn=1, averaged=False) == "retro_ml fp32, 1 seed"
    assert describe_line(five, drawn=3, averaged=True) == (
        "Stable-Baselines3 fp32, 3 of 5 seeds, mean and range"
    )
    assert describe_line(five, drawn=5, averaged=False) == "Stable-Baselines3 fp32, 5 seeds"


def test_references_are_of_the_same_game_and_protocol(tmp_path: Path) -> None:
    head = "game,algorithm,implementation,{},score,std,seeds,protocol,source\n"
    curves = "Breakout,PPO,zoo,500000,14.74,5.72,1,NoFrameskip-v4 no sticky,there\n"
    curves += "Breakout,PPO,other,500000,9,,5,sticky 0.25,there\n"
    (tmp_path / "reference_curves.csv").write_text(head.format("agent_steps") + curves)
    scores = "Pong,PPO,zoo,40000000,20.9,0.1,1,no sticky,there\n"
    (tmp_path / "reference_scores.csv").write_text(head.format("frames") + scores)

    points, finals = load_references(tmp_path)

    assert [one.implementation for one in select_references(points, entry())] == ["zoo"]
    sticky = entry(game="ALE/Breakout-v5")
    assert [one.std for one in select_references(points, sticky)] == [None]
    assert select_references(finals, entry()) == []
    assert finals[0].agent_steps == 10_000_000


def test_a_figure_is_drawn_where_there_is_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra bench draws figures")
    entries = [entry(), entry("sb3"), entry(name="other")]
    keep(Run(entries[0], 1), 3.0, tmp_path)
    keep(Run(entries[0], 2), 4.0, tmp_path)
    records = load_records(entries, tmp_path)
    dot = Reference("Breakout", "PPO", "zoo", 2_000, 14.7, 5.7, 1, "no sticky", "there")

    path = save_figure("tiny", entries, records, references=[dot], folder=tmp_path)
    first = path.read_bytes() if path is not None else b""
    save_figure("tiny", entries, records, references=[dot], folder=tmp_path)

    assert path is not None
    assert path.name == "learning-tiny.svg"
    assert path.with_suffix(".png").exists()
    assert first.startswith(b"<?xml")
    assert path.read_bytes() == first
    assert save_figure("other", entries, records, references=[], folder=tmp_path) is None
