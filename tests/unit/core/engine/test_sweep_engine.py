"""The order of a sweep, with a scripted launcher: files, standings, resume, budgets, signals."""

import csv
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from retro_ml.core.artifacts.checkpoint_files import adopt_checkpoint, save_checkpoint_folder
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.engine import lock_renewal, run_lock
from retro_ml.core.engine.launcher import LaunchError, Trial, TrialEnd, TrialSource
from retro_ml.core.engine.processes import Process
from retro_ml.core.engine.run_claim import Claim
from retro_ml.core.engine.run_faults import BadMachine, BadRunFolder
from retro_ml.core.engine.run_folder import OpenRun, open_run
from retro_ml.core.engine.run_lock import Lease, RunLock
from retro_ml.core.engine.sweep_engine import SweepEngine
from retro_ml.core.engine.sweep_progress import SweepProgress
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit
QUIET = RunOptions(progress="quiet")
Play = Callable[["ScriptedLauncher", Trial], str]


class ScriptedLauncher:
    """Plays trials one after the other as `play(self, trial)` does, which returns their state."""

    def __init__(self, play: Play | None = None) -> None:
        self._play = play or (lambda launcher, trial: launcher.train(trial))
        self.begun: list[Trial] = []
        self.stop_requests = 0
        self.source: TrialSource
        self.publish: Callable[[MetricEvent], None]

    def launch_sweep(
        self,
        sweep: SweepConfig,
        source: TrialSource,
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> None:
        """Play until there are no more."""
        self.source, self.publish = source, publish
        while (trial := source.next_trial()) is not None:
            self.begun.append(trial)
            name = trial.config.experiment_id
            state = self._play(self, trial)
            error = "the learner died" if state == "failed" else None
            source.trial_ended(TrialEnd(name, state, error))  # type: ignore[arg-type]

    def request_stop(self) -> None:
        """Count the request."""
        self.stop_requests += 1

    @property
    def names(self) -> list[str]:
        """Of the trials that were begun."""
        return [trial.config.experiment_id for trial in self.begun]

    def tell(self, trial: Trial, kind: EventType, **data: Any) -> None:
        """Publish one event of the trial."""
        self.publish(MetricEvent.now(kind, trial.config.experiment_id, data))

    def train(self, trial: Trial, *, iterations: int = 2) -> str:
        """Iterations of 10 agent steps, as far as the trial's end, with a checkpoint after each.

        Its score is its seed plus a hundredth of its agent steps.
        """
        first = 0
        if trial.restore_from is not None:
            first = int(trial.restore_from.name.removeprefix("step-"))
        self.tell(trial, EventType.RUN_STARTED, from_step=first, device="cpu", precision="fp32")
        for _ in range(iterations):
            step = first = first + 10
            score = trial.config.seed + step / 100
            self.tell(trial, EventType.EPISODE_FINISHED, step=step, reward=score, length=9)
            row = {"step": step, "reward": score, "games": step // 10, "iteration": step // 10}
            self.tell(trial, EventType.TRAINING_STEP, **row)
            folder = trial.config.paths.checkpoint_dir(step)
            save_checkpoint_folder(folder, save_module, facts={"action_meanings": ["NOOP"]})
            self.tell(trial, EventType.CHECKPOINT_SAVED, step=step, path=str(folder))
            if step >= trial.config.total_timesteps:
                return "completed"
            if self.source.must_end(trial.config.experiment_id):
                break
        return "interrupted"


def save_module(folder: Path) -> list[Path]:
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, folder / "module.safetensors")
    return []


def normalise(game: str, score: float) -> float | None:
    """A game whose human scores 10 and whose random agent scores 0."""
    return score / 10 if game != "pitfall" else None


@pytest.fixture(autouse=True)
def _everything_is_given_back() -> Iterator[None]:
    def state() -> list[Any]:
        signals = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
        return [*signals, threading.active_count(), sorted(os.listdir("/proc/self/fd"))]

    before = state()
    yield
    assert state() == before


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., SweepConfig]:
    def build(**fields: Any) -> SweepConfig:
        defaults: dict[str, Any] = {
            "name": "s",
            "output_dir": str(tmp_path),
            "base": {"game_id": "pong", "total_timesteps": 20},
            "grid": {"seed": [1, 2, 3]},
        }
        return SweepConfig(**{**defaults, **fields})

    return build


