"""What all writers of a run's files have in common: one experiment, one bus, one first error."""

import math
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.metrics.event_bus import MetricEvent, MetricEventBus

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig


class RunWriter(ABC):
    """A subscriber that writes one experiment's events to files; other experiments' pass by.

    Use it as `writer.attach(bus)` ... `writer.close()`, or subscribe it by hand:
    `bus.subscribe(None, writer)`. It raises ArtifactError when a file cannot be written. A bus only
    logs that, so the first error is kept in `error` as well, for whoever orders the run. A file of
    lines takes no more events after an error, since a gap in it would go unseen.
    """

    _ends_at_error = False

    def __init__(self, config: "ExperimentConfig") -> None:
        self.error: Exception | None = None
        self._config = config
        self._bus: MetricEventBus | None = None
        self._lock = threading.RLock()
        self._folder_made = False

    def attach(self, bus: MetricEventBus) -> Self:
        """Subscribe to every event of the bus, until `close`."""
        with self._lock:
            self._bus = bus
            try:
                self._make_folder()
                self._begin()
            except Exception as error:
                self.error = self.error or error
        bus.subscribe(None, self, experiment_id=self._config.experiment_id)
        return self

    def close(self) -> None:
        """Leave the bus and close the files. Raises ArtifactError."""
        if self._bus is not None:
            self._bus.unsubscribe(None, self, experiment_id=self._config.experiment_id)
            self._bus = None
        with self._lock:
            try:
                self._end()
            except Exception as error:
                self.error = self.error or error
                raise

    def __call__(self, event: MetricEvent) -> None:
        if event.experiment_id != self._config.experiment_id:
            return
        with self._lock:
            if self._ends_at_error and self.error is not None:
                return
            try:
                if not self._folder_made:
                    self._make_folder()
                self._take(event)
            except Exception as error:
                self.error = self.error or error
                raise

    def _begin(self) -> None:  # noqa: B027  (a hook that not every writer needs)
        """Before the first event, when attached."""

    @abstractmethod
    def _take(self, event: MetricEvent) -> None:
        """Write what the event tells."""

    def _end(self) -> None:  # noqa: B027  (likewise)
        """After the last event."""

    def _make_folder(self) -> None:
        folder = self._config.paths.experiment_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError.from_os_error(error, folder) from error
        self._folder_made = True


def plain(value: Any) -> Any:
    """The value in JSON types: arrays and numpy scalars as Python's, NaN and infinity as None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
