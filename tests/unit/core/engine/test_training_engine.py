"""The order of a run, with a scripted launcher: results, files, faults, signals, logs."""

import dataclasses
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from retro_ml.core.artifacts.checkpoint_files import save_checkpoint_folder
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.engine import lock_renewal
from retro_ml.core.engine.launcher import LaunchError, Trial, TrialEnd
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.run_folder import OpenRun, open_run
from retro_ml.core.engine.run_lock import LockLost
from retro_ml.core.engine.training_engine import TrainingEngine
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit

Script = Callable[["ScriptedLauncher"], Any]


class ScriptedLauncher:
    """Runs `script(self)`; what that returns, if a TrialEnd, is the trial's end."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.stop_requests = 0
        self.launched = 0
        self.config: ExperimentConfig
        self.options: RunOptions
        self.restore_from: Path | None = None
        self._publish: Callable[[MetricEvent], None]

    def launch(
        self,
        trials: Sequence[Trial],
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> list[TrialEnd]:
        """Play the script."""
        self.launched += 1
        self.config, self.options, self._publish = trials[0].config, options, publish
        self.restore_from = trials[0].restore_from
        end = self.script(self)
        if isinstance(end, TrialEnd):
            return [end]
        return [TrialEnd(self.config.experiment_id, end or "completed")]

    def request_stop(self) -> None:
        """Count the request."""
        self.stop_requests += 1

    def tell(self, kind: EventType, **data: Any) -> None:
        """Publish one event of the trial."""
        self._publish(MetricEvent.now(kind, self.config.experiment_id, data))

    def train(self, iterations: int = 2) -> None:
        """An ordinary run of 10 agent steps an iteration, with a checkpoint."""
        self.tell(EventType.RUN_STARTED, from_step=0, device="cpu", precision="fp32")
        for iteration in range(1, iterations + 1):
            step = 10 * iteration
            self.tell(EventType.EPISODE_FINISHED, step=step, reward=4.0, length=9, frames=36)
            self.tell(
                EventType.TRAINING_STEP,
                step=step,
                reward=4.0,
                games=iteration,
                iteration=iteration,
                steps_per_s=500.0,
                time_total_s=0.5 * iteration,
            )
        folder = self.config.paths.checkpoint_dir(step)
        save_checkpoint_folder(
            folder, save_module, facts={"action_meanings": ["NOOP"], "score": 4.0}
        )
        self.tell(EventType.CHECKPOINT_SAVED, step=step, path=str(folder))

    def wait_for_stop(self) -> str:
        """As a launcher does: go on until asked to stop. At most 10 s."""
        deadline_s = time.monotonic() + 10
        while not self.stop_requests and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return "interrupted" if self.stop_requests else "completed"


def save_module(folder: Path) -> list[Path]:
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, folder / "module.safetensors")
    return []


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return make_config(tmp_path / "runs")


@pytest.fixture(autouse=True)
def _everything_is_given_back() -> Iterator[None]:
    def state() -> list[Any]:
        signals = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
        return [*signals, list(logging.getLogger("retro_ml").handlers), threading.active_count()]

    before = state()
    yield
    assert state() == before


def make_config(output_dir: Path, **fields: Any) -> ExperimentConfig:
    fields = {"game_id": "breakout", "total_timesteps": 20, "experiment_id": "x", **fields}
    return ExperimentConfig(output_dir=str(output_dir), **fields)


def run(
    config: ExperimentConfig, script: Script, bus: MetricEventBus | None = None
) -> ExperimentResult:
    options = RunOptions(progress="quiet")
    return TrainingEngine(config, bus, launcher=ScriptedLauncher(script), options=options).run()


def status(config: ExperimentConfig) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(config.status_path.read_text())
    return whole


def train(launcher: ScriptedLauncher) -> None:
    launcher.train()


def test_a_run_leaves_its_result_and_every_file(config: ExperimentConfig) -> None:
    result = run(config, train)

    assert result.success
    assert (result.state, result.exit_code, result.error) == ("completed", 0, None)
    assert (result.final_reward, result.agent_steps, result.games) == (4.0, 20, 2)
    assert result.training_time > 0
    assert {path.name for path in config.experiment_dir.iterdir()} == {
        "config.json",
        "status.json",
        "metrics.json",
        "metrics.csv",
        "tensorboard",
        "events.log",
        "training.log",
        "model.zip",
        "checkpoints",
    }
    text = config.config_path.read_text()
    stored = ExperimentConfig.model_validate_json(text)
    assert stored.resources.precision == "fp32"  # what "auto" came to
    assert stored.model_copy(update={"resources": config.resources}) == config
    last = json.loads(result.metrics_path.read_text())["metrics"][-1]
    assert {key: last[key] for key in last if key != "timestamp"} == {
        "type": "run_completed",
        "step": 20,
        "reward": 4.0,
        "games": 2,
        "time_total_s": 1.0,
        "state": "completed",
    }
    assert load_model_archive(result.model_path).metadata["agent_steps"] == 20
    assert (status(config)["state"], status(config)["progress"]) == ("completed", 1.0)
    assert "run_completed" in result.log_path.read_text()


def test_the_result_is_json(config: ExperimentConfig) -> None:
    result = run(config, train)
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    assert result.as_dict()["metrics_path"] == str(config.metrics_path)


def test_the_user_gets_every_event_in_order(config: ExperimentConfig) -> None:
    bus, seen = MetricEventBus(), []
    bus.subscribe(None, lambda event: seen.append(event.event_type.value))
    bus.subscribe(EventType.TRAINING_STEP, lambda event: 1 / 0)

    assert run(config, train, bus).success
    assert seen == [
        "run_started",
        "episode_finished",
        "training_step",
        "episode_finished",
        "training_step",
        "checkpoint_saved",
        "run_completed",
    ]
    assert "ZeroDivisionError" in config.log_path.read_text()


def test_config_and_status_are_there_before_training(config: ExperimentConfig) -> None:
    def look(launcher: ScriptedLauncher) -> None:
        assert config.config_path.exists()
        assert status(config)["state"] == "starting"
        launcher.train()
        assert status(config)["state"] == "running"

    assert run(config, look).error is None


def test_options_reach_the_launcher(config: ExperimentConfig) -> None:
    launcher = ScriptedLauncher(train)
    options = RunOptions(stop_score=3.0, progress="quiet")
    TrainingEngine(config, launcher=launcher, options=options).run()
    assert launcher.options is options


def test_one_bus_serves_two_runs(tmp_path: Path) -> None:
    bus = MetricEventBus()
    results = [run(make_config(tmp_path, experiment_id=name), train, bus) for name in "ab"]
    counts = [len(json.loads(r.metrics_path.read_text())["metrics"]) for r in results]
    assert counts == [5, 5]


def test_a_failed_trial_fails_the_run(config: ExperimentConfig) -> None:
    bus = MetricEventBus()
    end = TrialEnd("x", "failed", "the learner died three times", 3)
    result = run(config, lambda launcher: end, bus)

    assert not result.success
    assert (result.state, result.exit_code) == ("failed", 3)
    assert result.error == "the learner died three times"
    assert status(config)["error"] == result.error
    assert bus.history()[-1].event_type is EventType.ERROR
    assert json.loads(config.metrics_path.read_text())["metrics"] == []


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (LaunchError("no cluster at 10.0.0.1:6379"), 3, "no cluster at 10.0.0.1:6379"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_the_launcher_raises_becomes_the_error(
    config: ExperimentConfig, raised: Exception, code: int, message: str
) -> None:
    def fail(_: ScriptedLauncher) -> None:
        raise raised

    result = run(config, fail)

    assert (result.state, result.exit_code, result.error) == ("failed", code, message)
    # A bug is written down with its traceback; what the machine lacks is no bug.
    assert ("Traceback" in config.log_path.read_text()) == (code == 1)


def test_a_launcher_that_forgets_the_trial_is_a_failure(config: ExperimentConfig) -> None:
    result = run(config, lambda launcher: TrialEnd("another", "completed"))
    assert result.error is not None
    assert "no end of x" in result.error


def test_a_full_disk_stops_the_run_with_one_message(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def script(launcher: ScriptedLauncher) -> str:
        launcher.tell(EventType.RUN_STARTED, from_step=0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", fail)
            launcher.tell(EventType.TRAINING_STEP, step=10, reward=None)
        assert launcher.stop_requests > 0
        return "interrupted"

    result = run(config, script)

    assert (result.state, result.exit_code) == ("failed", 1)
    assert result.error is not None
    assert "metrics.csv: No space left on device" in result.error
    assert status(config)["state"] == "failed"


def test_a_disk_that_fills_at_the_very_end_is_no_success(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(launcher: ScriptedLauncher) -> None:
        launcher.train()
        monkeypatch.setattr(
            "retro_ml.core.artifacts.writers.save_metrics_json",
            lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")),
        )

    result = run(config, script)

    assert (result.state, result.exit_code) == ("failed", 1)
    assert status(config)["state"] == "failed"


def test_a_run_that_another_driver_took_over_ends_and_leaves_it_the_files(
    config: ExperimentConfig,
) -> None:
    """As after a pause of this machine, which the other one's lock does not reach."""
    files: dict[Path, bytes] = {}

    def read_files() -> dict[Path, bytes]:
        own = {config.paths.log_path}
        found = config.experiment_dir.rglob("*")
        return {path: path.read_bytes() for path in found if path.is_file() and path not in own}

    def script(launcher: ScriptedLauncher) -> str:
        launcher.train(iterations=1)
        path = config.paths.lock_path
        lease = json.loads(path.read_text())
        path.write_text(json.dumps(lease | {"host": "far", "nonce": "the other's"}).ljust(1024))
        for lock in list(lock_renewal.renewer._held):
            lock.renew()
        files.update(read_files())
        launcher.tell(EventType.EPISODE_FINISHED, step=20, reward=4.0, length=9, frames=36)
        assert launcher.stop_requests > 0
        return "interrupted"

    result = run(config, script)
    assert (result.state, result.exit_code) == ("failed", 1)
    assert f"on far has taken over {config.experiment_dir}" in str(result.error)
    assert read_files() == files
    assert status(config)["state"] == "running"


