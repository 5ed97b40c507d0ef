"""retro_ml: train Atari agents with RLlib and Ray, on a laptop or a cluster, from one config.

Names are imported when they are first used, so that `import retro_ml` and `--help` need neither
Ray nor PyTorch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from retro_ml.api import (
        ExperimentResult,
        SweepResult,
        TrainingEngine,
        run_experiment,
        run_sweep,
    )
    from retro_ml.core.artifacts.writers import LogWriter, MetricsWriter, ModelWriter
    from retro_ml.core.experiments.config import ExperimentConfig
    from retro_ml.core.experiments.options import RunOptions
    from retro_ml.core.experiments.run_type import RunType
    from retro_ml.core.experiments.sweep_config import SweepConfig
    from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus
    from retro_ml.evaluation.agent import Agent
    from retro_ml.evaluation.evaluate import Evaluation, evaluate_model
    from retro_ml.rllib.load_model import load_model


def _end_quietly(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    sys.__excepthook__(kind, error, at)


# Ctrl-C may come while a command still imports what it needs, which takes seconds; this here is the
# first of it to run. While Python looks for the module of `python -m`, sys.argv begins with that.
if sys.argv and os.path.basename(sys.argv[0]) in {"-m", "retro-ml"}:
    sys.excepthook = _end_quietly

try:
    __version__ = version("retro_ml")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

_HOMES = {
    "Agent": "retro_ml.evaluation.agent",
    "Evaluation": "retro_ml.evaluation.evaluate",
    "EventType": "retro_ml.core.metrics.event_bus",
    "ExperimentConfig": "retro_ml.core.experiments.config",
    "ExperimentResult": "retro_ml.api",
    "LogWriter": "retro_ml.core.artifacts.writers",
    "MetricEvent": "retro_ml.core.metrics.event_bus",
    "MetricEventBus": "retro_ml.core.metrics.event_bus",
    "MetricsWriter": "retro_ml.core.artifacts.writers",
    "ModelWriter": "retro_ml.core.artifacts.writers",
    "RunOptions": "retro_ml.core.experiments.options",
    "RunType": "retro_ml.core.experiments.run_type",
    "SweepConfig": "retro_ml.core.experiments.sweep_config",
    "SweepResult": "retro_ml.api",
    "TrainingEngine": "retro_ml.api",
    "evaluate_model": "retro_ml.evaluation.evaluate",
    "load_model": "retro_ml.rllib.load_model",
    "run_experiment": "retro_ml.api",
    "run_sweep": "retro_ml.api",
}

__all__ = [
    "Agent",
    "Evaluation",
    "EventType",
    "ExperimentConfig",
    "ExperimentResult",
    "LogWriter",
    "MetricEvent",
    "MetricEventBus",
    "MetricsWriter",
    "ModelWriter",
    "RunOptions",
    "RunType",
    "SweepConfig",
    "SweepResult",
    "TrainingEngine",
    "evaluate_model",
    "load_model",
    "run_experiment",
    "run_sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
