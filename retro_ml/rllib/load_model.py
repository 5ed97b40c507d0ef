"""A model.zip as one of RLlib's RLModules, to act with or to put into an Algorithm of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from retro_ml.envs.frames import OBSERVATION_SHAPE
from retro_ml.evaluation.agent import Agent
from retro_ml.networks.nature_cnn import QNetwork
from retro_ml.rllib.module import ActorCriticModule, QModule


def load_model(path: str | Path) -> ActorCriticModule | QModule:
    """The RLModule that a run trained, computing in float32.

    Its `forward_inference({"obs": observations})`, `[B, 4, 84, 84] uint8`, gives
    `action_dist_inputs`, `[B, A] float32`: logits, or DQN's action values. DQN's target network
    has the network's weights.

    Args:
        path: a model.zip.

    Raises:
        ArchiveError: it is damaged, foreign, or does not hold the network it says.
    """
    agent = Agent.load(path)
    network = agent.network
    head = network.q if isinstance(network, QNetwork) else network.policy
    spec = RLModuleSpec(
        module_class=QModule if isinstance(network, QNetwork) else ActorCriticModule,
        observation_space=Box(0, 255, OBSERVATION_SHAPE, np.uint8),
        action_space=Discrete(head.out_features),
        model_config={"precision": "fp32", "device": "cpu", "dueling": agent.config.dqn.dueling},
    )
    module: ActorCriticModule | QModule = spec.build()
    module.network.load_state_dict(network.state_dict())
    if isinstance(module, QModule):
        module.target_network.load_state_dict(network.state_dict())
    return module