def test_a_bad_folder_is_refused_before_anything_begins(config: ExperimentConfig) -> None:
    run(config, train)
    before = {path: path.read_bytes() for path in config.experiment_dir.glob("*.*")}
    bus = MetricEventBus()

    with pytest.raises(ValueError, match=r"experiment_id: x -> .*seed: 0 there, 1 now"):
        run(make_config(Path(config.output_dir), seed=1), train, bus)

    assert bus.history() == []
    assert {path: path.read_bytes() for path in config.experiment_dir.glob("*.*")} == before


def test_a_finished_run_is_told_again_and_left_alone(config: ExperimentConfig) -> None:
    first = run(config, train)
    before = {path: path.read_bytes() for path in config.experiment_dir.glob("*.*")}
    bus = MetricEventBus()

    again = run(config, train, bus)

    assert dataclasses.replace(again, training_time=first.training_time) == first
    assert bus.history() == []
    assert {path: path.read_bytes() for path in config.experiment_dir.glob("*.*")} == before


def test_an_interrupted_run_goes_on_from_its_checkpoint(config: ExperimentConfig) -> None:
    def train_half(launcher: ScriptedLauncher) -> str:
        launcher.train(iterations=1)
        return "interrupted"

    def go_on(launcher: ScriptedLauncher) -> None:
        seen.append(launcher.restore_from)
        launcher.tell(EventType.RUN_STARTED, from_step=10, device="cpu", precision="fp32")
        launcher.tell(EventType.TRAINING_STEP, step=20, reward=5.0, games=2)

    seen: list[Path | None] = []
    assert run(config, train_half).exit_code == 130
    result = run(config, go_on)

    assert seen == [config.paths.checkpoint_dir(10)]
    assert (result.state, result.agent_steps, result.final_reward) == ("completed", 20, 5.0)
    rows = json.loads(config.metrics_path.read_text())["metrics"]
    assert [(row["type"], row["step"]) for row in rows] == [
        ("episode_finished", 10),
        ("training_step", 10),
        ("training_step", 20),
        ("run_completed", 20),
    ]


