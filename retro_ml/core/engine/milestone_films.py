"""Films of the agent at milestones of its training, and one of them all at the end.

They are made on the driver's machine from checkpoints, by a process of their own
(`evaluation.film_worker`) that gets the CPUs only when nobody else wants them. Whatever happens to
it, training goes on: what cannot be filmed is a warning in the log.

The process lives no longer than this one: it reads its orders from a pipe that this one alone holds
open. Weights that wait to be filmed have a name of their own in the folder of films, so that they
outlive their checkpoint, and this process: a resumed run films them then.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from retro_ml.core.engine.progress_text import shown_path
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

logger = logging.getLogger("retro_ml.films")

WORKER = "retro_ml.evaluation.film_worker"
"""The module that films. It needs PyTorch, so that this room knows no more of it than its name."""
JOIN, ENOUGH = "join", "enough"
"""Orders beside the steps to film: put all films together and end; leave out what is not filmed."""
START_AFTER_S = 250.0
"""Of training, before the process starts (this project's choice): its start takes 5 s of CPU time
at once, a fiftieth of that. What is to be filmed waits until then."""
LONGEST_WAIT_S = 300.0
"""For the films that are not ready when the run is (this project's choice)."""
_NEEDED = ("av", "PIL")  # what the extra [video] brings
_GRACE_S = 20.0
_POLL_S = 0.1
_MODULE = "module.safetensors"
_FILM = re.compile(r"step-(\d+)\.mp4")
_WEIGHTS = re.compile(r"\.step-(\d+)\.safetensors")


class MilestoneFilms:
    """Films nothing; the ground of the one that does."""

    @contextmanager
    def attached(self, bus: MetricEventBus) -> Iterator[None]:
        """On the bus for the time of a `with` block."""
        yield

    def finish(self, *, stopped: Callable[[], bool]) -> None:
        """After a whole run: waits for the films, a while at most, and for the one of them all."""


def build_milestone_films(
    config: ExperimentConfig, *, notice: Callable[[str], None]
) -> MilestoneFilms:
    """The films that the config asks for; `notice` tells the user what is waited for."""
    if config.video_every is None:
        return MilestoneFilms()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning(
            "nothing is filmed: %s is not installed -> pip install 'retro_ml[video]'", missing[0]
        )
        return MilestoneFilms()
    return _OrderedFilms(config, every=config.video_every, notice=notice)


class _OrderedFilms(MilestoneFilms):
    def __init__(
        self, config: ExperimentConfig, *, every: float, notice: Callable[[str], None]
    ) -> None:
        self._config = config
        self._paths = config.paths
        self._every = every
        self._notice = notice
        self._worker: _Worker | None = None
        self._ordered: set[int] = set()
        self._began_s = 0.0
        self._given_up = False

    @contextmanager
    def attached(self, bus: MetricEventBus) -> Iterator[None]:
        self._began_s = time.monotonic()
        bus.subscribe(None, self)
        try:
            yield
        finally:
            bus.unsubscribe(None, self)
            if self._worker is not None:
                self._worker.end()

    def __call__(self, event: MetricEvent) -> None:
        """Keeps the weights of the first checkpoint at a milestone, and has them filmed."""
        if event.experiment_id != self._config.experiment_id or self._given_up:
            return
        try:
            if event.event_type is EventType.CHECKPOINT_SAVED:
                self._consider(event.data["step"], Path(event.data["path"]))
                if time.monotonic() - self._began_s >= START_AFTER_S:
                    self._order_kept()
        except OSError as error:
            self._give_up(f"{error.strerror or error}: {error.filename or self._paths.videos_dir}")

    def finish(self, *, stopped: Callable[[], bool]) -> None:
        if self._given_up or not _numbers(self._paths.videos_dir, _FILM, _WEIGHTS):
            return
        try:
            self._order_kept()
            self._order(JOIN)
            self._wait(stopped)
        except OSError as error:
            self._give_up(str(error))
        if self._paths.learning_film_path.is_file():
            self._notice(f"film: {shown_path(self._paths.learning_film_path)}")

    def _consider(self, agent_steps: int, checkpoint: Path) -> None:
        milestone = self._milestone(agent_steps)
        known = _numbers(self._paths.videos_dir, _FILM, _WEIGHTS)
        if milestone < 1 or milestone in map(self._milestone, known):
            return
        if self._paths.storage_uri is not None and not checkpoint.exists():
            # It is not in storage yet either: to wait for it would take a thread of its own.
            self._give_up(
                "the checkpoints are on the disk of another machine; films need an output_dir on a "
                "disk that this machine and the nodes share"
            )
            return
        self._paths.videos_dir.mkdir(exist_ok=True)
        kept = self._paths.milestone_weights_path(agent_steps)
        _keep(checkpoint / _MODULE, kept)

    def _milestone(self, agent_steps: int) -> float:
        """The last milestone passed, 0 before the first; the end of the run is one of its own.

        Passed as well is one that is nearer to this checkpoint than to the next: checkpoints come
        at the end of an iteration, a little before or after it.
        """
        config = self._config
        if agent_steps >= config.total_timesteps:
            return math.inf
        half_agent_steps = (self._find_next_checkpoint(agent_steps) - agent_steps) / 2
        film_agent_steps = self._every * config.total_timesteps
        last = math.ceil(1 / self._every - 1e-9) - 1
        return min(int((agent_steps + half_agent_steps) / film_agent_steps + 1e-9), last)

    def _find_next_checkpoint(self, agent_steps: int) -> int:
        """Agent steps at the one that comes after `agent_steps`."""
        iteration, evaluated = self._config.iteration_agent_steps, self._config.evaluation
        interval = self._config.checkpoint_iterations * iteration
        coming = (agent_steps // interval + 1) * interval
        if evaluated.every_steps is not None:
            due = (agent_steps // evaluated.every_steps + 1) * evaluated.every_steps
            coming = min(coming, -(-due // iteration) * iteration)
        return coming

    def _order_kept(self) -> None:
        """What waits to be filmed, an earlier attempt's included."""
        for agent_steps in _numbers(self._paths.videos_dir, _WEIGHTS):
            if agent_steps not in self._ordered:
                self._ordered.add(agent_steps)
                self._order(str(agent_steps))

    def _order(self, words: str) -> None:
        if self._worker is None:
            self._worker = _Worker(self._paths.experiment_dir)
        try:
            self._worker.tell(words)
        except BrokenPipeError:
            self._give_up(self._worker.last_words())

    def _wait(self, stopped: Callable[[], bool]) -> None:
        worker = self._worker
        if worker is None or self._given_up:
            return
        waiting = len(_numbers(self._paths.videos_dir, _WEIGHTS))
        if waiting:
            films = "1 film" if waiting == 1 else f"{waiting} films"
            self._notice(f"filming: {films} to go, Ctrl-C leaves them out")
        deadline_s = time.monotonic() + LONGEST_WAIT_S
        while worker.is_alive() and time.monotonic() < deadline_s and not stopped():
            time.sleep(_POLL_S)
        if worker.is_alive():
            with suppress(BrokenPipeError):
                worker.tell(ENOUGH)
            worker.wait(_GRACE_S)
        if worker.failed:
            self._give_up(worker.last_words())
        for agent_steps in _numbers(self._paths.videos_dir, _WEIGHTS):
            logger.warning("no film of the agent after %s agent steps", f"{agent_steps:,}")
            self._paths.milestone_weights_path(agent_steps).unlink(missing_ok=True)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        logger.warning("no more films in this run: %s", reason)


class _Worker:
    """The process that films, as the driver sees it."""

    def __init__(self, experiment_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(experiment_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            # Ctrl-C is not for it. But it stays in the session: Linux shares the CPUs out among
            # sessions first (autogroups), and niceness counts only among the processes of one.
            process_group=0,
        )
        self._last_line = ""
        self._reader = threading.Thread(target=self._read, name="films", daemon=True)
        self._reader.start()

    @property
    def failed(self) -> bool:
        """It has ended, but not as it was told to."""
        return self._process.poll() not in (None, 0)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def tell(self, words: str) -> None:
        """Raises BrokenPipeError where it is gone."""
        stdin = self._stdin()
        stdin.write(words + "\n")
        stdin.flush()

    def wait(self, longest_s: float) -> None:
        """Ends it where it takes longer."""
        try:
            self._process.wait(longest_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(longest_s)

    def end(self) -> None:
        """It leaves what it is doing."""
        with suppress(BrokenPipeError):
            self._stdin().close()
        self.wait(_GRACE_S)

    def last_words(self) -> str:
        """Why it is gone."""
        self.wait(_GRACE_S)
        said = f": {self._last_line}" if self._last_line else ""
        return f"the filming process ended with exit code {self._process.returncode}{said}"

    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                text = line.rstrip()
                if not text:
                    continue
                self._last_line = text
                level = logging.WARNING if text.startswith("warning: ") else logging.INFO
                logger.log(level, "%s", text.removeprefix("warning: "))


def _keep(source: Path, target: Path) -> None:
    """The same file under another name: what is linked outlives its checkpoint. Raises OSError."""
    try:
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _numbers(folder: Path, *patterns: re.Pattern[str]) -> list[int]:
    """The agent steps in the names of a folder's files, ascending."""
    if not folder.is_dir():
        return []
    matches = (p.fullmatch(name) for p in patterns for name in os.listdir(folder))
    return sorted({int(match[1]) for match in matches if match})
