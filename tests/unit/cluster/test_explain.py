"""What is told of a trial that died."""

import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train._internal import storage
from ray.tune.experiment import Trial

from retro_ml.cluster.trials import explain
from retro_ml.core.artifacts.checkpoint_files import CheckpointError
from retro_ml.core.artifacts.storage import ArtifactError

pytestmark = pytest.mark.unit


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """One whose files are still in the driver's own folder, as on a cluster."""
    monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "own"))
    shared = storage.StorageContext(str(tmp_path / "shared"), "sweep", trial_dir_name="a")
    trial = Trial("any", stub=True, trial_id="a", storage=shared)
    Path(trial.local_path).mkdir(parents=True)
    return trial


def fail(trial: Trial, error: Exception) -> None:
    """As a method of an actor that raises it."""
    try:
        raise error
    except Exception as raised:
        told = "ray::TrialActor.train()\n" + traceback.format_exc()
        trial.handle_error(RayTaskError("train", told, raised).as_instanceof_cause())


def test_a_failure_is_told_as_soon_as_it_is_noticed(trial: Trial) -> None:
    assert explain(trial) == "the trial ended as PENDING"
    trial.handle_error(RayActorError(error_msg="The actor died.\n\tpid: 1\nIts node: has died."))
    assert explain(trial) == "Its node: has died."
    fail(trial, ValueError("no more"))
    assert explain(trial) == "no more", "the newest"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("rate: too high"), "rate: too high"),
        (ValueError("first\nsecond: last"), "second: last"),
        (CheckpointError("step-10 is gone"), "step-10 is gone"),
        (OSError(28, "No space left", "/runs"), "[Errno 28] No space left: '/runs'"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_message_is_told_without_the_exceptions_name(
    trial: Trial, error: Exception, told: str
) -> None:
    fail(trial, error)
    assert explain(trial) == told


def test_an_exception_that_is_raised_from_another_has_the_last_word(trial: Trial) -> None:
    error = ArtifactError("the disk is full")
    error.__cause__ = OSError("no space")
    fail(trial, error)
    assert explain(trial) == "the disk is full"


def test_no_pickle_is_read_for_it(trial: Trial) -> None:
    fail(trial, ValueError("no more"))
    Path(trial.pickled_error_file).write_bytes(pickle.dumps(Planted(trial.local_path)))
    assert explain(trial) == "no more"
    assert not Path(trial.local_path, "planted").exists()


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self._path = str(Path(folder, "planted"))

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)
