"""retro_ml's replay filled to the brim: `python -m benchmarking.programs.replay --size 1000000`.

Eight games are played for some thousand steps, at random, and what they gave is added again and
again, in rollouts as short as DQN's, until the replay is full.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarking.processes import read_pss_bytes
from benchmarking.programs.report_file import ReportFile
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sections import ResourcesConfig
from retro_ml.core.machine import count_free_memory
from retro_ml.rllib.env_runner import AtariEnvRunner
from retro_ml.rllib.replay import ROW_BYTES, FrameReplay
from retro_ml.rllib.rollout import Rollout
from retro_ml.rllib.translate import translate

NUM_GAMES, ROLLOUT_LENGTH, ROLLOUTS = 8, 4, 128
SPARE_BYTES = 1_500_000_000


def main() -> None:
    """Fill, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, required=True)
    call = parser.parse_args()

    report = ReportFile()
    needed, free = call.size * ROW_BYTES + SPARE_BYTES, count_free_memory()
    if needed > free:
        sys.exit(
            f"{needed / 1e9:.1f} GB of memory are needed for {call.size:,} transitions, "
            f"but {free / 1e9:.1f} GB are free"
        )
    rollouts = play()
    before_bytes = read_pss_bytes(os.getpid())
    replay = FrameReplay(size=call.size, num_lanes=NUM_GAMES)
    added = 0
    began_s = time.perf_counter()
    while added < call.size:
        for rollout in rollouts:
            replay.add([rollout])
            added += len(rollout)
    took_s = time.perf_counter() - began_s
    report.facts(
        size=call.size,
        held=len(replay),
        pss_bytes=read_pss_bytes(os.getpid()) - before_bytes,
        transitions_per_s=added / took_s,
    )


def play() -> list[Rollout]:
    """Real play, at random, by the EnvRunner that DQN has."""
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        algorithm="DQN",
        total_timesteps=10_000,
        use_gpu=False,
        resources=ResourcesConfig(games_per_env_runner=NUM_GAMES, precision="fp32"),
    )
    runner = AtariEnvRunner(config=translate(config))
    rollouts = []
    for _ in range(ROLLOUTS):
        rollouts += runner.sample(num_timesteps=NUM_GAMES * ROLLOUT_LENGTH, random_actions=True)
    runner.env.close()
    return rollouts


if __name__ == "__main__":
    main()
