"""The bus and the writers: `python -m benchmarking.programs.bus --rows 100000 --games 1000000`.

First the bus alone with three subscribers; then metrics.csv's writer on the bus, and all the
writers of a run with its log, as the engine puts them there: rows of training until they are on the
disk, and memory while games are told of.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarking.processes import read_pss_bytes
from benchmarking.programs.report_file import ReportFile
from retro_ml.core.artifacts import writers
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.engine.run_folder import save_config
from retro_ml.core.engine.run_log import RunLog
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

FIRST_GAMES = 10_000
ROW = {
    "step": 1_024,
    "reward": 1.5925925925925926,
    "iteration": 1,
    "frames": 5_120,
    "games": 27,
    "policy_loss": -0.0026480811648070812,
    "value_loss": 0.11286348849534988,
    "entropy": 1.3854525089263916,
    "learning_rate": 0.00025,
    "approx_kl": 0.0010234567895531654,
    "clip_fraction": 0.0234375,
    "explained_variance": 0.31245875358581543,
    "steps_per_s": 261.48752213591823,
    "time_total_s": 3.916057823998562,
}


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--games", type=int, required=True)
    call = parser.parse_args()

    report = ReportFile()
    report.facts(events_per_s=measure_bus(200_000))
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        report.facts(rows=call.rows, **measure_metrics_rows(folder, call.rows))
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        report.facts(all_writers_rows_per_s=measure_rows(folder, call.rows))
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        report.facts(**measure_memory(folder, call.games))


def measure_bus(events: int) -> float:
    """Events per second to three subscribers that do nothing, the median of five times."""
    bus = MetricEventBus()
    for _ in range(3):
        bus.subscribe(None, lambda event: None)
    event = MetricEvent.now(EventType.TRAINING_STEP, "benchmark", dict(ROW))
    durations_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        for _ in range(events):
            bus.emit(event)
        durations_s.append(time.perf_counter() - began_s)
    return events / statistics.median(durations_s)


def measure_metrics_rows(folder: str, rows: int) -> dict[str, float]:
    """Rows per second to metrics.csv, until they are on the disk; metrics.json's seconds apart."""
    config = build_config(folder, agent_steps=rows)
    save, json_s = writers.save_metrics_json, 0.0

    def save_timed(*paths: Path, head: dict[str, Any]) -> None:
        nonlocal json_s
        began_s = time.perf_counter()
        save(*paths, head=head)
        json_s += time.perf_counter() - began_s

    with (
        mock.patch.object(writers, "save_metrics_json", save_timed),
        on_bus(config, [writers.MetricsWriter(config)]) as bus,
    ):
        took_s = emit_rows(bus, config, rows)
    expect_lines(config.paths.metrics_csv_path, rows + 2)
    return {"metrics_rows_per_s": rows / (took_s - json_s), "metrics_json_s": json_s}


def measure_rows(folder: str, rows: int) -> float:
    """Rows per second through all writers, from the first event until all is on the disk."""
    config = build_config(folder, agent_steps=rows)
    with on_bus(config, writers.build_writers(config)) as bus:
        took_s = emit_rows(bus, config, rows)
    expect_lines(config.paths.events_path, rows + 2)
    return rows / took_s


def emit_rows(bus: MetricEventBus, config: ExperimentConfig, rows: int) -> float:
    """Seconds of a run of so many iterations; its last event syncs every file."""
    data = [ROW | {"step": step} for step in range(1, 1_001)]
    events = [build_event(config, EventType.TRAINING_STEP, row) for row in data]
    began_s = time.perf_counter()
    bus.emit(build_event(config, EventType.RUN_STARTED, {"from_step": 0}))
    for number in range(rows):
        bus.emit(events[number % len(events)])
    end = {"step": rows, "reward": 1.5, "games": 27, "time_total_s": 1.0, "state": "completed"}
    bus.emit(build_event(config, EventType.RUN_COMPLETED, end))
    return time.perf_counter() - began_s


def measure_memory(folder: str, games: int) -> dict[str, Any]:
    """PSS after the first 10,000 games and after the last, all writers on the bus."""
    config = build_config(folder, agent_steps=games)
    sizes_bytes = {}
    with on_bus(config, writers.build_writers(config)) as bus:
        bus.emit(build_event(config, EventType.RUN_STARTED, {"from_step": 0}))
        for number in range(1, games + 1):
            data = {"step": number, "reward": float(number % 40), "length": 300, "frames": 1_200}
            bus.emit(build_event(config, EventType.EPISODE_FINISHED, data))
            if number in (FIRST_GAMES, games):
                gc.collect()
                sizes_bytes[number] = read_pss_bytes(os.getpid())
    expect_lines(config.paths.events_path, games + 1)
    return {
        "first_games": FIRST_GAMES,
        "games": games,
        "pss_first_bytes": sizes_bytes[FIRST_GAMES],
        "pss_last_bytes": sizes_bytes[games],
    }


def build_config(folder: str, *, agent_steps: int) -> ExperimentConfig:
    """A run of that length in that folder."""
    return ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        experiment_id="benchmark",
        total_timesteps=agent_steps,
        output_dir=folder,
    )


def build_event(
    config: ExperimentConfig, event_type: EventType, data: dict[str, Any]
) -> MetricEvent:
    """An event of that run."""
    return MetricEvent.now(event_type, config.experiment_id, data)


@contextmanager
def on_bus(config: ExperimentConfig, subscribers: list[RunWriter]) -> Iterator[MetricEventBus]:
    """A bus with those writers, and the run's log taking the loggers; closed at the end."""
    config.paths.experiment_dir.mkdir(parents=True)
    save_config(config)
    bus = MetricEventBus()
    with ExitStack() as stack, RunLog(config.paths.log_path, notice=print):
        for writer in subscribers:
            stack.callback(writer.close)
            writer.attach(bus)
        yield bus


def expect_lines(path: Path, lines: int) -> None:
    """Raises AssertionError unless every event reached the file."""
    with open(path, "rb") as file:
        found = sum(1 for _ in file)
    if found != lines:
        raise AssertionError(f"{path.name} has {found} lines instead of {lines}")


if __name__ == "__main__":
    main()