def test_a_run_killed_between_its_last_checkpoint_and_its_end_is_only_concluded(
    config: ExperimentConfig,
) -> None:
    first = run(config, train)
    complete = config.metrics_path.read_bytes()
    for path in (config.status_path, config.model_path, config.metrics_path):
        path.unlink()
    check_that_it_is_concluded(config, first, complete)


def test_a_model_that_is_gone_is_made_again(config: ExperimentConfig) -> None:
    first = run(config, train)
    complete, model = config.metrics_path.read_bytes(), config.model_path.read_bytes()
    config.model_path.unlink()
    check_that_it_is_concluded(config, first, complete)
    assert len(config.model_path.read_bytes()) == len(model)


def check_that_it_is_concluded(
    config: ExperimentConfig, first: ExperimentResult, complete: bytes
) -> None:
    def never(launcher: ScriptedLauncher) -> None:
        raise AssertionError

    again = run(config, never)

    assert dataclasses.replace(again, training_time=first.training_time) == first
    assert (status(config)["state"], status(config)["reward"]) == ("completed", 4.0)
    assert load_model_archive(config.model_path).metadata["agent_steps"] == 20
    rows, before = (
        json.loads(text)["metrics"] for text in (config.metrics_path.read_bytes(), complete)
    )
    assert rows[:-1] == before[:-1]
    assert rows[-1] | {"timestamp": ""} == before[-1] | {"timestamp": ""}


