"""What is told of a trial that died."""

from pathlib import Path

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train._internal import storage
from ray.tune.experiment import Trial

from retro_ml.cluster.trials import explain

pytestmark = pytest.mark.unit


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """One whose files are still in the driver's own folder, as on a cluster."""
    monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "own"))
    shared = storage.StorageContext(str(tmp_path / "shared"), "sweep", trial_dir_name="a")
    trial = Trial("any", stub=True, trial_id="a", storage=shared)
    Path(trial.local_path).mkdir(parents=True)
    return trial


def test_a_failure_is_told_as_soon_as_it_is_noticed(trial: Trial) -> None:
    assert explain(trial) == "the trial ended as PENDING"
    trial.handle_error(RayActorError(error_msg="The actor died.\nIts node has died."))
    assert explain(trial) == "Its node has died."
    trial.handle_error(RayTaskError("step", "Traceback\nValueError: no", ValueError("no more")))
    assert explain(trial) == "no more", "the newest"
