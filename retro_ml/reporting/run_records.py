"""Everything a report tells of one run, read once from its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.differences import read_fields
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.reporting.metrics_columns import RunMetrics, read_metrics
from retro_ml.reporting.run_folders import (
    FileFault,
    RunSummary,
    is_of_summary,
    load_json,
    summarize,
)

_PROTOCOLS = ("noop", "machado")
_ANY = RunPaths(output_dir="/", experiment_id="any")
_MAX_EVALUATION_BYTES = 200_000_000  # a million games


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedEvaluation:
    """The scores of `retro-ml evaluate` on this run's model."""

    protocol: str
    scores: NDArray[np.float64]
    """`[E]`, unclipped, whole games."""
    trained_agent_steps: int | None
    deterministic: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunRecord:
    """One run that can be reported: its config is whole, the rest may be missing."""

    name: str
    """The experiment's id; with its folder where two runs of a report have the same."""
    summary: RunSummary
    config: ExperimentConfig
    fields: dict[str, Any]
    """The config's values by path."""
    metrics: RunMetrics
    evaluations: dict[str, PlayedEvaluation]
    """By protocol."""
    films: tuple[Path, ...]
    """Oldest first."""
    faults: tuple[str, ...]

    @property
    def paths(self) -> RunPaths:
        """The run's files, where they lie now."""
        return self.summary.paths

    @property
    def rom(self) -> str:
        """The game's ROM."""
        return self.config.game.rom

    @property
    def agent_steps(self) -> int:
        """How far it came."""
        return int(self.metrics.agent_steps) or self.summary.step or 0

    @property
    def evaluation(self) -> PlayedEvaluation | None:
        """Of the model as it is now: by the protocol that the game's id means, or else any."""
        now = {None, self.agent_steps}
        return next((e for e in self._preferred() if e.trained_agent_steps in now), None)

    @property
    def past_evaluation(self) -> PlayedEvaluation | None:
        """Where there is none of the model as it is now, one from before training went on."""
        return next(iter(self._preferred()), None) if self.evaluation is None else None

    def _preferred(self) -> list[PlayedEvaluation]:
        by_id = "machado" if self.config.game.protocol == "v5" else "noop"
        return sorted(self.evaluations.values(), key=lambda played: played.protocol != by_id)

    @property
    def training_time_s(self) -> float | None:
        """Seconds of training, all attempts."""
        times = self.metrics.iterations["time_total_s"]
        return float(times[-1]) if len(times) and math.isfinite(times[-1]) else None

    @property
    def steps_per_s(self) -> float | None:
        """Median over the iterations."""
        rates = self.metrics.iterations["steps_per_s"]
        rates = rates[np.isfinite(rates)]
        return float(np.median(rates)) if len(rates) else None

    def training_score(self) -> float | None:
        """Mean of the last 100 training games."""
        scores = self.metrics.final_scores()
        return float(scores.mean()) if len(scores) else None


def is_of_record(name: str) -> bool:
    """Whether `load_run` reads a file, by its name in the run's folder; films apart."""
    known = {_ANY.metrics_csv_path, *map(_ANY.evaluation_path, _PROTOCOLS)}
    return is_of_summary(name) or name in {path.name for path in known}


def load_run(paths: RunPaths) -> RunRecord:
    """Reads a run's folder. Raises FileFault where even its config is of no use."""
    summary = summarize(paths)
    try:
        fields = load_json(paths.config_path)
        config = ExperimentConfig.model_validate(fields)
    except ValidationError as error:
        reason = "; ".join(config_faults(error)[:3])
        raise FileFault(f"config.json is not one that this version reads: {reason}") from None
    metrics = read_metrics(paths.metrics_csv_path)
    faults = [fault for fault in summary.faults if not fault.startswith("config.json")]
    if metrics.fault is not None:
        faults.append(metrics.fault)
    evaluations = {}
    for protocol in _PROTOCOLS:
        path = paths.evaluation_path(protocol)
        if path.exists():
            try:
                evaluations[protocol] = _read_evaluation(path, protocol)
            except FileFault as fault:
                faults.append(str(fault))
    return RunRecord(
        name=summary.name,
        summary=summary,
        config=config,
        fields=read_fields(config),
        metrics=metrics,
        evaluations=evaluations,
        films=_find_films(paths.experiment_dir / "videos"),
        faults=tuple(faults),
    )


def _read_evaluation(path: Path, protocol: str) -> PlayedEvaluation:
    document = load_json(path, max_bytes=_MAX_EVALUATION_BYTES)
    try:
        scores = np.array([float(game["score"]) for game in document["episodes"]], np.float64)
        actions = document["protocol"]["actions"]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FileFault(f"{path.name} is damaged: its games have no scores") from None
    if not len(scores) or not np.isfinite(scores).all():
        raise FileFault(f"{path.name} is damaged: its games have no scores")
    steps = document.get("trained_agent_steps")
    return PlayedEvaluation(
        protocol=protocol,
        scores=scores,
        trained_agent_steps=steps if isinstance(steps, int) else None,
        deterministic=actions == "greedy",
    )


def _find_films(folder: Path) -> tuple[Path, ...]:
    try:
        found = [
            path
            for path in folder.glob("*.mp4")  # hidden ones are being written
            if path.is_file() and path.stat().st_size and not path.name.startswith(".")
        ]
        return tuple(sorted(found, key=lambda path: (path.stat().st_mtime, path.name)))
    except OSError:
        return ()