def test_a_run_killed_when_its_score_was_reached_is_only_concluded(
    config: ExperimentConfig,
) -> None:
    options = RunOptions(stop_score=4.0, progress="quiet")

    def die(launcher: ScriptedLauncher) -> TrialEnd:
        launcher.train(iterations=1)
        return TrialEnd("x", "failed", "killed", 1)

    TrainingEngine(config, launcher=ScriptedLauncher(die), options=options).run()
    launcher = ScriptedLauncher(train)
    result = TrainingEngine(config, launcher=launcher, options=options).run()

    assert launcher.launched == 0
    assert (result.state, result.agent_steps, result.final_reward) == ("completed", 10, 4.0)
    assert (status(config)["state"], status(config)["step"]) == ("completed", 10)


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_an_attempt_that_ends_before_it_has_begun_leaves_the_run_where_it_was(
    config: ExperimentConfig, state: Any
) -> None:
    def train_half(launcher: ScriptedLauncher) -> str:
        launcher.train(iterations=1)
        launcher.tell(EventType.TRAINING_STEP, step=15, reward=9.0, games=2)  # no checkpoint of it
        return "interrupted"

    run(config, train_half)
    # Interrupted twice: what the first of them wrote must not be there twice.
    for _ in range(2):
        result = run(config, lambda launcher: TrialEnd("x", state, "no room", 3))

    assert (result.state, result.agent_steps, result.final_reward) == (state, 10, 4.0)
    told = status(config)
    assert (told["state"], told["progress"]) == (state, 0.5 if state == "interrupted" else 0.75)
    rows = json.loads(config.metrics_path.read_text())["metrics"]
    kept = [("episode_finished", 10), ("training_step", 10)]
    if state == "interrupted":
        assert [(row["type"], row["step"]) for row in rows] == [*kept, ("run_completed", 10)]
    else:  # nothing of it is touched
        assert [row["step"] for row in rows] == [10, 10, 15, 15]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_the_run_in_order(
    config: ExperimentConfig, signum: signal.Signals, code: int
) -> None:
    def script(launcher: ScriptedLauncher) -> str:
        launcher.train()
        threading.Timer(0.05, os.kill, (os.getpid(), signum)).start()
        return launcher.wait_for_stop()

    result = run(config, script)

    assert (result.state, result.exit_code, result.success) == ("interrupted", code, False)
    assert result.error == f"stopped by {signum.name} at 20 of 20 agent steps"
    assert status(config)["state"] == "interrupted"
    last = json.loads(config.metrics_path.read_text())["metrics"][-1]
    assert (last["type"], last["state"]) == ("run_completed", "interrupted")


