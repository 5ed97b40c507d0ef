"""How a trial that shares no disk with its driver leaves its checkpoints in storage."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro_ml.cluster.trial_checkpoints import TrialCheckpoints
from retro_ml.core.artifacts import mirror
from retro_ml.core.artifacts.checkpoint_files import save_checkpoint_folder
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.integration
MANIFEST = "lab/x/checkpoints/step-10/manifest.json"


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrialCheckpoints:
    """With one checkpoint of three files; no driver's lock lies beside them."""
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path))
    monkeypatch.setattr(mirror, "GIVE_UP_S", 3.0)
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.2)
    config = ExperimentConfig(game_id="pong", experiment_id="x", output_dir="s3://runs/lab")

    def write(into: Path) -> list[Path]:
        for name in "abc":
            (into / name).write_text(name)
        return []

    save_checkpoint_folder(config.paths.checkpoint_dir(10), write, facts={"score": None})
    return TrialCheckpoints(config, str(config.checkpoints_dir))


def test_the_last_save_waits_as_long_as_objects_get_through(
    checkpoints: TrialCheckpoints, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "GIVE_UP_S", 5.0)  # less than all four objects take
    s3.fault = lambda method, path: time.sleep(1.5) if method == "PUT" else None
    checkpoints.start()
    checkpoints.deliver()
    assert MANIFEST in s3.keys("runs")
    checkpoints.close()


def test_it_gives_up_once_where_nothing_gets_through(
    checkpoints: TrialCheckpoints, s3: Any, eventually: Callable[..., None]
) -> None:
    s3.fault = lambda method, path: 503
    checkpoints.start()
    begun_s = time.monotonic()
    checkpoints.deliver()
    given_up_s = time.monotonic()
    assert given_up_s - begun_s >= mirror.GIVE_UP_S
    checkpoints.close()
    assert time.monotonic() - given_up_s < mirror.GIVE_UP_S
    s3.fault = lambda method, path: 503 if method in {"PUT", "POST"} else None
    assert not s3.keys("runs")
    # What a thread of it was about to ask for, it asks for within this test.
    eventually(lambda: not any(one.name.startswith("mirror-") for one in threading.enumerate()))
