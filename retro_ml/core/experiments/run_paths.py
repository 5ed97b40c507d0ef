"""The names of a run's files. Nothing else in retro_ml builds these names.

Paths are absolute as seen from the process that asks: Tune moves its workers to folders of their
own, so a path that leaves the driver has to be taken from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from retro_ml.core.experiments.locations import is_uri, local_dir

CONFIG_NAME = "config.json"
STATUS_NAME = "status.json"
CLAIM_NAME = "claim.json"

_SENT_NAME = re.compile(
    r"videos/[A-Za-z0-9][A-Za-z0-9-]*\.mp4|tensorboard/events\.out\.tfevents\.[A-Za-z0-9._-]+",
    re.ASCII,
)


@dataclass(frozen=True)
class RunPaths:
    """Every path of the run `<output_dir>/<experiment_id>/`; making them is up to the writers."""

    output_dir: str
    experiment_id: str

    @property
    def experiment_dir(self) -> Path:
        """The run's folder; whatever the run writes is inside it.

        The staging place where `output_dir` is a URI.
        """
        return local_dir(self.output_dir) / self.experiment_id

    @property
    def storage_uri(self) -> str | None:
        """Where the run's files are sent to; None where they stay in the folder."""
        return f"{self.output_dir}/{self.experiment_id}" if is_uri(self.output_dir) else None

    @property
    def config_path(self) -> Path:
        """The ExperimentConfig alone, so that it can be read back."""
        return self.experiment_dir / CONFIG_NAME

    @property
    def lock_path(self) -> Path:
        """There while a driver works on the run."""
        return self.experiment_dir / "run.lock"

    @property
    def claim_path(self) -> Path:
        """Which driver's work the folder holds; the same file in storage tells whose is newer."""
        return self.experiment_dir / CLAIM_NAME

    @property
    def status_path(self) -> Path:
        """State, progress, process id, error and the versions in use."""
        return self.experiment_dir / STATUS_NAME

    @property
    def metrics_json_path(self) -> Path:
        """All rows as one JSON document."""
        return self.experiment_dir / "metrics.json"

    @property
    def metrics_csv_path(self) -> Path:
        """The same rows, appended as they come."""
        return self.experiment_dir / "metrics.csv"

    @property
    def events_path(self) -> Path:
        """Every event of the bus, one JSON object a line."""
        return self.experiment_dir / "events.log"

    @property
    def log_path(self) -> Path:
        """Python logging, Ray's messages included."""
        return self.experiment_dir / "training.log"

    @property
    def model_path(self) -> Path:
        """The trained policy."""
        return self.experiment_dir / "model.zip"

    @property
    def best_model_path(self) -> Path:
        """The policy of the highest mean score in an evaluation during training."""
        return self.experiment_dir / "best_model.zip"

    @property
    def initial_weights_path(self) -> Path:
        """What a run with `init_from` begins with."""
        return self.experiment_dir / "initial-weights.safetensors"

    def evaluation_path(self, protocol: str) -> Path:
        """The model's score by a named protocol, once it was asked for."""
        return self.experiment_dir / f"evaluation-{protocol}.json"

    @property
    def tensorboard_dir(self) -> Path:
        """Event files for TensorBoard."""
        return self.experiment_dir / "tensorboard"

    @property
    def checkpoints_dir(self) -> Path:
        """What training needs to go on."""
        return self.experiment_dir / "checkpoints"

    def checkpoint_dir(self, agent_steps: int) -> Path:
        """The checkpoint taken after `agent_steps`."""
        return self.checkpoints_dir / f"step-{agent_steps}"

    def find_sent_names(self) -> tuple[str, ...]:
        """Files that are sent to storage, the status last; checkpoints are sent apart."""
        paths = (
            self.initial_weights_path,
            self.config_path,
            self.log_path,
            self.metrics_csv_path,
            self.events_path,
            self.metrics_json_path,
            self.model_path,
            self.best_model_path,
            *sorted(self.tensorboard_dir.glob("events.out.tfevents.*")),
            *sorted(self.videos_dir.glob("*.mp4")),
            self.status_path,
        )
        return tuple(path.relative_to(self.experiment_dir).as_posix() for path in paths)

    def choose_sent_names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that `find_sent_names` gives where their files are; no other path."""
        known = self.find_sent_names()
        return tuple(name for name in names if name in known or _SENT_NAME.fullmatch(name))

    @property
    def videos_dir(self) -> Path:
        """Films of the agent."""
        return self.experiment_dir / "videos"

    @property
    def film_path(self) -> Path:
        """The trained agent's, once it was asked for."""
        return self.videos_dir / "agent.mp4"

    def milestone_film_path(self, agent_steps: int) -> Path:
        """Of the agent as it was after `agent_steps`."""
        return self.videos_dir / f"step-{agent_steps}.mp4"

    def milestone_weights_path(self, agent_steps: int) -> Path:
        """The weights for that film, until it is made."""
        return self.videos_dir / f".step-{agent_steps}.safetensors"

    @property
    def learning_film_path(self) -> Path:
        """All milestones, one after the other."""
        return self.videos_dir / "learning.mp4"

    @property
    def tune_dir(self) -> Path:
        """Ray Tune's own bookkeeping."""
        return self.experiment_dir / "tune"
