"""Names of charts are those that Stable-Baselines3 itself logs under."""

import inspect
import re
from types import ModuleType

import pytest
from stable_baselines3.a2c import a2c
from stable_baselines3.common import (
    base_class,
    callbacks,
    off_policy_algorithm,
    on_policy_algorithm,
)
from stable_baselines3.dqn import dqn
from stable_baselines3.ppo import ppo

from retro_ml.core.metrics.event_bus import EventType
from retro_ml.core.metrics.scalar_names import SCALAR_NAMES, name_scalars

pytestmark = pytest.mark.unit

# What it has no word for, or another number.
OUR_OWN = {
    "rollout/games",
    "rollout/replay_size",
    "time/frames",
    "train/entropy",
    "train/q_mean",
    "eval/standard_error",
}


def logged_by(*modules: ModuleType) -> set[str]:
    source = "".join(map(inspect.getsource, modules))
    return set(re.findall(r'"((?:rollout|time|train|eval)/\w+)"', source))


def names() -> set[str]:
    return {
        name
        for by_key in SCALAR_NAMES.values()
        for known in by_key.values()
        for name in known
        if not name.startswith("charts/")  # CleanRL's
    }


def test_every_name_is_one_of_theirs_or_our_own() -> None:
    common = (base_class, callbacks, off_policy_algorithm, on_policy_algorithm)

    assert names() - OUR_OWN <= logged_by(*common, a2c, dqn, ppo)
    assert not OUR_OWN & logged_by(*common, a2c, dqn, ppo)


def test_the_policys_loss_lies_in_the_charts_of_ppo_and_of_a2c() -> None:
    named = name_scalars(EventType.TRAINING_STEP, {"step": 1_024, "policy_loss": -0.5})

    assert named == {
        "time/total_timesteps": 1_024.0,
        "train/policy_gradient_loss": -0.5,
        "train/policy_loss": -0.5,
    }
    assert "train/policy_gradient_loss" in logged_by(ppo)
    assert "train/policy_loss" in logged_by(a2c)
