"""What the integration tests share: one embedded Ray for those that run in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.experiments.config import ExperimentConfig


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A Ray of this project's kind for a whole module; runs attach to it instead of their own."""
    from retro_ml.cluster.connect import connect

    with connect(None):
        yield


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """Builds configs of two iterations that learn within them: `small_config(algorithm, ...)`."""

    def build(algorithm: str, **fields: Any) -> ExperimentConfig:
        defaults: dict[str, Any] = {
            "game_id": "BreakoutNoFrameskip-v4",
            "algorithm": algorithm,
            "total_timesteps": 2000,
            "seed": 42,
            "output_dir": str(tmp_path / "runs"),
            "checkpointing": {"every_steps": 1000},
            "ppo": {"epochs": 2},
            "dqn": {"warmup_agent_steps": 200, "agent_steps_per_update": 16},
        }
        return ExperimentConfig(**{**defaults, **fields})

    return build