Make = Callable[..., SweepConfig]


def run(
    config: SweepConfig,
    launcher: ScriptedLauncher | None = None,
    bus: MetricEventBus | None = None,
    options: RunOptions = QUIET,
) -> SweepResult:
    launcher = launcher or ScriptedLauncher()
    engine = SweepEngine(config, bus, launcher=launcher, normalise=normalise, options=options)
    return engine.run()


def states(result: SweepResult) -> list[str]:
    return [one.state for one in result.standings]


def status(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return document


def test_each_trial_is_an_experiment_with_all_its_files(make: Make, tmp_path: Path) -> None:
    result = run(make())
    assert (result.success, result.exit_code, result.error) == (True, 0, None)
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {
        "sweep.json",
        "status.json",
        "sweep.log",
        "leaderboard.csv",
        "leaderboard.json",
        "pong-ppo-s1",
        "pong-ppo-s2",
        "pong-ppo-s3",
    }
    for seed in (1, 2, 3):
        folder = tmp_path / "s" / f"pong-ppo-s{seed}"
        files = {path.name for path in folder.iterdir()}
        assert files == {
            "config.json",
            "status.json",
            "metrics.csv",
            "metrics.json",
            "events.log",
            "training.log",
            "model.zip",
            "tensorboard",
            "checkpoints",
        }
        assert status(folder)["state"] == "completed"
        assert f"reward {seed + 0.2}" in (folder / "training.log").read_text()
        for other in {1, 2, 3} - {seed}:
            assert f"reward {other + 0.2}" not in (folder / "training.log").read_text()


def test_one_bus_has_the_events_of_all_trials_in_order(make: Make) -> None:
    events: list[MetricEvent] = []
    bus = MetricEventBus()
    bus.subscribe(None, events.append)
    run(make(), bus=bus)
    for seed in (1, 2, 3):
        kinds = [e.event_type.value for e in events if e.experiment_id == f"pong-ppo-s{seed}"]
        iteration = ["episode_finished", "training_step", "checkpoint_saved"]
        assert kinds == ["run_started", *iteration, *iteration, "run_completed"]


def test_the_leaderboard_ranks_trials_and_their_combinations(make: Make, tmp_path: Path) -> None:
    grid = {"game_id": ["pong", "qbert"], "algorithm": ["PPO", "A2C"], "seed": [1, 3]}

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        return launcher.train(trial, iterations=2 if trial.config.algorithm == "PPO" else 1)

    run(make(grid=grid, base={"total_timesteps": 20}), ScriptedLauncher(play))
    with (tmp_path / "s" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    combinations = [row for row in rows if row["level"] == "combination"]
    assert [(r["rank"], r["game"], r["algorithm"], r["score"]) for r in combinations] == [
        ("1", "pong", "PPO", "2.2"),  # (1.2 + 3.2) / 2
        ("2", "pong", "A2C", "2.1"),
        ("1", "qbert", "PPO", "2.2"),
        ("2", "qbert", "A2C", "2.1"),
    ]
    assert [float(row["human_normalised"]) for row in combinations[:2]] == pytest.approx(
        [0.22, 0.21]
    )
    trials = [row["experiment_id"] for row in rows if row["level"] == "trial"]
    assert trials[:4] == ["pong-ppo-s3", "pong-a2c-s3", "pong-ppo-s1", "pong-a2c-s1"]
    document = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
    assert [one["score"] for one in document["combinations"]] == [2.2, 2.1, 2.2, 2.1]
    assert len(document["trials"]) == 8


def test_equal_scores_share_a_place_and_failed_trials_have_none(make: Make, tmp_path: Path) -> None:
    scores = {"PPO": (2.0, 4.0), "A2C": (3.0, 3.0), "DQN": (2.5, 9.0)}

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        algorithm, seed = trial.config.algorithm, trial.config.seed
        launcher.tell(trial, EventType.RUN_STARTED, from_step=0)
        row = {"step": 20, "reward": scores[algorithm][seed - 1], "games": 1}
        launcher.tell(trial, EventType.TRAINING_STEP, **row)
        return "failed" if algorithm == "DQN" and seed == 2 else "completed"

    grid = {"algorithm": ["PPO", "A2C", "DQN"], "seed": [1, 2]}
    run(make(grid=grid), ScriptedLauncher(play))
    document = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
    combinations = [
        (one.get("rank"), one["algorithm"], one["score"], one["counted"], one["trials"])
        for one in document["combinations"]
    ]
    assert combinations == [(1, "A2C", 3, 2, 2), (1, "PPO", 3, 2, 2), (3, "DQN", 2.5, 1, 2)]
    trials = [(one.get("rank"), one["algorithm"], one["seed"]) for one in document["trials"]]
    assert trials == [
        (1, "PPO", 2),
        (2, "A2C", 1),
        (2, "A2C", 2),
        (4, "DQN", 1),
        (5, "PPO", 1),
        (None, "DQN", 2),
    ]


def test_draws_that_look_alike_are_two_combinations(make: Make) -> None:
    result = run(make(grid={"ppo.gamma": [0.99001, 0.99002], "seed": [1, 2]}))
    assert [len(one.trials) for one in result.combinations] == [2, 2]


def test_a_finished_sweep_is_told_again_and_left_alone(make: Make, tmp_path: Path) -> None:
    run(make())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("pong-*/*") if p.is_file()}
    launcher = ScriptedLauncher()
    result = run(make(), launcher)
    assert launcher.begun == []
    assert (result.success, [one.score for one in result.standings]) == (True, [1.2, 2.2, 3.2])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_left_goes_on_and_what_is_finished_is_not_begun(make: Make) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        return launcher.train(trial, iterations=1 if trial.config.seed == 2 else 2)

    first = run(make(), ScriptedLauncher(play))
    assert states(first) == ["completed", "interrupted", "completed"]
    launcher = ScriptedLauncher()
    second = run(make(grid={"seed": [1, 2, 3, 4]}), launcher)
    assert states(second) == ["completed"] * 4
    begun = [
        (t.config.experiment_id, t.restore_from and t.restore_from.name) for t in launcher.begun
    ]
    assert begun == [("pong-ppo-s2", "step-10"), ("pong-ppo-s4", None)]


def test_new_trials_begin_before_what_is_completed_is_looked_after(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is gone is made again all the same."""
    before = make()
    run(before)
    models = [trial.config.paths.model_path for trial in before.trials]
    models[0].unlink()
    opened: list[int] = []

    def note(config: ExperimentConfig, *arguments: Any, **how: Any) -> OpenRun:
        opened.append(config.seed)
        return open_run(config, *arguments, **how)

    monkeypatch.setattr("retro_ml.core.engine.sweep_engine.open_run", note)
    launcher = ScriptedLauncher()
    result = run(make(grid={"seed": [1, 2, 3, 4, 5]}), launcher)
    assert (result.success, states(result)) == (True, ["completed"] * 5)
    assert launcher.names == ["pong-ppo-s4", "pong-ppo-s5"]
    assert opened == [4, 5, 1, 2, 3]
    assert all(path.exists() for path in models)


def test_a_sweep_can_be_made_longer(make: Make) -> None:
    run(make())
    launcher = ScriptedLauncher()
    result = run(make(base={"game_id": "pong", "total_timesteps": 40}), launcher)
    assert states(result) == ["completed"] * 3
    assert [one.agent_steps for one in result.standings] == [40] * 3
    assert {trial.restore_from and trial.restore_from.name for trial in launcher.begun} == {
        "step-20"
    }


def test_a_failing_trial_harms_no_other_and_is_tried_again_next_time(
    make: Make, tmp_path: Path
) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        return "failed" if trial.config.seed == 1 else launcher.train(trial)

    result = run(make(), ScriptedLauncher(play))
    assert (result.exit_code, result.state) == (1, "failed")
    assert states(result) == ["failed", "completed", "completed"]
    assert [one.error for one in result.failed] == ["the learner died"]
    assert status(tmp_path / "s")["failed"] == [
        {"experiment_id": "pong-ppo-s1", "error": "the learner died"}
    ]
    launcher = ScriptedLauncher()
    assert run(make(), launcher).success
    assert launcher.names == ["pong-ppo-s1"]


def test_a_trial_that_the_scheduler_stopped_is_not_taken_up_again(
    make: Make, tmp_path: Path
) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        state = launcher.train(trial, iterations=1 if trial.config.seed == 1 else 2)
        return "stopped" if trial.config.seed == 1 else state

    result = run(make(scheduler="asha"), ScriptedLauncher(play))
    assert (result.success, states(result)) == (True, ["stopped", "completed", "completed"])
    assert status(tmp_path / "s" / "pong-ppo-s1")["state"] == "stopped"
    launcher = ScriptedLauncher()
    again = run(make(scheduler="asha"), launcher)
    assert launcher.begun == []
    assert states(again) == states(result)


def test_a_budget_ends_the_sweep_and_a_larger_one_lets_it_go_on(make: Make) -> None:
    launcher = ScriptedLauncher()
    result = run(make(max_agent_steps=30), launcher)
    assert (result.state, result.exit_code) == ("interrupted", 0)
    assert result.error == "the budget of 30 agent steps is spent"
    assert states(result) == ["completed", "interrupted", "waiting"]
    assert run(make()).success


def test_a_signal_interrupts_the_trials_and_nothing_new_begins(make: Make, tmp_path: Path) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return launcher.train(trial, iterations=1)

    launcher = ScriptedLauncher(play)
    result = run(make(), launcher)
    assert (result.state, result.exit_code, launcher.stop_requests) == ("interrupted", 143, 1)
    assert states(result) == ["interrupted", "waiting", "waiting"]
    assert status(tmp_path / "s" / "pong-ppo-s1")["state"] == "interrupted"
    assert status(tmp_path / "s")["state"] == "interrupted"


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        # Nothing is wrong with the trial.
        (LaunchError("no cluster at 10.0.0.1"), 3, "interrupted"),
        (ZeroDivisionError("oh"), 1, "failed"),
    ],
)
def test_what_the_launcher_raises_ends_the_sweep(
    make: Make, error: Exception, code: int, state: str
) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        raise error

    result = run(make(), ScriptedLauncher(play))
    assert (result.state, result.exit_code, result.error) == ("failed", code, str(error))
    assert states(result) == [state, "waiting", "waiting"]
    assert result.standings[0].error == str(error)
    assert run(make()).success


def test_a_trial_whose_folder_cannot_be_had_fails_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "s" / "pong-ppo-s2").mkdir(parents=True)
    (tmp_path / "s" / "sweep.json").write_text(make().model_dump_json())
    (tmp_path / "s" / "pong-ppo-s2" / "letter.txt").write_text("mine")
    result = run(make())
    assert states(result) == ["completed", "failed", "completed"]
    assert "is not a run's folder" in str(result.failed[0].error)


def test_the_folder_of_another_sweep_is_refused(make: Make, tmp_path: Path) -> None:
    run(make())
    with pytest.raises(BadRunFolder, match=r"holds another sweep \(base.game_id differ\)"):
        run(make(base={"game_id": "qbert", "total_timesteps": 20}))
    with pytest.raises(BadRunFolder, match="exists already"):
        run(make(), options=RunOptions(progress="quiet", restart_behavior="fail"))
    launcher = ScriptedLauncher()
    restarted = RunOptions(progress="quiet", restart_behavior="restart")
    assert run(make(base={"game_id": "qbert", "total_timesteps": 20}), launcher, None, restarted)
    assert len(launcher.begun) == 3
    assert [path.name[:9] for path in tmp_path.iterdir()] in (
        ["s", "s.before-"],
        ["s.before-", "s"],
    )


def test_a_folder_that_is_no_sweeps_is_refused_and_left(make: Make, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "letter.txt").write_text("mine")
    with pytest.raises(BadRunFolder, match="not a sweep's folder"):
        run(make())
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["letter.txt"]


def test_a_damaged_spec_is_told_in_one_line(make: Make, tmp_path: Path) -> None:
    run(make())
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(BadRunFolder, match=r"sweep.json cannot be read") as caught:
        run(make())
    assert "\n" not in str(caught.value)


def test_two_drivers_do_not_share_a_sweep(make: Make) -> None:
    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        with pytest.raises(BadRunFolder, match="it is being run by process"):
            run(make())
        return launcher.train(trial)

    assert run(make(grid={"seed": [1]}), ScriptedLauncher(play)).success


def test_a_sweep_that_another_driver_took_over_ends_and_leaves_it_the_files(make: Make) -> None:
    config = make()
    paths = config.paths

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        lease = json.loads(paths.lock_path.read_text())
        taken = json.dumps(lease | {"host": "far", "nonce": "the other's"}).ljust(1024)
        paths.lock_path.write_text(taken)
        for lock in list(lock_renewal.renewer._held):
            lock.renew()
        state = launcher.train(trial, iterations=2)
        assert paths.lock_path.read_text() == taken
        return state

    result = run(config, ScriptedLauncher(play))
    assert (result.state, result.exit_code) == ("failed", 1)
    assert f"on far has taken over {paths.sweep_dir}" in str(result.error)
    assert states(result) == ["interrupted", "waiting", "waiting"]
    assert not paths.status_path.exists()


@pytest.fixture
def left_elsewhere(make: Make, monkeypatch: pytest.MonkeyPatch) -> SweepConfig:
    """A sweep whose driver died on another machine while two of its trials were under way."""
    config = make()

    def half(launcher: ScriptedLauncher, trial: Trial) -> str:
        return launcher.train(trial, iterations=1)

    run(config, ScriptedLauncher(half))
    lease = Lease("far", "another", "n", Process(1, 1))
    for trial in config.trials[:2]:
        paths = trial.config.paths
        paths.status_path.write_text(
            json.dumps(status(paths.experiment_dir) | {"state": "running"})
        )
        paths.lock_path.write_text(json.dumps(dataclasses.asdict(lease)))
    monkeypatch.setattr(run_lock, "_POLL_S", 0.01)
    return config


def test_the_trials_of_a_dead_machine_are_waited_for_all_at_once(
    left_elsewhere: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "LEASE_S", 0.3)
    monkeypatch.setitem(RunLock.acquire.__kwdefaults__, "lease_s", 0.3)
    said: list[str] = []
    monkeypatch.setattr(SweepProgress, "notice", lambda _, text: said.append(text))
    assert run(left_elsewhere).success
    waits = [text for text in said if text.startswith("waiting")]
    assert len(waits) <= 1  # none where the sweep took that long to begin
    assert "process 1 on far" not in "".join(waits)


def test_a_signal_ends_the_waiting_for_a_dead_machine(
    left_elsewhere: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_it(progress: SweepProgress, text: str) -> None:
        if text.startswith("waiting"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SweepProgress, "notice", signal_it)
    launcher = ScriptedLauncher()
    result = run(left_elsewhere, launcher)
    assert (launcher.begun, result.state, result.exit_code) == ([], "interrupted", 143)
    for trial in left_elsewhere.trials[:2]:
        assert '"nonce": "n"' in trial.config.paths.lock_path.read_text()


def test_changed_hyperparameters_are_in_every_file_of_the_trial(make: Make, tmp_path: Path) -> None:
    config = make(
        grid={},
        distributions={"ppo.learning_rate": {"uniform": [1e-4, 1e-3]}},
        samples=2,
        scheduler="pbt",
    )
    name = config.trials[0].experiment_id
    folder = tmp_path / "s" / name

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        if trial.config.experiment_id != name:
            return "interrupted"
        launcher.train(trial, iterations=1)
        values = {"ppo.learning_rate": 0.0005}
        data = {"step": 10, "from_experiment": "other", "before": {}, "values": values}
        launcher.tell(trial, EventType.HYPERPARAMETERS_CHANGED, **data)
        return "interrupted"

    run(config, ScriptedLauncher(play))
    assert json.loads((folder / "config.json").read_text())["ppo"]["learning_rate"] == 0.0005
    assert '"hyperparameters_changed"' in (folder / "events.log").read_text()

    launcher = ScriptedLauncher()
    result = run(config, launcher)
    assert launcher.begun[0].config.ppo.learning_rate == 0.0005
    assert launcher.begun[0].restore_from is not None
    assert result.standings[0].values["ppo.learning_rate"] == 0.0005
    assert states(result) == ["completed", "completed"]


def test_a_checkpoint_adopted_from_a_trial_that_is_ahead_is_gone_on_with(
    make: Make, tmp_path: Path
) -> None:
    """The driver ends between the exchange and the trial's next iteration."""
    config = make(
        grid={},
        base={"game_id": "pong", "total_timesteps": 50},
        distributions={"ppo.learning_rate": {"uniform": [1e-4, 1e-3]}},
        samples=2,
        scheduler="pbt",
    )
    ahead, behind = (trial.config for trial in config.trials)

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        own = trial.config.experiment_id == ahead.experiment_id
        launcher.train(trial, iterations=3 if own else 1)
        if own:
            return "interrupted"
        adopted = adopt_checkpoint(ahead.paths.checkpoint_dir(30), behind.checkpoints_dir)
        data = {"step": 30, "from_experiment": ahead.experiment_id, "before": {}, "values": {}}
        launcher.tell(trial, EventType.HYPERPARAMETERS_CHANGED, **data)
        launcher.tell(trial, EventType.CHECKPOINT_SAVED, step=30, path=str(adopted.path))
        return "interrupted"

    run(config, ScriptedLauncher(play))
    launcher = ScriptedLauncher()
    run(config, launcher)
    begun = [trial.restore_from and trial.restore_from.name for trial in launcher.begun]
    assert begun == ["step-30", "step-30"]
    steps = [
        row["step"]
        for row in read_rows(behind.paths.metrics_csv_path)
        if row["type"] == "training_step"
    ]
    assert steps == [10, 40, 50]


def test_a_score_that_is_enough_is_so_the_next_time(make: Make) -> None:
    enough = RunOptions(progress="quiet", stop_score=0.0)

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        launcher.train(trial, iterations=1)
        return "completed"

    assert run(make(), ScriptedLauncher(play), None, enough).success
    launcher = ScriptedLauncher()
    result = run(make(), launcher, None, enough)
    assert (result.success, result.error, states(result)) == (True, None, ["completed"] * 3)
    assert launcher.begun == []


def test_the_protocols_of_a_game_are_not_compared(make: Make, tmp_path: Path) -> None:
    grid = {"game_id": ["PongNoFrameskip-v4", "ALE/Pong-v5"], "seed": [1, 2]}
    result = run(make(grid=grid, base={"total_timesteps": 20}))
    found = [(one.game, len(one.trials)) for one in result.combinations]
    assert found == [("pong", 2), ("pong (v5)", 2)]
    document = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
    assert [one["human_normalised"] for one in document["combinations"]] == [0.17, 0.17]


def test_a_trial_that_this_machine_cannot_read_for_now_has_not_failed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_others(config: ExperimentConfig, *arguments: Any, **how: Any) -> OpenRun:
        if config.experiment_id == "pong-ppo-s1":
            raise BadMachine("Too many open files")
        return open_run(config, *arguments, **how)

    monkeypatch.setattr("retro_ml.core.engine.sweep_engine.open_run", open_others)
    result = run(make())
    states = {one.experiment_id: one.state for one in result.standings}
    assert states.pop("pong-ppo-s1") == "waiting"
    assert set(states.values()) == {"completed"}
    assert (result.state, result.exit_code) == ("interrupted", 3)
    assert result.error == "Too many open files"


class Outage:
    """Storage in a folder that can be gone for a while, from one moment to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._there, self._in_the_way = folder.with_name("there"), folder.with_name("file")
        self._there.mkdir()
        self._in_the_way.touch()
        self.end()

    def begin(self) -> None:
        self._lead_to(self._in_the_way)

    def end(self) -> None:
        self._lead_to(self._there)

    def _lead_to(self, target: Path) -> None:
        link = self.folder.with_name("link")
        link.symlink_to(target)
        os.rename(link, self.folder)


@pytest.fixture
def outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outage:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr("retro_ml.core.engine.sweep_storage.PATIENCE_S", 0.0)
    monkeypatch.setattr("retro_ml.core.artifacts.mirror.GIVE_UP_S", 3.0)
    monkeypatch.setattr("retro_ml.core.artifacts.mirror.FIRST_PAUSE_S", 0.2)
    return Outage(tmp_path / "storage")


@pytest.mark.parametrize("state", ["completed", "stopped"])
def test_storage_that_is_gone_stops_no_trial_and_gets_all_the_next_time(
    make: Make, outage: Outage, state: str
) -> None:
    config = make(output_dir=f"file://{outage.folder}", scheduler="asha")

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        if len(launcher.begun) == 1:
            outage.begin()
        launcher.train(trial)
        return state

    first = run(config, ScriptedLauncher(play))
    assert (states(first), first.exit_code) == ([state] * 3, 3)
    assert first.storage is not None
    assert not first.storage.complete

    outage.end()
    launcher = ScriptedLauncher()
    second = run(config, launcher)
    assert (second.exit_code, launcher.begun) == (0, [])
    assert second.storage is not None
    assert second.storage.complete
    for trial in config.trials:
        there = outage.folder / "s" / trial.experiment_id
        assert (there / "metrics.csv").read_bytes() == (
            trial.config.paths.metrics_csv_path.read_bytes()
        )


def test_a_signal_ends_the_delivery_of_what_earlier_calls_left(
    make: Make, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials that are not opened yet are left to the next call."""
    config = make(output_dir=f"file://{outage.folder}", scheduler="asha")

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        launcher.train(trial, iterations=1)
        return "stopped"

    assert run(config, ScriptedLauncher(play)).exit_code == 0
    for trial in config.trials:
        path = trial.config.paths.claim_path
        claim = Claim.read(path.read_bytes())
        assert claim is not None
        dataclasses.replace(claim, complete=False).save(path)
    opened: list[str] = []

    def open_and_signal(config: ExperimentConfig, *arguments: Any, **how: Any) -> OpenRun:
        opened.append(config.experiment_id)
        if len(opened) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return open_run(config, *arguments, **how)

    monkeypatch.setattr("retro_ml.core.engine.sweep_engine.open_run", open_and_signal)
    result = run(config)
    assert opened == ["pong-ppo-s1"]
    assert result.exit_code == 3
    assert result.storage is not None
    assert {"pong-ppo-s2/", "pong-ppo-s3/"} <= set(result.storage.missing)


def test_a_trial_that_storage_alone_knows_waits_for_it(make: Make, outage: Outage) -> None:
    """It has not failed: the next call goes on with it."""
    config = make(output_dir=f"file://{outage.folder}")

    def half(launcher: ScriptedLauncher, trial: Trial) -> str:
        return launcher.train(trial, iterations=1)

    run(config, ScriptedLauncher(half))

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        outage.begin()
        return launcher.train(trial)

    launcher = ScriptedLauncher(play)
    result = run(config, launcher)
    assert launcher.names == ["pong-ppo-s1"]
    assert states(result) == ["completed", "interrupted", "interrupted"]
    assert (result.state, result.exit_code) == ("interrupted", 3)
    assert str(outage.folder) in str(result.error)

    outage.end()
    launcher = ScriptedLauncher()
    assert run(config, launcher).exit_code == 0
    assert launcher.names == ["pong-ppo-s2", "pong-ppo-s3"]


def test_optuna_learns_from_the_trials_that_ended_also_after_a_restart(make: Make) -> None:
    pytest.importorskip("optuna")
    fields: dict[str, Any] = {
        "grid": {},
        "distributions": {"ppo.gamma": {"uniform": [0.0, 1.0]}},
        "search": "optuna",
    }

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        launcher.tell(trial, EventType.RUN_STARTED, from_step=0)
        score = -abs(trial.config.ppo.gamma - 0.8)
        launcher.tell(trial, EventType.TRAINING_STEP, step=20, reward=score, games=1)
        return "completed"

    run(make(samples=15, **fields), ScriptedLauncher(play))
    launcher = ScriptedLauncher(play)
    result = run(make(samples=30, **fields), launcher)
    assert launcher.names == [f"pong-ppo-s0-t{number:04d}" for number in range(15, 30)]
    early = [abs(one.values["ppo.gamma"] - 0.8) for one in result.standings[:10]]
    late = [abs(one.values["ppo.gamma"] - 0.8) for one in result.standings[20:]]
    assert sum(late) < sum(early) / 2


OPTUNA: dict[str, Any] = {
    "grid": {},
    "distributions": {"ppo.gamma": {"uniform": [0.0, 1.0]}},
    "search": "optuna",
}


def chosen(result: SweepResult) -> list[float]:
    return [one.values["ppo.gamma"] for one in result.standings if "ppo.gamma" in one.values]


def test_optuna_goes_on_with_other_values_than_those_it_began_with(make: Make) -> None:
    pytest.importorskip("optuna")
    before = chosen(run(make(samples=4, **OPTUNA)))
    after = chosen(run(make(samples=8, **OPTUNA)))
    assert after[:4] == before
    assert len(set(after)) == 8


def test_optuna_knows_every_trial_of_the_past(make: Make, tmp_path: Path) -> None:
    """One that ended, one without a score, one that was interrupted, one that was just opened."""
    pytest.importorskip("optuna")

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        number = len(launcher.begun)
        if number == 2:
            launcher.tell(trial, EventType.RUN_STARTED, from_step=0)
            launcher.tell(trial, EventType.TRAINING_STEP, step=20, reward=None, games=0)
            return "completed"
        return launcher.train(trial, iterations=1 if number > 2 else 2)

    config = make(samples=4, **OPTUNA)
    before = chosen(run(config, ScriptedLauncher(play)))
    (tmp_path / "s" / "pong-ppo-s0-t0003" / "status.json").unlink()

    launcher = ScriptedLauncher()
    engine = SweepEngine(config, launcher=launcher, normalise=normalise, options=QUIET)
    result = engine.run()
    assert chosen(result) == before
    assert launcher.names == ["pong-ppo-s0-t0002", "pong-ppo-s0-t0003"]
    study = engine._search._study("pong/PPO")
    assert [one.params["ppo.gamma"] for one in study.trials] == before
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_optuna_goes_on_from_storage_on_another_machine(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    config = make(output_dir=f"file://{tmp_path}/storage", samples=3, **OPTUNA)
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "here"))

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        return launcher.train(trial, iterations=2 if len(launcher.begun) < 3 else 1)

    before = run(config, ScriptedLauncher(play))
    assert states(before) == ["completed", "completed", "interrupted"]

    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "there"))
    launcher = ScriptedLauncher()
    after = run(config, launcher)
    assert states(after) == ["completed"] * 3, [one.error for one in after.standings]
    assert launcher.names == ["pong-ppo-s0-t0002"]
    assert chosen(after) == chosen(before)


def test_many_trials_hold_no_more_files_than_those_that_run(make: Make) -> None:
    open_files: list[int] = []

    def play(launcher: ScriptedLauncher, trial: Trial) -> str:
        launcher.tell(trial, EventType.RUN_STARTED, from_step=0)
        open_files.append(len(os.listdir("/proc/self/fd")))
        return "completed"

    result = run(make(grid={"seed": list(range(30))}), ScriptedLauncher(play))
    assert len(result.standings) == 30
    assert max(open_files) == min(open_files)
