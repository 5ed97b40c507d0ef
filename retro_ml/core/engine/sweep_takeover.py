"""The trials that another machine's driver had under way, waited for all at once.

Whether that driver is dead shows only while nothing moves for half a minute. Trial after trial, a
sweep of hundreds would wait for hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError
from retro_ml.core.engine import run_claim, run_lock
from retro_ml.core.experiments.config import ExperimentConfig

_LOOKS_AT_ONCE = 8
_POLL_S = 0.2


class SweepTakeover:
    """When each of them may be opened."""

    def __init__(self) -> None:
        self._due_s: dict[str, float] = {}

    def look_at(self, trials: Sequence[ExperimentConfig]) -> None:
        """Notes how their locks and claims stand; those that move later are alive."""
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            for config, due_s in zip(trials, pool.map(_look_at, trials), strict=True):
                if due_s is not None:
                    self._due_s[config.experiment_id] = due_s

    def wait_for(
        self, experiment_id: str, *, notice: Callable[[str], None], stopped: Callable[[], bool]
    ) -> bool:
        """Whether the trial may be opened now; False where the sweep was stopped meanwhile.

        Args:
            experiment_id: of the trial.
            notice: is told why it takes time.
            stopped: whether nothing more is to begin.
        """
        due_s = self._due_s.pop(experiment_id, None)
        if due_s is None:
            return True
        left_s = due_s - time.monotonic()
        if left_s > 0:
            notice(f"waiting for another machine, which may be alive, {left_s:.0f} s at most")
        while not stopped() and time.monotonic() < due_s:
            time.sleep(_POLL_S)
        return not stopped()


def _look_at(config: ExperimentConfig) -> float | None:
    """When what another machine holds of the trial has run out; None where it holds nothing."""
    found = [run_lock.look_at(config.paths.lock_path)]
    if config.paths.storage_uri is not None:
        with suppress(StorageError):  # told when the trial is opened
            found.append(run_claim.look_at(RemoteFolder(config.paths.storage_uri, patience_s=0.0)))
    return max((due_s for due_s in found if due_s is not None), default=None)
