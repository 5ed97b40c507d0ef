"""training.log: what Python's loggers say during a run goes to the run's file, not to the screen.

Warnings of retro_ml itself are shown to the user as well.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from retro_ml.core.artifacts.storage import ArtifactError

# ray.rllib does not propagate to ray: it has a handler of its own.
LOGGER_NAMES = ("retro_ml", "ray", "ray.rllib", "py.warnings")
LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RunLog:
    """Takes the loggers over for the time of a `with` block and gives them back as they were.

    `error` is the first failure to write the file, or None. `trials`, of a sweep, takes what is
    said of a single trial out of it.
    """

    def __init__(
        self, path: Path, *, notice: Callable[[str], None], trials: "TrialLogs | None" = None
    ) -> None:
        self._file = _LogFile(path)
        self._trials = trials
        if trials is not None:
            self._file.addFilter(lambda record: not trials.takes(record))
        self._screen = _Notices(notice)
        self._taken: list[_TakenLogger] = []
        self._showwarning = warnings.showwarning

    @property
    def error(self) -> Exception | None:
        return self._file.error

    def __enter__(self) -> "RunLog":
        self._taken = [_TakenLogger(name) for name in LOGGER_NAMES]
        for taken in self._taken:
            taken.logger.handlers = [self._file]
            if taken.logger.name == "retro_ml":
                taken.logger.handlers.append(self._screen)
                if self._trials is not None:
                    taken.logger.handlers.append(self._trials)
        self._showwarning = warnings.showwarning
        logging.captureWarnings(True)
        return self

    def __exit__(self, *_: object) -> None:
        if warnings.showwarning is not self._showwarning:
            logging.captureWarnings(False)
        for taken in self._taken:
            taken.give_back()
        self._file.close()


class TrialLogs(logging.Handler):
    """training.log of each trial of a sweep: what is logged while one of its events is handed out.

    `speaking` is the experiment whose event that is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.speaking: str | None = None
        self._files: dict[str, _LogFile] = {}

    def open(self, experiment_id: str, path: Path) -> "_LogFile":
        """Begins a trial's; the file is made with its first line."""
        self._files[experiment_id] = file = _LogFile(path)
        return file

    def close_file(self, experiment_id: str) -> None:
        """Ends a trial's."""
        self._files.pop(experiment_id).close()

    def takes(self, record: logging.LogRecord) -> bool:
        """Whether the record goes to a trial's file."""
        return record.name.startswith("retro_ml.") and self.speaking in self._files

    def emit(self, record: logging.LogRecord) -> None:
        if self.takes(record) and self.speaking is not None:
            self._files[self.speaking].handle(record)


class _TakenLogger:
    """One logger and the state it gets back.

    Ray adds handlers to its loggers when it is imported, which may be in the middle of a run:
    while the logger is taken, such a handler is kept for later instead of printing.
    """

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)
        self._handlers = list(self.logger.handlers)
        self._propagate = self.logger.propagate
        self._level = self.logger.level
        self.logger.propagate = False
        if self.logger.getEffectiveLevel() > logging.INFO:
            self.logger.setLevel(logging.INFO)
        vars(self.logger)["addHandler"] = self._handlers.append

    def give_back(self) -> None:
        vars(self.logger).pop("addHandler")
        self.logger.handlers = self._handlers
        self.logger.propagate = self._propagate
        self.logger.setLevel(self._level)


class _LogFile(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.error: Exception | None = None
        super().setFormatter(_UtcFormatter(LINE_FORMAT))

    def _open(self) -> TextIOWrapper:
        """Ends the line that a kill has torn, so that the next one does not go on with it."""
        file = super()._open()
        with open(self.baseFilename, "rb") as before:
            end = before.seek(0, os.SEEK_END)
            before.seek(max(0, end - 1))
            if before.read(1) not in (b"", b"\n"):
                file.write("\n")
        return file

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        """Keep the format: `ray.init` gives its own to every handler of Ray's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._keep(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # lines that an earlier failure left in the buffer
            self._keep(error)

    def _keep(self, error: OSError) -> None:
        if self.error is None:
            self.error = ArtifactError.from_os_error(error, Path(self.baseFilename))


class _UtcFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")


class _Notices(logging.Handler):
    """Warnings as one line each, without their tracebacks: those stand in the file.

    How the run itself goes and ends is told by its progress and its summary already.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._notice = notice
        self.addFilter(lambda record: record.name not in ("retro_ml.run", "retro_ml.engine"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._notice(f"{record.levelname.lower()}: {record.getMessage()}")
        except Exception:
            self.handleError(record)
