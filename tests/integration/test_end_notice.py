"""When Ray Tune's trials hear that they are to end."""

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import CheckpointConfig, Trainable

from retro_ml.cluster.driver_process import environment
from retro_ml.cluster.end_notice import EndNotice
from retro_ml.cluster.trials import TUNE_ENVIRONMENT

pytestmark = pytest.mark.integration


class Noting(Trainable):
    """Notes what is asked of it in a file."""

    def setup(self, config: dict[str, Any]) -> None:
        self._notes = Path(config["notes"])

    def step(self) -> dict[str, Any]:
        self._note("step")
        return {}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        self._note("save")
        return {}

    def note_end(self) -> None:
        self._note("end")

    def _note(self, word: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{word}\n")


def test_a_trial_is_told_of_its_end_before_its_last_save_alone(
    own_ray: None, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with environment(TUNE_ENVIRONMENT):
        tune.run(
            Noting,
            config={"notes": str(notes)},
            stop={"training_iteration": 3},
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            callbacks=[EndNotice()],
            storage_path=str(tmp_path / "tune"),
            verbose=0,
        )
    assert notes.read_text().split() == ["step", "save", "step", "save", "step", "end", "save"]
