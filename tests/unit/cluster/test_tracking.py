"""What W&B and MLflow are told, and what their failure does."""

import logging
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.air.integrations.mlflow import MLflowLoggerCallback

from retro_ml.cluster.tracking import (
    Tracker,
    build_trackers,
    describe_config,
    describe_result,
    tell_of_end,
)
from retro_ml.cluster.trial_actor import trial_config
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions

pytestmark = pytest.mark.unit


def record(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": "2026-01-02T03:04:05+00:00", "data": data}


RESULT = {
    "agent_steps": 1_024,
    "score": 2.5,
    "records": [
        record("run_started", from_step=0, host="h", pid=1),
        record("episode_finished", step=900, reward=2.0, length=40, frames=160),
        record("episode_finished", step=950, reward=3.0, length=60, frames=240),
        record(
            "training_step", step=1_024, reward=2.5, iteration=7, entropy=1.25, loss=None,
            steps_per_s=640.0,
        ),
        record("evaluation_finished", step=1_024, reward=9.0, games=5, scores=[9.0] * 5),
    ],
    "training_iteration": 1,
    "hostname": "h",
    "config": {"experiment": {}},
}  # fmt: skip


class Service:
    """A logger callback that notes its calls, and fails when told to."""

    def __init__(self, fails: bool = False, says: str = "nobody answers") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._fails = fails
        self._says = says

    def setup(self) -> None:
        self.calls.append(("setup",))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.calls.append(("result", result))
        if self._fails:
            raise ConnectionError(self._says)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.calls.append(("end", failed))


def test_a_result_is_a_few_numbers_under_known_names() -> None:
    assert describe_result(RESULT) == {
        "timesteps_total": 1_024,
        "training_iteration": 7,  # of the run, not of this attempt
        "rollout/ep_rew_mean": 2.5,
        "time/total_timesteps": 1_024.0,
        "time/iterations": 7.0,
        "time/fps": 640.0,
        "charts/SPS": 640.0,
        "train/entropy": 1.25,
        "eval/mean_reward": 9.0,
        "charts/episodic_return": 2.5,
        "charts/episodic_length": 50.0,
    }


def test_the_config_has_neither_other_algorithms_nor_places() -> None:
    config = ExperimentConfig(game_id="pong", algorithm="DQN", seed=1, total_timesteps=1_000)
    trial = SimpleNamespace(
        config=trial_config(config, num_cpus=1, num_gpus=0.0, restore_from="/a/folder")
    )

    described = describe_config(trial)

    assert described["dqn"]["learning_rate"] == config.dqn.learning_rate
    assert not {"ppo", "a2c", "output_dir", "restore_from"} & set(described)


def test_a_service_that_fails_is_left_alone_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(fails=True)
    tracker = Tracker("wandb", service)

    with caplog.at_level(logging.WARNING):
        tracker.setup()
        for iteration in range(3):
            tracker.on_trial_result(iteration, [], None, RESULT)
        tracker.on_trial_complete(3, [], None)

    assert [call[0] for call in service.calls] == ["setup", "result"]
    (message,) = [r.getMessage() for r in caplog.records]
    assert message == "wandb gets nothing more of this run: ConnectionError: nobody answers"


def test_a_service_that_fails_shows_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    says = "API request to https://me:planted@mlflow.example:5000/api failed: refused"
    with caplog.at_level(logging.WARNING):
        Tracker("mlflow", Service(fails=True, says=says)).on_trial_result(0, [], None, RESULT)

    assert "https://***@mlflow.example:5000/api failed: refused" in caplog.text
    assert "planted" not in caplog.text


def test_mlflow_that_cannot_be_used_shows_no_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(callback: Any) -> None:
        raise ValueError("cannot parse 'postgres://me:planted/password@host/db'")

    monkeypatch.setattr(MLflowLoggerCallback, "__init__", lambda callback, **words: None)
    monkeypatch.setattr(MLflowLoggerCallback, "setup", fail)

    with pytest.raises(LaunchError) as refused:
        build_trackers(RunOptions.model_construct(track=("mlflow",)), str(tmp_path))

    assert "cannot parse 'postgres://***@host/db'; set MLFLOW_TRACKING_URI" in str(refused.value)
    assert "planted" not in "".join(traceback.format_exception(refused.value))


def test_how_a_trial_ends_is_told() -> None:
    service = Service()
    tracker = Tracker("mlflow", service)

    tracker.on_trial_complete(1, [], None)
    tracker.on_trial_error(1, [], None)

    assert service.calls == [("end", False), ("end", True)]


@pytest.mark.parametrize(
    ("is_done", "told"),
    [
        (False, "W&B did not get all of this run within 60 s"),
        (True, "W&B did not get all of this run: no such project"),
    ],
)
def test_what_the_process_that_talks_to_wandb_did_not_send_is_told(
    is_done: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In place of Ray's futures: that process takes seconds to start."""

    def get(future: Any) -> None:
        raise ray.exceptions.RayError("no such project\nTraceback ...")

    monkeypatch.setattr(ray, "wait", lambda futures, timeout: (futures, []) if is_done else ([], 0))
    monkeypatch.setattr(ray, "get", get)

    with caplog.at_level(logging.WARNING):
        tell_of_end(object())

    assert [record.getMessage() for record in caplog.records] == [told]
