"""One run of Stable-Baselines3's PPO: `python -m learning.sb3_run --folder DIR ...`.

As rl-zoo3 runs it: its own Atari wrappers (1 to 30 no-ops, frame skip with maximum, life loss,
FIRE, 84x84, clipped rewards) on a DummyVecEnv of 8 with VecFrameStack; step size 2.5e-4 and clip
range 0.1 both fall linearly over the horizon, whatever the run's own length.

The score of a game is that of the Monitor below the wrappers: unclipped, over all of its lives. A
run that is stopped begins anew: Stable-Baselines3 saves neither games in progress nor generators,
so going on would make another run.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ale_py
import gymnasium
import torch
from benchmarking.results import save_text
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from learning.records import COLUMNS
from learning.run_folders import SB3_DONE, SB3_GAMES, SB3_MODEL

NUM_GAMES = 8
SETTINGS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "normalize_advantage": True,
}
"""rl-baselines3-zoo, hyperparams/ppo.yml, atari; the rest are Stable-Baselines3's defaults."""
LEARNING_RATE, CLIP_RANGE = 2.5e-4, 0.1
"""At the start (the zoo's lin_2.5e-4 and lin_0.1)."""
DISTRIBUTIONS = ("stable-baselines3", "torch", "ale-py", "gymnasium", "numpy")


class GameLog(BaseCallback):
    """games.csv: a line for each game that ends."""

    def __init__(self, monitors: list[Monitor], path: Path) -> None:
        super().__init__()
        self._monitors = monitors
        self._seen = [0] * len(monitors)
        self._began_s = 0.0
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def _on_training_start(self) -> None:
        self._began_s = time.perf_counter()

    def _on_step(self) -> bool:
        # From the Monitors themselves: a game that ends in a wrapper's reset is in no `infos`.
        for number, monitor in enumerate(self._monitors):
            scores, frames = monitor.get_episode_rewards(), monitor.get_episode_lengths()
            for game in range(self._seen[number], len(scores)):
                time_s = round(self.elapsed_s, 1)
                self._writer.writerow([self.num_timesteps, scores[game], frames[game], time_s])
            self._seen[number] = len(scores)
        return True

    def _on_rollout_end(self) -> None:
        self._file.flush()

    @property
    def elapsed_s(self) -> float:
        """Since training began."""
        return time.perf_counter() - self._began_s

    def close(self) -> None:
        """No more games."""
        self._file.close()


def main() -> None:
    """Train, and leave games, model and, last, the facts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--game", required=True)
    parser.add_argument("--agent-steps", type=int, required=True)
    parser.add_argument("--schedule-agent-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    call = parser.parse_args()

    call.folder.mkdir(parents=True, exist_ok=True)
    (call.folder / SB3_DONE).unlink(missing_ok=True)
    gymnasium.register_envs(ale_py)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    games = make_atari_env(call.game, n_envs=NUM_GAMES, seed=call.seed, vec_env_cls=DummyVecEnv)
    log = GameLog(find_monitors(cast(DummyVecEnv, games)), call.folder / SB3_GAMES)

    def anneal(start: float) -> Callable[[float], float]:
        return build_schedule(start, call.agent_steps, call.schedule_agent_steps)

    model = PPO(
        "CnnPolicy",
        VecFrameStack(games, 4),
        learning_rate=anneal(LEARNING_RATE),
        clip_range=anneal(CLIP_RANGE),
        seed=call.seed,
        device="cpu",
        **SETTINGS,
    )
    model.learn(call.agent_steps, callback=log)
    wall_clock_s = log.elapsed_s
    log.close()
    # The schedules are functions of this run; loading needs none.
    model.save(call.folder / SB3_MODEL, exclude=["learning_rate", "lr_schedule", "clip_range"])
    facts = {
        "agent_steps": model.num_timesteps,
        "wall_clock_s": wall_clock_s,
        "versions": describe_versions(),
        "config": {
            "game_id": call.game,
            "algorithm": "PPO",
            "total_timesteps": call.agent_steps,
            "seed": call.seed,
            "num_games": NUM_GAMES,
            "learning_rate": LEARNING_RATE,
            "clip_range": CLIP_RANGE,
            "schedule_agent_steps": call.schedule_agent_steps,
            "torch_threads": torch.get_num_threads(),
            **SETTINGS,
        },
    }
    save_text(json.dumps(facts), call.folder / SB3_DONE)


def build_schedule(
    start: float, agent_steps: int, schedule_agent_steps: int
) -> Callable[[float], float]:
    """From the share of the run that is left to a value that is 0 at the horizon."""

    def value(left: float) -> float:
        return start * (1 - (1 - left) * agent_steps / schedule_agent_steps)

    return value


def find_monitors(games: DummyVecEnv) -> list[Monitor]:
    """The Monitor of each game, below the Atari wrappers."""
    found = []
    for env in games.envs:
        inner: Any = env
        while not isinstance(inner, Monitor):
            inner = inner.env
        found.append(inner)
    return found


def describe_versions() -> dict[str, str]:
    """Of Python and of what does the work."""
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    return {**versions, "python": platform.python_version()}


if __name__ == "__main__":
    main()
