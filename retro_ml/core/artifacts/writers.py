"""The subscribers that turn a run's events into its files.

Each attempt begins with RUN_STARTED and the step it goes on from: what lies beyond that step is
cut from the files first, since the attempt writes it anew. So rows are neither doubled nor missing
however often a run was ended and taken up again.
"""

import json
import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro_ml.core.artifacts.disk_pace import PACE
from retro_ml.core.artifacts.metrics_file import (
    DATA_COLUMN_NAMES,
    ONLY_IN_EVENTS,
    build_header,
    build_row,
    cut_rows,
    save_metrics_json,
)
from retro_ml.core.artifacts.model_writer import ModelWriter
from retro_ml.core.artifacts.run_writer import RunWriter, plain
from retro_ml.core.artifacts.status import StatusWriter
from retro_ml.core.artifacts.storage import AppendFile, rewrite_lines
from retro_ml.core.artifacts.tensorboard import TensorBoardWriter
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig

__all__ = [
    "LogWriter",
    "MetricsWriter",
    "ModelWriter",
    "StatusWriter",
    "TensorBoardWriter",
    "build_writers",
]

logger = logging.getLogger("retro_ml.artifacts")
run_logger = logging.getLogger("retro_ml.run")

_LEVELS = {EventType.ERROR: logging.ERROR, EventType.EPISODE_FINISHED: logging.DEBUG}
_KNOWN_NAMES = DATA_COLUMN_NAMES | ONLY_IN_EVENTS
_SYNC_INTERVAL_S = 1.0
# What `plain` leaves as it is, NaN and infinity apart.
_PLAIN_TYPES = frozenset((str, int, float, bool, type(None)))
_encode = json.JSONEncoder(allow_nan=False).encode
# metrics.json is rewritten whole: growing by a quarter each time, a run of any length writes it
# five times over in all.
_FIRST_JSON_AFTER_S = 2.0
_JSON_INTERVAL_S = 5.0
_JSON_GROWTH = 1.25


def build_writers(
    config: "ExperimentConfig", storage: Callable[[], dict[str, Any]] | None = None
) -> list[RunWriter]:
    """Every writer of a run; the status comes last, so that it tells of files that are there.

    Args:
        config: of the run.
        storage: what the status tells of the storage that the files are sent to.
    """
    return [
        MetricsWriter(config),
        LogWriter(config),
        ModelWriter(config),
        TensorBoardWriter(config),
        StatusWriter(config, storage),
    ]


class _LinesWriter(RunWriter):
    """A writer of one file of lines, which each attempt cuts back to where it goes on."""

    _ends_at_error = True

    def __init__(self, config: "ExperimentConfig", path: Path) -> None:
        super().__init__(config)
        self._path = path
        self._lines: AppendFile | None = None
        self._synced_at_s = time.monotonic()
        self._iterations = self._saved_iterations = 0
        """As Tune counts them: since this driver began; a retry goes on from the last save's."""

    def _open(self) -> AppendFile:
        if self._lines is None:
            self._lines = AppendFile(self._path)
            if self._lines.size_bytes == 0:
                self._begin_file(self._lines)
        return self._lines

    def _begin_file(self, lines: AppendFile) -> None:
        """Write what an empty file begins with."""

    def _reopen_cut(self, *, after_step: int) -> None:
        self._end()
        if self._path.exists():
            self._cut(after_step=after_step)
        self._open()

    def _append(self, event: MetricEvent, line: bytes) -> None:
        """Finished games may wait for the next other event, or for the second's sync."""
        self._open().append(line, may_wait=event.event_type is EventType.EPISODE_FINISHED)

    @abstractmethod
    def _cut(self, *, after_step: int) -> None:
        """Take the lines beyond a step out of the closed file."""

    def _sync(self, event: MetricEvent) -> None:
        """Training steps come often and may wait; all else is on the disk at once."""
        if event.event_type is EventType.TRAINING_STEP:
            self._iterations += 1
        elif event.event_type is EventType.CHECKPOINT_SAVED:
            self._saved_iterations = self._iterations
        elif event.event_type is EventType.RUN_STARTED:
            self._iterations = self._saved_iterations
        if _is_ordinary(event) and not (
            self._precedes_checkpoint(event)
            or (time.monotonic() - self._synced_at_s >= _SYNC_INTERVAL_S and PACE.allows())
        ):
            return
        with PACE.timed():
            self._open().sync()
        self._synced_at_s = time.monotonic()

    def _precedes_checkpoint(self, event: MetricEvent) -> bool:
        """Whether the trial saves next: a checkpoint whose rows are lost cannot be gone on from."""
        if event.event_type is not EventType.TRAINING_STEP:
            return event.event_type is EventType.EVALUATION_FINISHED
        ends = event.data.get("step", 0) >= self._config.total_timesteps
        return ends or self._iterations % self._config.checkpoint_iterations == 0

    def _end(self) -> None:
        if self._lines is not None:
            lines, self._lines = self._lines, None
            lines.close()


