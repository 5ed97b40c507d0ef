"""A sweep of many trials on its real path: engine, Ray Tune, BusBridge, bus, every run's writers.

What is not real: the trial computes nothing and its network is tiny, CPUs are logical, and a
trial's process is used for the next one (`reuse_actors`), because starting a process takes two
cores longer than the trial.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray import tune

from retro_ml.cluster import embedded, sweep_trials
from retro_ml.core.engine.sweep_engine import SweepEngine
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import MetricEvent, MetricEventBus
from retro_ml.evaluation.human_scores import human_normalise
from scaling.emitting_trial import ITERATION_AGENT_STEPS, EmittingTrial

SAMPLE_S = 1.0
TELL_EVERY = 20


@dataclass(frozen=True)
class Sample:
    """The driver at one moment."""

    elapsed_s: float
    cpu_s: float
    memory_bytes: int
    open_files: int
    events: int


@dataclass(frozen=True)
class Measured:
    """What so many trials took."""

    trials: int
    at_once: int
    iterations: int
    wall_s: float
    before: Sample
    samples: list[Sample]
    failed: int


def build_sweep(name: str, folder: Path, *, count: int, iterations: int) -> SweepConfig:
    """So many seeds of PPO on Breakout."""
    return SweepConfig(
        name=name,
        output_dir=str(folder),
        base={
            "game_id": "breakout",
            "total_timesteps": iterations * ITERATION_AGENT_STEPS,
            "use_gpu": False,
            "resources": {"num_cpus": 1},
        },
        grid={"seed": list(range(count))},
    )


def measure_trials(folder: Path, *, count: int, at_once: int, iterations: int) -> Measured:
    """Runs them all, and looks at this process every second."""
    watch = Watch()
    bus = MetricEventBus()
    bus.subscribe(None, watch.count)
    engine = SweepEngine(
        build_sweep("trials", folder, count=count, iterations=iterations),
        bus,
        launcher=sweep_trials.TuneSweepLauncher(),
        normalise=human_normalise,
        options=RunOptions(progress="quiet"),
    )
    before = watch.look()
    with _logical(at_once), watch:
        result = engine.run()
    return Measured(
        trials=count,
        at_once=at_once,
        iterations=iterations,
        wall_s=result.took_s,
        before=before,
        samples=watch.samples,
        failed=sum(one.state != "completed" for one in result.standings),
    )


@contextmanager
def _logical(at_once: int) -> Iterator[None]:
    """CPUs for so many trials at once, and trials that only emit."""
    run = functools.partial(tune.run, reuse_actors=True)
    with (
        mock.patch.object(embedded, "count_cpus", return_value=at_once),
        mock.patch.object(sweep_trials, "TrialActor", EmittingTrial),
        mock.patch.object(sweep_trials, "tune", SimpleNamespace(run=run)),
    ):
        yield


class Watch:
    """Looks at this process every second for the time of a `with` block."""

    def __init__(self) -> None:
        self.events = 0
        self.samples: list[Sample] = []
        self._began_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.samples.append(self.look())

    def count(self, event: MetricEvent) -> None:
        """One more event."""
        self.events += 1

    def look(self) -> Sample:
        """Now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return Sample(
            elapsed_s=time.monotonic() - self._began_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            open_files=len(os.listdir("/proc/self/fd")),
            events=self.events,
        )

    def _follow(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            sample = self.look()
            self.samples.append(sample)
            if len(self.samples) % TELL_EVERY == 0:
                print(f"{sample.elapsed_s:.0f} s: {sample.events:,} events", file=sys.stderr)


def measure_bus(experiments: int, *, by_experiment: bool) -> float:
    """Events per second of a bus alone, with three subscribers for each experiment.

    Args:
        experiments: how many are running.
        by_experiment: whether subscribers say whose events they want, or hear all and look.
    """
    bus = MetricEventBus()
    for number in range(experiments):
        for _ in range(3):
            listener = _Listener(str(number))
            if by_experiment:
                bus.subscribe(None, listener, experiment_id=str(number))
            else:
                bus.subscribe(None, listener)
    events = [_event(str(number % experiments)) for number in range(2_000)]
    gc.collect()
    began_s = time.perf_counter()
    for event in events:
        bus.emit(event)
    return len(events) / (time.perf_counter() - began_s)


class _Listener:
    def __init__(self, experiment_id: str) -> None:
        self._experiment_id = experiment_id
        self._heard = 0

    def __call__(self, event: Any) -> None:
        if event.experiment_id == self._experiment_id:
            self._heard += 1


def _event(experiment_id: str) -> MetricEvent:
    from retro_ml.core.metrics.event_bus import EventType

    return MetricEvent.now(EventType.EPISODE_FINISHED, experiment_id, {"step": 1})
