"""Evaluates a model of Stable-Baselines3 as retro_ml's are: `python -m learning.sb3_evaluate ...`.

Its policy plays in retro_ml's environment, through `retro_ml.evaluation`'s own `play_episodes`: the
same games by the same seeds, actions drawn in the same way. The network sees retro_ml's frames,
which are resized and made grey by the emulator and not by OpenCV, so that grey levels differ
slightly from those it was trained with. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from learning.matrix import build_config, load_matrix, order_runs
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.envs.frames import unpack_stacks
from retro_ml.evaluation import statistics
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import play_episodes
from retro_ml.evaluation.protocols import EvaluationOptions, build_protocol


class PolicyAgent:
    """What `play_episodes` asks of an agent, answered by a policy of Stable-Baselines3."""

    def __init__(self, model: PPO, config: ExperimentConfig) -> None:
        self.config = config
        self._policy = model.policy
        self._policy.set_training_mode(False)

    def scores(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits `[B, A]` of packed observations `[B, 21, 21, 64] uint8`."""
        return self.judge(batch)[0]

    def judge(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, and the value of each observation, `[B]`."""
        observations = torch.from_numpy(unpack_stacks(batch))
        with torch.inference_mode():
            drawn: Any = self._policy.get_distribution(observations).distribution
            values = self._policy.predict_values(observations).squeeze(-1)
        return cast(NDArray[np.float32], drawn.logits.numpy()), values.numpy()


def main() -> None:
    """Evaluate, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--episodes", type=int, required=True)
    call = parser.parse_args()

    run = next(one for one in order_runs(load_matrix()) if one.name == call.run)
    config = build_config(run, output_dir=call.model.parent)
    options = EvaluationOptions(episodes=call.episodes)
    protocol = build_protocol(config, options)
    agent = PolicyAgent(PPO.load(call.model, device="cpu"), config)
    played = play_episodes(
        cast(Agent, agent),
        protocol=protocol,
        episodes=options.episodes,
        seed=options.seed,
        num_games=options.num_games,
    )
    scores = [episode.score for episode in played]
    column = np.array(scores)[:, None]
    evaluation = {
        "model_sha256": hashlib.sha256(call.model.read_bytes()).hexdigest(),
        "protocol": asdict(protocol),
        "seed": options.seed,
        "mean": {
            "value": float(np.mean(scores)),
            "interval": asdict(statistics.bootstrap_interval(statistics.mean, column)),
        },
        "standard_error": statistics.standard_error(scores),
        "capped": sum(episode.capped for episode in played),
        "episodes": [asdict(episode) for episode in played],
    }
    print(json.dumps(evaluation, allow_nan=False))


if __name__ == "__main__":
    main()
