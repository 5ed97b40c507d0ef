"""What a program tells of itself: marks at the ends of its iterations, and facts.

retro_ml is read as its user reads it, from the files of its run; the other programs write a file of
their own (`programs.report_file`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.model_archive import ArchiveError, load_model_archive
from retro_ml.core.experiments.run_paths import RunPaths

REPORT_FILE = "report.jsonl"
EXPERIMENT_ID = "benchmark"


class Mark(NamedTuple):
    """The end of an iteration."""

    agent_steps: int
    time_s: float
    """Unix time."""


@dataclass(slots=True)
class Report:
    """All that is known of a program from inside."""

    marks: list[Mark] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def read_report_file(folder: Path) -> Report:
    """The report of a program of ours, up to now."""
    report = Report()
    path = folder / REPORT_FILE
    if not path.exists():
        return report
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        if "facts" in entry:
            report.facts |= entry["facts"]
        else:
            report.marks.append(Mark(entry["agent_steps"], entry["time_s"]))
    return report


def read_run_folder(folder: Path) -> Report:
    """The same from the files of a run `EXPERIMENT_ID` of retro_ml, up to now."""
    report = Report()
    paths = RunPaths(output_dir=str(folder), experiment_id=EXPERIMENT_ID)
    if not paths.metrics_csv_path.exists():
        return report
    for row in read_rows(paths.metrics_csv_path):
        if row["type"] == "training_step":
            moment = datetime.fromisoformat(row["timestamp"])
            report.marks.append(Mark(row["step"], moment.timestamp()))
    return report


def read_finished_run_folder(folder: Path) -> Report:
    """The facts too, once the run has ended."""
    report = read_run_folder(folder)
    paths = RunPaths(output_dir=str(folder), experiment_id=EXPERIMENT_ID)
    if paths.events_path.exists():
        for line in paths.events_path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event_type"] == "run_started":
                report.facts["precision"] = event["data"]["precision"]
                report.facts["torch_threads"] = event["data"]["threads"]
                break
    try:
        weights = load_model_archive(paths.model_path).weights
    except (ArchiveError, OSError):  # stopped before its first checkpoint
        return report
    report.facts["parameters"] = sum(
        math.prod(array.shape) for name, array in weights.items() if "target_network" not in name
    )
    return report
