"""The names of a sweep's files. Nothing else in retro_ml builds these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retro_ml.core.experiments.locations import is_uri, local_dir


@dataclass(frozen=True)
class SweepPaths:
    """Every path of the sweep `<output_dir>/<name>/`; its trials are folders in it."""

    output_dir: str
    name: str

    @property
    def sweep_dir(self) -> Path:
        """The sweep's folder, which its trials' are in.

        The staging place where `output_dir` is a URI.
        """
        return local_dir(self.output_dir) / self.name

    @property
    def storage_uri(self) -> str | None:
        """Where the sweep's files are sent to; None where they stay in the folder."""
        return f"{self.output_dir}/{self.name}" if is_uri(self.output_dir) else None

    @property
    def trials_dir(self) -> str:
        """The trials' output_dir."""
        return self.storage_uri or str(self.sweep_dir)

    @property
    def sent_names(self) -> tuple[str, ...]:
        """The sweep's own files that are sent to storage, the status last."""
        paths = (
            self.spec_path,
            self.log_path,
            self.leaderboard_csv_path,
            self.leaderboard_json_path,
            self.status_path,
        )
        return tuple(path.name for path in paths)

    @property
    def spec_path(self) -> Path:
        """The SweepConfig alone, so that it can be read back."""
        return self.sweep_dir / "sweep.json"

    @property
    def lock_path(self) -> Path:
        """There while a driver works on the sweep."""
        return self.sweep_dir / "sweep.lock"

    @property
    def status_path(self) -> Path:
        """State and progress of the whole."""
        return self.sweep_dir / "status.json"

    @property
    def leaderboard_csv_path(self) -> Path:
        """Who is ahead, one row a combination and one a trial."""
        return self.sweep_dir / "leaderboard.csv"

    @property
    def leaderboard_json_path(self) -> Path:
        """The same as one JSON document."""
        return self.sweep_dir / "leaderboard.json"

    @property
    def log_path(self) -> Path:
        """Python logging of what concerns no single trial, Ray's messages included."""
        return self.sweep_dir / "sweep.log"

    @property
    def tune_dir(self) -> Path:
        """Ray Tune's own bookkeeping, on a cluster."""
        return self.sweep_dir / "tune"
