"""The face: the engine of `core` with Ray Tune as its launcher. Nothing else."""

from __future__ import annotations

from retro_ml.cluster.sweep_trials import TuneSweepLauncher
from retro_ml.cluster.trials import TuneLauncher
from retro_ml.core.artifacts.initial_weights import InitialWeights
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.sweep_engine import SweepEngine
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.engine.training_engine import TrainingEngine as _Engine
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.metrics.event_bus import MetricEventBus
from retro_ml.evaluation.human_scores import human_normalise


class TrainingEngine(_Engine):
    """Trains one config on Ray; `run()` once.

    Args:
        config: the experiment.
        event_bus: every event of the run is emitted there, in order, in this process.
        options: how far this call goes and on which Ray.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        event_bus: MetricEventBus | None = None,
        *,
        options: RunOptions | None = None,
    ) -> None:
        super().__init__(
            config,
            event_bus,
            launcher=TuneLauncher(),
            options=options,
            read_initial=_read_initial,
        )


def _read_initial(config: ExperimentConfig) -> InitialWeights:
    """Imports PyTorch, which the driver does without otherwise."""
    from retro_ml.evaluation.initial_weights import read_initial_weights

    return read_initial_weights(config)


def run_experiment(
    config: ExperimentConfig,
    event_bus: MetricEventBus | None = None,
    *,
    options: RunOptions | None = None,
) -> ExperimentResult:
    """Trains one config to its end; see `TrainingEngine`.

    Raises:
        BadRunFolder: (a ValueError) the run's folder cannot be made.
    """
    return TrainingEngine(config, event_bus, options=options).run()


def run_sweep(
    config: SweepConfig,
    event_bus: MetricEventBus | None = None,
    *,
    options: RunOptions | None = None,
) -> SweepResult:
    """Runs every trial of a sweep to its end, several at once; called again, what is left.

    Args:
        config: the sweep.
        event_bus: every event of all trials is emitted there; experiment_id tells them apart.
        options: how far this call goes and on which Ray; `stop_score` is each trial's.

    Raises:
        BadRunFolder: (a ValueError) the sweep's folder cannot be made, or holds another sweep.
    """
    return SweepEngine(
        config,
        event_bus,
        launcher=TuneSweepLauncher(),
        normalise=human_normalise,
        options=options,
        read_initial=_read_initial,
    ).run()
