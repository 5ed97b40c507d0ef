"""The seam between a run and whatever executes it: "run these configs, hand me their records".

The engine knows this protocol and nothing of Ray; the launcher on Ray Tune lives in `cluster/`,
tests pass a scripted one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from retro_ml.core.metrics.event_bus import MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig
    from retro_ml.core.experiments.options import RunOptions
    from retro_ml.core.experiments.sweep_config import SweepConfig


@dataclass(frozen=True, slots=True)
class Trial:
    """One config to train; `restore_from` is the checkpoint folder it goes on from."""

    config: "ExperimentConfig"
    restore_from: Path | None = None


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """How a trial ended; a failed one says why, with exit code 1 (training) or 3 (machine).

    stopped: a sweep's scheduler has given it up.
    """

    experiment_id: str
    state: Literal["completed", "stopped", "interrupted", "failed"]
    error: str | None = None
    exit_code: int = 0


class LaunchError(Exception):
    """The machine or the cluster cannot do it (no Ray, too few CPUs, too little memory)."""

    exit_code = 3


class Launcher(Protocol):
    """Executes trials and publishes what they record.

    `publish` is called in the driver's process, per trial in order: RUN_STARTED for each attempt,
    then EPISODE_FINISHED, TRAINING_STEP, EVALUATION_FINISHED and CHECKPOINT_SAVED as they come. The
    end is not published: `launch` returns it, and the engine tells it.
    """

    def launch(
        self,
        trials: Sequence[Trial],
        publish: Callable[[MetricEvent], None],
        options: "RunOptions",
    ) -> list[TrialEnd]:
        """Run all trials to their ends, in any order; one TrialEnd for each. Raises LaunchError."""
        ...

    def request_stop(self) -> None:
        """Let every trial end after its current iteration, with a checkpoint.

        Called from signal handlers and other threads, before, during or after `launch`, any number
        of times: it only sets a flag.
        """
        ...


class TrialSource(Protocol):
    """Where the launcher of a sweep takes its trials from, and where it tells how they go.

    All of it is called in the thread that called `launch_sweep`.
    """

    def next_trial(self) -> Trial | None:
        """The next one, whenever there is room for it; None: there are no more."""
        ...

    def must_end(self, experiment_id: str) -> str | None:
        """Why a trial has to end after this iteration, to be gone on with later; None: it goes on.

        Where the whole sweep has to end, any trial has.
        """
        ...

    def trial_ended(self, end: TrialEnd) -> None:
        """How a trial ended, once, after its last event."""
        ...

    def past_scores(self, experiment_id: str) -> list[tuple[int, float]]:
        """(agent steps, score) of a trial's iterations before this call, oldest first."""
        ...

    @property
    def ended_before(self) -> list[str]:
        """The trials that ended for good before this call."""
        ...


class SweepLauncher(Protocol):
    """Executes the trials of a sweep, several at once, under its scheduler."""

    def launch_sweep(
        self,
        sweep: "SweepConfig",
        source: TrialSource,
        publish: Callable[[MetricEvent], None],
        options: "RunOptions",
    ) -> None:
        """Run trials until the source has no more. Raises LaunchError.

        `publish` as in Launcher, and HYPERPARAMETERS_CHANGED.
        """
        ...

    def request_stop(self) -> None:
        """As Launcher's."""
        ...
