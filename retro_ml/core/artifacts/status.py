"""status.json: the state of a run at a glance, replaced atomically, at most once a second."""

import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro_ml.core.artifacts.disk_pace import PACE
from retro_ml.core.artifacts.run_writer import RunWriter, plain
from retro_ml.core.artifacts.storage import replace_atomically
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig

_INTERVAL_S = 1.0
_DISTRIBUTIONS = ("retro_ml", "ray", "torch", "ale-py")


def installed_versions() -> dict[str, str | None]:
    """Versions of retro_ml, ray, torch, ale-py and python; None for what is not installed.

    Read from the packages' metadata: nothing is imported.
    """
    versions: dict[str, str | None] = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "python": platform.python_version()}


class StatusWriter(RunWriter):
    """Keeps status.json up to date with a run's events.

    state: starting, running, completed, stopped (by a sweep's scheduler), interrupted or failed;
    progress: 0 to 1; storage: what of the run is there, where its files are sent to storage.
    """

    def __init__(
        self, config: "ExperimentConfig", storage: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        super().__init__(config)
        self._storage = storage
        self._path = config.paths.status_path
        self._saved_at_s = -_INTERVAL_S
        self._status: dict[str, Any] = {
            "experiment_id": config.experiment_id,
            "state": "starting",
            "step": 0,
            "total_timesteps": config.total_timesteps,
            "progress": 0.0,
            "reward": None,
            "games": 0,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": _now(),
            "updated_at": _now(),
            "error": None,
            "versions": installed_versions(),
        }

    def _begin(self) -> None:
        self._status |= self._read_before()
        self._save()

    def _take(self, event: MetricEvent) -> None:
        data = event.data
        match event.event_type:
            case EventType.RUN_STARTED:
                self._status.update(state="running", error=None)
                self._set_step(data.get("from_step", 0))
                if self._status["step"] == 0:
                    self._status.update(reward=None, games=0)
            case EventType.TRAINING_STEP:
                self._set_step(data["step"])
                self._status["reward"] = plain(data.get("reward"))
                self._status["games"] = plain(data.get("games"))
            case EventType.RUN_COMPLETED:
                self._status.update(state=data["state"], reward=plain(data.get("reward")))
                self._set_step(data["step"])
            case EventType.ERROR:
                self._status.update(state="failed", error=data["message"])
            case _:
                return
        ordinary = event.event_type is EventType.TRAINING_STEP
        due = time.monotonic() - self._saved_at_s >= _INTERVAL_S
        if not ordinary or (due and PACE.allows()):
            self._save()

    def _read_before(self) -> dict[str, Any]:
        """How far the run was, until the attempt tells how far it goes on from."""
        try:
            if not self._path.is_file():
                return {}
            before = json.loads(self._path.read_bytes())
            kept = {name: plain(before[name]) for name in ("step", "reward", "games")}
            progress = min(1.0, kept["step"] / self._config.total_timesteps)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return {**kept, "progress": progress}

    def _set_step(self, step: int) -> None:
        self._status["step"] = plain(step)
        self._status["progress"] = min(1.0, step / self._config.total_timesteps)

    def _save(self) -> None:
        self._saved_at_s = time.monotonic()
        self._status["updated_at"] = _now()
        if self._storage is not None:
            self._status["storage"] = self._storage()
        with PACE.timed():
            _replace(self._path, self._status)


def note_storage(path: Path, storage: dict[str, Any]) -> None:
    """Puts what is known of a run's storage into the status of an ended run.

    Raises:
        ArtifactError: it cannot be written.
    """
    _replace(path, {**json.loads(path.read_bytes()), "storage": storage})


def _replace(path: Path, status: dict[str, Any]) -> None:
    text = json.dumps(status, indent=2, allow_nan=False) + "\n"
    replace_atomically(path, lambda file: file.write(text.encode()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
