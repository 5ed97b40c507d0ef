"""A sweep whose files go to storage, with a scripted launcher and an S3 server on loopback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts import mirror
from retro_ml.core.engine.launcher import Trial, TrialEnd, TrialSource
from retro_ml.core.engine.sweep_engine import SweepEngine
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.integration


class ScriptedLauncher:
    """Every trial takes one step; `begun` counts them. `after` is called after each."""

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.begun = 0
        self._after = after

    def launch_sweep(
        self,
        sweep: SweepConfig,
        source: TrialSource,
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> None:
        while (trial := source.next_trial()) is not None:
            self.begun += 1
            self._tell(publish, trial, EventType.RUN_STARTED, from_step=0)
            self._tell(publish, trial, EventType.TRAINING_STEP, step=20, reward=1.0, games=1)
            source.trial_ended(TrialEnd(trial.config.experiment_id, "completed"))
            self._after()

    def request_stop(self) -> None:
        pass

    def _tell(self, publish: Any, trial: Trial, kind: EventType, **data: Any) -> None:
        publish(MetricEvent.now(kind, trial.config.experiment_id, data))


def sweep(launcher: ScriptedLauncher) -> SweepResult:
    config = SweepConfig(
        name="s",
        output_dir="s3://runs/lab",
        base={"game_id": "breakout", "total_timesteps": 20},
        grid={"seed": [1, 2, 3]},
    )
    options = RunOptions(progress="quiet")
    engine = SweepEngine(
        config,
        launcher=launcher,  # type: ignore[arg-type]
        normalise=lambda game, score: score,
        options=options,
    )
    return engine.run()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.2)


def test_a_sweep_is_in_storage_and_its_ended_trials_are_not_run_again_elsewhere(
    s3: Any, tmp_path: Path
) -> None:
    result = sweep(ScriptedLauncher())
    assert (result.state, result.exit_code) == ("completed", 0)
    keys = s3.keys("runs")
    assert {"lab/s/sweep.json", "lab/s/leaderboard.csv", "lab/s/status.json"} <= keys
    assert len([key for key in keys if key.endswith("/metrics.csv")]) == 3

    shutil.rmtree(tmp_path / "staging")
    again = ScriptedLauncher()
    assert sweep(again).exit_code == 0
    assert again.begun == 0
