"""Learners and rollouts without Ray."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.translate import translate

NUM_ACTIONS = 4


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """More of them spin, and cost small batches three times the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SmallLearner:
    """One algorithm's Learner as `translate` builds it, fp32, for Breakout's four actions."""

    def __init__(self, algorithm: str, **fields: Any) -> None:
        experiment = ExperimentConfig(
            game_id="BreakoutNoFrameskip-v4",
            algorithm=algorithm,
            total_timesteps=10_000,
            use_gpu=False,
            resources={"precision": "fp32"},
            **fields,
        )
        self.config = translate(experiment, num_cpus=1)
        spaces = (Box(0, 255, (4, 84, 84), np.uint8), Discrete(NUM_ACTIONS))
        spec = self.config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces})
        self.learner = self.config.learner_class(config=self.config, module_spec=spec)
        self.learner.build()
        self.module = self.learner.module[DEFAULT_MODULE_ID].unwrapped()

    def update(self, columns: dict[str, Any], *, agent_steps: int = 0, **how: Any) -> None:
        batch = SampleBatch({name: np.array(column) for name, column in columns.items()})
        count = len(next(iter(columns.values())))
        self.learner.update(
            training_data=TrainingData(batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, count)),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: agent_steps},
            **how,
        )

    def learning_rate(self) -> float:
        optimizer = self.learner.get_optimizer(DEFAULT_MODULE_ID)
        return float(optimizer.param_groups[0]["lr"])


@pytest.fixture
def build_learner() -> Callable[..., SmallLearner]:
    return SmallLearner
