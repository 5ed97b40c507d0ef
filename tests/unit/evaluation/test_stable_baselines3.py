"""Weights out of what Stable-Baselines3 saves, and into what it loads."""

import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium.spaces import Box, Discrete

from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.artifacts.stable_baselines3 import (
    build_members,
    describe_losses,
    explain_absence,
)
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.stable_baselines3 import read_model
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork

pytestmark = pytest.mark.unit

OBSERVATIONS = np.random.default_rng(0).integers(0, 256, (8, 4, 84, 84), dtype=np.uint8)
ALGORITHMS = ("PPO", "A2C", "DQN")


class Screen(gym.Env[Any, Any]):
    """Spaces only: no step is ever taken in it."""

    observation_space, action_space = Box(0, 255, (4, 84, 84), np.uint8), Discrete(6)


def build_theirs(algorithm: str, **how: Any) -> Any:
    extra = {"buffer_size": 10} if algorithm == "DQN" else {}
    model = getattr(sb3, algorithm)("CnnPolicy", Screen(), device="cpu", seed=0, **extra, **how)
    # The heads begin so small that nearly all actions are alike.
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(2.0)
    return model


def build_config(algorithm: str, **fields: Any) -> ExperimentConfig:
    return ExperimentConfig(
        game_id="pong", algorithm=algorithm, total_timesteps=5_000, experiment_id="x", **fields
    )


def scores_of(model: Any) -> np.ndarray[Any, Any]:
    observations = torch.from_numpy(OBSERVATIONS)
    with torch.no_grad():
        if isinstance(model, sb3.DQN):
            return np.asarray(model.q_net(observations))
        return np.asarray(model.policy.get_distribution(observations).distribution.probs)


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A PPO model that Stable-Baselines3 saved."""
    build_theirs("PPO").save(tmp_path / "theirs.zip")
    return tmp_path / "theirs.zip"


# Theirs -> ours.


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_of_theirs_acts_the_same_here(algorithm: str, tmp_path: Path) -> None:
    theirs = build_theirs(algorithm)
    theirs.num_timesteps = 1234
    theirs.save(tmp_path / "theirs.zip")

    model = read_model(tmp_path / "theirs.zip")
    agent = Agent.from_weights(model.weights, config=build_config(algorithm))

    assert model.kind == ("DQN" if algorithm == "DQN" else "PPO or A2C")
    assert model.num_timesteps == 1234
    actions = agent.act(OBSERVATIONS, deterministic=True)
    np.testing.assert_array_equal(actions, theirs.predict(OBSERVATIONS, deterministic=True)[0])
    ours = (
        agent.scores(OBSERVATIONS)
        if algorithm == "DQN"
        else agent.action_probabilities(OBSERVATIONS)
    )
    np.testing.assert_allclose(ours, scores_of(theirs), atol=1e-5)


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "none of a plain CnnPolicy": {"net_arch": [16]},
        "networks of their own": {"share_features_extractor": False},
    }
    for message, how in kinds.items():
        build_theirs("PPO", policy_kwargs=how).save(tmp_path / "theirs.zip")
        with pytest.raises(ArchiveError, match=message):
            read_model(tmp_path / "theirs.zip")


def test_images_that_are_not_scaled_are_refused(saved: Path) -> None:
    members = members_of(saved)
    data = json.loads(members["data"]) | {"policy_kwargs": {"normalize_images": False}}

    with pytest.raises(ArchiveError, match="does not divide by 255"):
        read_model(write_zip(saved, members | {"data": json.dumps(data).encode()}))


# Ours -> theirs.


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("PPO", {}),
        ("PPO", {"ppo": {"max_grad_norm": None, "adam_eps": 1e-7}}),
        ("A2C", {}),
        ("A2C", {"preset": "sb3"}),
        ("DQN", {}),
        ("DQN", {"dqn": {"n_step": 3, "double": True}}),
    ],
)
def test_they_load_ours_with_its_settings(
    algorithm: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = build_config(algorithm, **fields)
    network = QNetwork(6) if algorithm == "DQN" else ActorCriticNetwork(6)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    members = build_members(config, weights, agent_steps=77, versions={"retro_ml": "1"})

    model = getattr(sb3, algorithm).load(write_zip(tmp_path / "m.zip", members), device="cpu")

    settings = config.settings
    assert explain_absence(config, weights) is None
    assert (model.num_timesteps, model.gamma) == (77, settings.gamma)
    assert model.observation_space == Box(0, 255, (4, 84, 84), np.uint8)
    assert model.action_space == Discrete(6)
    group = model.policy.optimizer.param_groups[0]
    kind = {"PPO": "Adam", "A2C": "RMSprop", "DQN": "Adam"}[algorithm]
    if config.preset == "sb3":
        kind = "RMSpropTFLike"
    assert type(model.policy.optimizer).__name__ == kind
    eps = config.a2c.rmsprop_eps if algorithm == "A2C" else config.settings.adam_eps
    assert (group["lr"], group["eps"]) == (settings.learning_rate, eps)
    assert model.lr_schedule(1.0) == settings.learning_rate
    anneals = algorithm == "PPO" or (algorithm == "A2C" and config.a2c.anneal_learning_rate)
    assert model.lr_schedule(0.0) == (0.0 if anneals else settings.learning_rate)
    if algorithm == "DQN":
        assert (model.n_steps, model.batch_size) == (config.dqn.n_step, config.dqn.batch_size)
        assert model.buffer_size == config.dqn.replay_size
        for ours, target in zip(
            model.q_net.parameters(), model.q_net_target.parameters(), strict=True
        ):
            assert torch.equal(ours, target)
    else:
        assert (model.n_steps, model.gae_lambda) == (settings.rollout_length, settings.gae_lambda)
        assert (model.ent_coef, model.vf_coef) == (
            settings.entropy_coefficient,
            settings.value_loss_coefficient,
        )


def test_what_they_load_they_save_and_we_read_again(tmp_path: Path) -> None:
    weights = {n: t.numpy() for n, t in ActorCriticNetwork(6).state_dict().items()}
    members = build_members(build_config("PPO"), weights, agent_steps=77, versions={})
    sb3.PPO.load(write_zip(tmp_path / "ours.zip", members), device="cpu").save(
        tmp_path / "again.zip"
    )

    again = read_model(tmp_path / "again.zip")

    assert again.num_timesteps == 77
    for name, array in weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


def test_where_they_have_no_such_network_it_is_said() -> None:
    dueling = build_config("DQN", dqn={"dueling": True})
    weights = {n: t.numpy() for n, t in QNetwork(6, dueling=True).state_dict().items()}

    assert explain_absence(dueling, weights) == "it has no dueling network"
    assert explain_absence(build_config("PPO"), {"w": np.zeros(2, np.float32)}) is not None


def test_the_horizon_of_a_falling_step_size_is_told_not_to_be_taken_over() -> None:
    horizon = (
        "the step size's horizon of 9,000 agent steps: it falls to 0 over what learn is asked for"
    )

    ppo = build_config("PPO", ppo={"schedule_agent_steps": 9_000})
    annealed = {"anneal_learning_rate": True, "schedule_agent_steps": 9_000}
    assert horizon in describe_losses(ppo)
    assert horizon in describe_losses(build_config("A2C", a2c=annealed))
    constant = build_config("A2C", a2c={**annealed, "anneal_learning_rate": False})
    for config in (constant, build_config("DQN")):
        assert not [text for text in describe_losses(config) if "horizon" in text]
