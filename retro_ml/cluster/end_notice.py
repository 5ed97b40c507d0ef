"""Tells a trial that it is to end, before it is asked for its last checkpoint.

Tune does not say so, and stops a trial's actor after its last save: the last trial of all has some
10 s for that before it is killed, whatever it has still to send (2.60). So a trial has to know
which save is the last one, and to wait for its storage there.
"""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.result import DONE


class EndNotice(Callback):
    """Calls `TrialActor.note_end` of each trial whose result was its last."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tune has decided by now, and asks for the checkpoint next; calls keep their order."""
        if result.get(DONE):
            trial.temporary_state.ray_actor.note_end.remote()
