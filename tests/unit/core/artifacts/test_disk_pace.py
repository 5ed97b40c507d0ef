"""What a driver may spend on waiting for the disk."""

import os
from pathlib import Path

import pytest

from retro_ml.core.artifacts import disk_pace, status, writers
from retro_ml.core.artifacts.disk_pace import DiskPace
from retro_ml.core.artifacts.writers import LogWriter, MetricsWriter
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit


class Clock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def spend(pace: DiskPace, clock: Clock, seconds: float) -> None:
    with pace.timed():
        clock.now_s += seconds


def test_a_single_run_never_notices() -> None:
    clock = Clock()
    pace = DiskPace(clock)
    for _ in range(1_000):
        for _ in range(3):
            assert pace.allows()
            spend(pace, clock, 0.02)
        clock.now_s += 0.94


def test_many_runs_share_a_fifth_of_the_time() -> None:
    clock = Clock()
    pace = DiskPace(clock)
    spent_s, began_s = 0.0, clock.now_s
    while clock.now_s - began_s < 1_000:
        if pace.allows():
            spend(pace, clock, 0.02)
            spent_s += 0.02
        else:
            clock.now_s += 0.001
    assert 0.19 < spent_s / 1_000 < 0.21


def test_rows_wait_while_a_slow_disk_is_paid_for_and_ends_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    pace = DiskPace(clock)
    for module in (writers, status):
        monkeypatch.setattr(module, "PACE", pace)
    monkeypatch.setattr(writers, "_SYNC_INTERVAL_S", 0.0)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    config = ExperimentConfig(game_id="pong", output_dir=str(tmp_path), experiment_id="x")
    bus = MetricEventBus()
    writing = [kind(config).attach(bus) for kind in (MetricsWriter, LogWriter)]

    def emit(kind: EventType, **data: object) -> int:
        before = len(synced)
        bus.emit(MetricEvent.now(kind, "x", data))
        return len(synced) - before

    emit(EventType.RUN_STARTED, from_step=0)
    assert emit(EventType.TRAINING_STEP, step=1) == 2
    spend(pace, clock, 60.0)
    assert emit(EventType.TRAINING_STEP, step=2) == 0
    assert emit(EventType.CHECKPOINT_SAVED, step=2, path="x") == 2
    clock.now_s += 60.0 / disk_pace.SHARE
    assert emit(EventType.TRAINING_STEP, step=3) == 2
    for writer in writing:
        writer.close()
    assert len((tmp_path / "x" / "metrics.csv").read_text().splitlines()) == 4