def test_a_signal_is_obeyed_as_soon_as_a_file_says_that_the_run_goes_on(
    config: ExperimentConfig,
) -> None:
    class SignallingBus(MetricEventBus):
        def subscribe(self, *arguments: Any, **named: Any) -> None:
            if config.paths.status_path.exists() and not arrived:
                arrived.append(status(config)["state"])
                os.kill(os.getpid(), signal.SIGTERM)
            super().subscribe(*arguments, **named)

    def not_ours(signum: int, frame: object) -> None:
        raise AssertionError("nobody listened")

    arrived: list[str] = []
    previous = signal.signal(signal.SIGTERM, not_ours)
    try:
        result = run(config, lambda launcher: launcher.wait_for_stop(), SignallingBus())
    finally:
        signal.signal(signal.SIGTERM, previous)

    assert arrived == ["starting"]
    assert (result.state, result.exit_code) == ("interrupted", 143)
    assert status(config)["state"] == "interrupted"


def test_a_run_that_is_another_s_before_it_begins_is_left_to_it(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_and_lose(*arguments: Any, **named: Any) -> OpenRun:
        opened = open_run(*arguments, **named)
        opened.lock.error = LockLost("taken over by process 1 on far")
        return opened

    monkeypatch.setattr("retro_ml.core.engine.training_engine.open_run", open_and_lose)
    begun: list[ScriptedLauncher] = []
    result = run(config, begun.append)

    assert (result.state, result.exit_code) == ("failed", 1)
    assert result.error == "taken over by process 1 on far"
    assert begun == []
    assert not config.status_path.exists()


def test_a_signal_that_comes_too_late_changes_nothing(config: ExperimentConfig) -> None:
    def script(launcher: ScriptedLauncher) -> str:
        launcher.train()
        os.kill(os.getpid(), signal.SIGINT)
        launcher.wait_for_stop()
        return "completed"

    assert run(config, script).exit_code == 0


def test_the_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from test_training_engine import make_config, run
def script(launcher):
    launcher.train()
    os.kill(os.getpid(), signal.SIGTERM)
    while not launcher.stop_requests:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
run(make_config(Path({str(tmp_path)!r})), script)
"""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        timeout=240,
        check=False,
    )

    assert ended.returncode == 130
    folder = tmp_path / "x"
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    assert "metrics" in json.loads((folder / "metrics.json").read_text())
    assert len((folder / "metrics.csv").read_text().splitlines()) == 5
    assert load_model_archive(folder / "model.zip").metadata["agent_steps"] == 20


def test_it_runs_outside_the_main_thread(config: ExperimentConfig) -> None:
    results: list[ExperimentResult] = []
    thread = threading.Thread(target=lambda: results.append(run(config, train)))
    thread.start()
    thread.join(timeout=20)
    assert results[0].success


def test_the_files_are_complete_when_the_status_says_so(config: ExperimentConfig) -> None:
    bus, seen = MetricEventBus(), []

    def at_end(event: MetricEvent) -> None:
        rows = json.loads(config.metrics_path.read_text())["metrics"]
        seen.append((status(config)["state"], rows[-1]["type"], config.model_path.exists()))

    def script(launcher: ScriptedLauncher) -> None:
        launcher.train()
        bus.subscribe(EventType.RUN_COMPLETED, at_end)  # after the writers

    run(config, script, bus)
    assert seen == [("completed", "run_completed", True)]
