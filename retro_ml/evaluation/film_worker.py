"""The process that films a run's milestones: `core.engine.milestone_films` starts and orders it.

It runs only while no other process wants the CPU (SCHED_IDLE on Linux, and niceness 19), in one
thread, and while training goes on for a small share of the time: even an idle core's caches and
execution units are training's too. Orders come as lines on stdin: agent steps to film; `join`,
after which it puts all films together and ends; `enough`, which leaves out what is not filmed yet.
When stdin ends, whoever ordered the films is dead, and it ends at once.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from retro_ml.core.engine.milestone_films import ENOUGH, JOIN
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.evaluation.film_options import FilmOptions
from retro_ml.evaluation.video_file import FRAMES_PER_S, NoVideo, require_video, temporary_path

LONGEST_FRAMES = 20 * FRAMES_PER_S
"""Of a milestone's film: the first 20 s of one game (this project's choice)."""
SHARE = 0.02
"""Of one CPU's time, while training goes on (this project's choice: on two cores each second of
filming took 0.6 seconds from training, 0.8 at most, docs/films.md)."""
_CANNOT = 3
_LONGEST = 500  # characters of a warning


def main(experiment_dir: str) -> int:
    """Films what is ordered; the process's exit code."""
    step_back()
    orders = Orders(sys.stdin)
    folder = Path(experiment_dir)
    paths = RunPaths(output_dir=str(folder.parent), experiment_id=folder.name)
    try:
        require_video()
    except NoVideo as error:
        print(error, flush=True)
        return _CANNOT
    while (agent_steps := orders.next_steps()) is not None:
        _film_or_warn(paths, agent_steps, orders)
    try:
        _join(paths)
    except Exception as error:  # as for a single film
        print(f"warning: no film of all milestones: {_in_words(error)}", flush=True)
    return 0


def step_back() -> None:
    """Leaves the CPUs to every other process."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):  # not allowed in every container
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Orders:
    """What is to be filmed, read by a thread of its own; the stream's end ends the process."""

    def __init__(self, stream: TextIO) -> None:
        self._changed = threading.Condition()
        self._steps: deque[int] = deque()
        self._joining = False
        self._rested_at_s = time.process_time()
        self.enough = False
        self.unfinished: Path | None = None
        """The file to remove where the process has to end at once."""
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def next_steps(self) -> int | None:
        """The next film's agent steps, waited for; None when all are to be put together."""
        with self._changed:
            self._changed.wait_for(lambda: self.enough or self._steps or self._joining)
            return self._steps.popleft() if self._steps and not self.enough else None

    def rest(self) -> None:
        """Sleeps until what was computed since the last time is no more than `SHARE` of the time.

        Not once all films are to be put together: training is over then.
        """
        used_s = time.process_time() - self._rested_at_s
        with self._changed:
            self._changed.wait_for(lambda: self.enough or self._joining, used_s / SHARE - used_s)
        self._rested_at_s = time.process_time()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            with self._changed:
                order = line.strip()
                if order == JOIN:
                    self._joining = True
                elif order == ENOUGH:
                    self.enough = True
                else:
                    self._steps.append(int(order))
                self._changed.notify_all()
        if self.unfinished is not None:
            self.unfinished.unlink(missing_ok=True)
        os._exit(0)


def _film_or_warn(paths: RunPaths, agent_steps: int, orders: Orders) -> None:
    try:
        _film(paths, agent_steps, orders)
    except Exception as error:  # whatever is odd about this film, the others are wanted
        words = _in_words(error)
        print(f"warning: no film of the agent after {agent_steps:,} agent steps: {words}")
    orders.unfinished = None
    with suppress(OSError):
        paths.milestone_weights_path(agent_steps).unlink(missing_ok=True)
    sys.stdout.flush()


def _in_words(error: Exception) -> str:
    return as_line(str(error) or type(error).__name__, longest=_LONGEST)


def _film(paths: RunPaths, agent_steps: int, orders: Orders) -> None:
    import safetensors.numpy

    from retro_ml.evaluation.agent import Agent
    from retro_ml.evaluation.film_progress import film_words
    from retro_ml.evaluation.films import record_film

    config = ExperimentConfig.model_validate_json(paths.config_path.read_bytes())
    weights = safetensors.numpy.load_file(paths.milestone_weights_path(agent_steps))
    agent = Agent.from_weights(weights, config=config)
    agent.metadata["agent_steps"] = agent_steps
    target = paths.milestone_film_path(agent_steps)
    orders.unfinished = temporary_path(target)
    film = record_film(
        agent,
        target,
        FilmOptions(),
        share=min(1.0, agent_steps / config.total_timesteps),
        max_frames=LONGEST_FRAMES,
        stopped=lambda: _rest(orders),
    )
    if film is not None and not film.whole:
        target.unlink()  # half a film would be taken for the whole one
        film = None
    if film is None:
        raise ValueError("it was not to be waited for")
    print(f"film of the agent after {agent_steps:,} agent steps: {film_words(film)}")


def _rest(orders: Orders) -> bool:
    """Between two pictures; whether to stop."""
    orders.rest()
    return orders.enough


def _join(paths: RunPaths) -> None:
    """Raises ArtifactError."""
    from retro_ml.evaluation.video_file import join_videos

    matches = (re.fullmatch(r"step-(\d+)\.mp4", p.name) for p in paths.videos_dir.glob("*.mp4"))
    films = [paths.milestone_film_path(s) for s in sorted(int(m[1]) for m in matches if m)]
    if not films:
        return
    for film in join_videos(films, paths.learning_film_path):
        print(f"warning: {film.name} is not part of {paths.learning_film_path.name}: it differs")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
