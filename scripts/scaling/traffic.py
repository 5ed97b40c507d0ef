"""What crosses the network for one agent step between a remote env runner and its trial.

Real rollouts of real games, and the real weights, serialized as Ray does it: pickle protocol 5,
arrays out of band.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle
from ray.rllib.core import DEFAULT_MODULE_ID

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.translate import translate

RUNNERS = 4
"""Over which the algorithm's games are spread; sizes for a step depend little on it."""


@dataclass(frozen=True)
class Traffic:
    """Of one algorithm with remote env runners."""

    algorithm: str
    agent_steps: int
    """Of one rollout of one env runner."""
    rollout_bytes: int
    """That rollout, serialized: from the env runner to the trial."""
    weights_bytes: int
    """What each env runner gets between two rollouts."""

    @property
    def rollout_bytes_per_step(self) -> float:
        """From an env runner, for each agent step."""
        return self.rollout_bytes / self.agent_steps

    @property
    def weights_bytes_per_step(self) -> float:
        """To an env runner, for each agent step that it plays."""
        return self.weights_bytes / self.agent_steps


def measure_traffic(algorithm: str) -> Traffic:
    """Plays one rollout and weighs it."""
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        algorithm=algorithm,
        use_gpu=False,
        resources={"num_env_runners": RUNNERS, "num_cpus": 1},
    )
    translated = translate(config, num_cpus=1)
    runner = translated.env_runner_cls(config=translated, worker_index=1, num_workers=RUNNERS)
    with closing(runner.env):
        games = translated.num_envs_per_env_runner
        steps = config.settings.rollout_length * games
        rollout = runner.sample(num_timesteps=steps, explore=True)
        weights = runner.module.get_state(inference_only=True)
        return Traffic(
            algorithm=algorithm,
            agent_steps=steps,
            rollout_bytes=count_bytes(rollout),
            weights_bytes=count_bytes({DEFAULT_MODULE_ID: weights}),
        )


def count_bytes(value: Any) -> int:
    """Serialized as Ray does it."""
    buffers: list[Any] = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)
