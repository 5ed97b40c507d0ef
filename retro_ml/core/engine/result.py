"""What a run hands back."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from retro_ml.core.engine.run_storage import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """How a run ended and where its files are.

    `training_time` is in seconds of wall clock, start-up included; `final_reward` the mean score
    of the last 100 games, None before the first; `exit_code` what the command line returns;
    `best_model_path` is None without an evaluation during training;
    `storage` what of the files is in the storage that `output_dir` names, None for a folder.
    """

    success: bool
    training_time: float
    metrics_path: Path
    model_path: Path
    log_path: Path
    final_reward: float | None
    error: str | None
    experiment_id: str
    experiment_dir: Path
    state: Literal["completed", "stopped", "interrupted", "failed"]
    agent_steps: int
    games: int
    exit_code: int
    storage: Delivery | None = None
    best_model_path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types, paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.storage is not None:
            values["storage"] = self.storage.as_dict()
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