class MetricsWriter(_LinesWriter):
    """metrics.csv, appended row by row, and metrics.json made from it now and then."""

    def __init__(self, config: "ExperimentConfig") -> None:
        super().__init__(config, config.paths.metrics_csv_path)
        self._json_path = config.paths.metrics_json_path
        self._unknown_keys: set[str] = set()
        self._json_size_bytes = 0
        self._json_due_s = 0.0

    def _take(self, event: MetricEvent) -> None:
        event_type = event.event_type
        if event_type is EventType.RUN_STARTED:
            self._reopen_cut(after_step=event.data.get("from_step", 0))
            self._save_json(next_after_s=_FIRST_JSON_AFTER_S)
        ends = event_type is EventType.RUN_COMPLETED
        if ends or _is_ordinary(event):
            if not _KNOWN_NAMES.issuperset(event.data):
                self._note_unknown_keys(event.data.keys() - _KNOWN_NAMES)
            self._append(event, build_row(event))
        self._sync(event)
        if ends or event_type is EventType.ERROR or self._json_is_due():
            self._save_json(next_after_s=_JSON_INTERVAL_S)

    def _begin_file(self, lines: AppendFile) -> None:
        lines.append(build_header())

    def _cut(self, *, after_step: int) -> None:
        cut_rows(self._path, after_step=after_step)

    def _json_is_due(self) -> bool:
        size_bytes = self._open().size_bytes
        if size_bytes < _JSON_GROWTH * self._json_size_bytes:
            return False
        return time.monotonic() >= self._json_due_s and PACE.allows()

    def _save_json(self, *, next_after_s: float) -> None:
        config = self._config
        head = {
            "experiment_id": config.experiment_id,
            "game_id": config.game_id,
            "algorithm": config.algorithm,
            "total_timesteps": config.total_timesteps,
        }
        lines = self._open()
        lines.flush()
        with PACE.timed():
            save_metrics_json(self._path, self._json_path, head=head)
        self._json_size_bytes = lines.size_bytes
        self._json_due_s = time.monotonic() + next_after_s

    def _note_unknown_keys(self, names: set[str]) -> None:
        unknown = names - self._unknown_keys
        if unknown:
            self._unknown_keys |= unknown
            logger.warning(
                "metrics.csv has no column for %s; events.log has it", ", ".join(sorted(unknown))
            )


class LogWriter(_LinesWriter):
    """events.log, one JSON object a line for every event, and the same in words to logging.

    Finished games are told at level DEBUG: there are many, and metrics.csv has them.
    """

    def __init__(self, config: "ExperimentConfig") -> None:
        super().__init__(config, config.paths.events_path)

    def _take(self, event: MetricEvent) -> None:
        if event.event_type is EventType.RUN_STARTED:
            self._reopen_cut(after_step=event.data.get("from_step", 0))
        self._append(event, _to_json(event).encode() + b"\n")
        self._sync(event)
        level = _LEVELS.get(event.event_type, logging.INFO)
        if run_logger.isEnabledFor(level):
            run_logger.log(level, "%s: %s", event.event_type.value, _in_words(event.data))

    def _cut(self, *, after_step: int) -> None:
        damaged = 0

        def keep(line: bytes) -> bytes | None:
            nonlocal damaged
            try:
                event = json.loads(line)
                begins = event["event_type"] == EventType.RUN_STARTED.value
                return line if begins or event["data"].get("step", 0) <= after_step else None
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
                return None

        rewrite_lines(self._path, keep)
        if damaged:
            logger.warning("%s: %d damaged lines dropped", self._path, damaged)


def _is_ordinary(event: MetricEvent) -> bool:
    return (
        event.event_type is EventType.TRAINING_STEP
        or event.event_type is EventType.EPISODE_FINISHED
        or event.event_type is EventType.EVALUATION_FINISHED
    )


def _to_json(event: MetricEvent) -> str:
    fields, data = event.to_dict(), event.data
    # The common case needs no copy made by `plain`. Other types of keys would be spelt otherwise.
    if _PLAIN_TYPES.issuperset(map(type, data.values())) and {str}.issuperset(map(type, data)):
        try:
            return _encode(fields)
        except ValueError:  # NaN or infinity
            pass
    return _encode(plain(fields))


def _in_words(data: dict[str, Any]) -> str:
    """`step 10,240, reward 3.2, ...`, absent values left out."""
    return ", ".join(f"{key} {_word(value)}" for key, value in data.items() if value is not None)


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
