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


@dataclass(frozen=True, slots=True)
class Trial:
    """One config to train; `restore_from` is the checkpoint folder it goes on from."""

    config: "ExperimentConfig"
    restore_from: Path | None = None


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """How a trial ended; a failed one says why, with exit code 1 (training) or 3 (machine)."""

    experiment_id: str
    state: Literal["completed", "interrupted", "failed"]
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
