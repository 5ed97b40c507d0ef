"""The sweep's engine with all trials under way at once, without Ray.

Everything that a driver does for a sweep's trials but Ray Tune's loop: folders and locks, every
writer of every run, the board, leaderboard and status.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from retro_ml.core.engine.launcher import TrialEnd, TrialSource
from retro_ml.core.engine.sweep_engine import SweepEngine
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent
from retro_ml.evaluation.human_scores import human_normalise
from scaling.emitting_trial import Emitter
from scaling.trials import Sample, Watch, build_sweep


@dataclass(frozen=True)
class Stages:
    """The driver before and after each stage of a sweep."""

    trials: int
    iterations: int
    before: Sample
    begun: Sample
    trained: Sample
    ended: Sample


def measure_engine(folder: Path, *, count: int, iterations: int) -> Stages:
    """Begins so many trials, lets them tell of their iterations in turn, ends them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Ray does so where it is used
    rounds = _Rounds(iterations)
    result = SweepEngine(
        build_sweep("engine", folder, count=count, iterations=iterations),
        launcher=rounds,
        normalise=human_normalise,
        options=RunOptions(progress="quiet"),
    ).run()
    if not result.success:
        raise SystemExit(f"the sweep failed: {result.error or result.failed[0].error}")
    return Stages(count, iterations, *rounds.samples)


class _Rounds:
    """A launcher whose trials take turns, an iteration each."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self.samples: list[Sample] = []

    def launch_sweep(
        self,
        sweep: SweepConfig,
        source: TrialSource,
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> None:
        """All begin before the first trains, and train before the first ends."""
        watch = Watch()
        self.samples.append(watch.look())
        emitters: dict[str, Emitter] = {}
        while (trial := source.next_trial()) is not None:
            emitters[trial.config.experiment_id] = Emitter()
        self.samples.append(watch.look())
        for _ in range(self._iterations):
            for name, emitter in emitters.items():
                for record in emitter.emit()[0]:
                    publish(_event(name, record))
                    watch.events += 1
        self.samples.append(watch.look())
        for name in emitters:
            source.trial_ended(TrialEnd(name, "completed"))
        self.samples.append(watch.look())

    def request_stop(self) -> None:
        """Nobody asks."""


def _event(name: str, record: dict[str, Any]) -> MetricEvent:
    moment = datetime.fromisoformat(record["timestamp"])
    return MetricEvent(EventType(record["type"]), name, moment, record["data"])
