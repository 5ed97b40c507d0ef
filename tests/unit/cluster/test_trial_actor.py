"""What a trial asks of the cluster, and what the driver imports for it."""

import subprocess
import sys
from typing import Any

import pytest

from retro_ml.cluster.trial_actor import TrialActor, trial_config
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.translate import translate

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("num_gpus", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "resources", [{}, {"num_env_runners": 4}, {"num_env_runners": 2, "num_learners": 2}]
)
def test_the_bundles_are_those_that_rllib_asks_for(
    resources: dict[str, Any], num_gpus: float
) -> None:
    config = ExperimentConfig(game_id="pong", algorithm="PPO", seed=1, resources=resources)
    translated = translate(config, num_cpus=3, num_gpus=num_gpus)
    asked = translated.algo_class.default_resource_request(translated)
    ours = TrialActor.default_resource_request(
        trial_config(config, num_cpus=3, num_gpus=num_gpus, restore_from=None)
    )
    assert (ours.bundles, ours.strategy) == (asked.bundles, asked.strategy)


def test_the_driver_imports_neither_torch_nor_rllib() -> None:
    code = "import sys, retro_ml.cluster.trials; print({'torch', 'ray.rllib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
