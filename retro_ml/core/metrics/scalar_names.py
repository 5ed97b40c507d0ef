"""The names under which dashboards show a run's numbers: those that people know.

Stable-Baselines3's names for all that it has (its logger, 2.9), CleanRL's for scores and speed, so
that runs of all three lie in the same charts. Each number has one name but for the speed, which
both call by their own, and the policy's loss, which Stable-Baselines3 calls otherwise in PPO than
in A2C. docs/metrics.md has the table.
"""

from __future__ import annotations

import math
from typing import Any

from retro_ml.core.metrics.event_bus import EventType

SCALAR_NAMES: dict[EventType, dict[str, tuple[str, ...]]] = {
    EventType.TRAINING_STEP: {
        "reward": ("rollout/ep_rew_mean",),
        "length_mean": ("rollout/ep_len_mean",),
        "games": ("rollout/games",),
        "epsilon": ("rollout/exploration_rate",),
        "replay_size": ("rollout/replay_size",),
        "steps_per_s": ("time/fps", "charts/SPS"),
        "step": ("time/total_timesteps",),
        "iteration": ("time/iterations",),
        "frames": ("time/frames",),
        "time_total_s": ("time/time_elapsed",),
        "policy_loss": ("train/policy_gradient_loss", "train/policy_loss"),
        "value_loss": ("train/value_loss",),
        "entropy": ("train/entropy",),
        "loss": ("train/loss",),
        "q_mean": ("train/q_mean",),
        "learning_rate": ("train/learning_rate",),
        "approx_kl": ("train/approx_kl",),
        "clip_fraction": ("train/clip_fraction",),
        "explained_variance": ("train/explained_variance",),
    },
    EventType.EPISODE_FINISHED: {
        "reward": ("charts/episodic_return",),
        "length": ("charts/episodic_length",),
    },
    EventType.EVALUATION_FINISHED: {
        "reward": ("eval/mean_reward",),
        "standard_error": ("eval/standard_error",),
    },
}
"""Per type of event: key of its data -> names."""


def name_scalars(event_type: EventType, data: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of an event's data by their names; empty for other types of events."""
    scalars = {}
    for key, names in SCALAR_NAMES.get(event_type, {}).items():
        value = data.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            scalars.update(dict.fromkeys(names, float(value)))
    return scalars
