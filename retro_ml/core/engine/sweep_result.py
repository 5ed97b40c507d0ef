"""What a sweep hands back."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.leaderboard import Combination, Standing, rank_combinations
from retro_ml.core.engine.run_storage import Delivery
from retro_ml.core.experiments.sweep_paths import SweepPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """How a sweep ended and where its files are; `exit_code` is what the command line returns.

    state: completed, failed (at least one trial did), or interrupted (there is something left).
    """

    state: str
    error: str | None
    exit_code: int
    sweep_id: str
    paths: SweepPaths
    standings: tuple[Standing, ...]
    took_s: float
    storage: Delivery | None = None
    """What of the files is in the storage that `output_dir` names, None for a folder."""

    @property
    def success(self) -> bool:
        """Whether every trial ended, or was stopped by the scheduler."""
        return self.state == "completed"

    @property
    def sweep_dir(self) -> Path:
        """The sweep's folder."""
        return self.paths.sweep_dir

    @property
    def combinations(self) -> list[Combination]:
        """What all trials share that differ in their seed alone, the best of each game first."""
        return rank_combinations(self.standings)

    @property
    def failed(self) -> list[Standing]:
        """The trials that failed."""
        return [one for one in self.standings if one.state == "failed"]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types, paths as text."""
        storage = self.storage
        sent = {} if storage is None else {"storage": storage.as_dict()}
        return sent | {
            "sweep_id": self.sweep_id,
            "success": self.success,
            "state": self.state,
            "error": self.error,
            "exit_code": self.exit_code,
            "took_s": self.took_s,
            "sweep_dir": str(self.sweep_dir),
            "leaderboard_path": str(self.paths.leaderboard_json_path),
            "trials": [asdict(one) for one in self.standings],
        }
