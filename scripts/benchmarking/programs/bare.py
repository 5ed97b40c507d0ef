"""retro_ml's PPO as a bare RLlib Algorithm: `python -m benchmarking.programs.bare ...`.

`translate(config).build_algo()` and `train()` in a loop: no Tune, no bus, no writers. What a whole
run takes longer than this is what those cost.
"""

from __future__ import annotations

import argparse

import torch

from benchmarking.programs.report_file import ReportFile
from retro_ml.cluster.connect import connect
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sections import ResourcesConfig
from retro_ml.rllib.translate import translate


def main() -> None:
    """Train, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    call = parser.parse_args()

    report = ReportFile()
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        algorithm="PPO",
        total_timesteps=call.iterations * 1024,
        seed=call.seed,
        use_gpu=False,
        resources=ResourcesConfig(precision="fp32"),
    )
    with connect(None):
        algorithm = translate(config).build_algo()
        count = sum(parameter.numel() for parameter in algorithm.env_runner.module.parameters())
        report.facts(parameters=count, torch_threads=torch.get_num_threads())
        for _ in range(call.iterations):
            algorithm.train()
            report.mark(algorithm.progress.agent_steps)
        algorithm.stop()


if __name__ == "__main__":
    main()
