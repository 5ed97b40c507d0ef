"""The column learning_rate holds what it is said to hold: the step size at the iteration's end."""

import pytest

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.translate import translate

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]


def test_a2c_reports_the_step_size_of_its_last_update() -> None:
    """Two updates in an iteration, after 0 and 512 of 4,096 agent steps: 7e-4 and 7/8 of it."""
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        algorithm="A2C",
        use_gpu=False,
        total_timesteps=4_096,
        a2c={"rollout_length": 256},
        resources={"games_per_env_runner": 2},
    )
    algorithm = translate(config).build_algo()
    records = algorithm.train()["records"]
    (row,) = [record["data"] for record in records if record["type"] == "training_step"]
    algorithm.stop()
    assert row["learning_rate"] == pytest.approx(7e-4 * 7 / 8, rel=1e-5)
