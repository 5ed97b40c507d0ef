"""What a trial takes of what there is."""

from typing import Any

import pytest

from retro_ml.cluster.connect import Cluster
from retro_ml.cluster.trials import place
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit


def placed(cpus: int, gpus: float = 0.0, **fields: Any) -> tuple[int, float]:
    config = ExperimentConfig(game_id="pong", **fields)
    return place(config, Cluster(cpus=cpus, gpus=gpus))


@pytest.mark.parametrize(("cpus", "taken"), [(1, 1), (2, 2), (8, 8), (16, 16), (64, 16)])
def test_a_trial_takes_the_cores_up_to_what_it_can_use(cpus: int, taken: int) -> None:
    assert placed(cpus) == (taken, 0.0)


def test_env_runners_and_learners_are_left_theirs() -> None:
    assert placed(8, resources={"num_env_runners": 4, "num_learners": 1}) == (3, 0.0)
    with pytest.raises(LaunchError, match="needs 9 CPUs"):
        placed(8, resources={"num_env_runners": 8})
    with pytest.raises(LaunchError, match="needs 9 CPUs"):
        placed(8, resources={"num_cpus": 9})


def test_a_gpu_is_taken_where_there_is_one() -> None:
    assert placed(8, gpus=4.0) == (8, 1.0)
    assert placed(8, gpus=4.0, use_gpu=False) == (8, 0.0)
    assert placed(8, gpus=1.0, resources={"num_gpus": 0.25}) == (2, 0.25)
    with pytest.raises(LaunchError, match="needs 2 GPUs, but there are 1"):
        placed(8, gpus=1.0, resources={"num_gpus": 2})
