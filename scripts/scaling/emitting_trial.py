"""A trial that emits what a real one emits, and computes nothing.

Its iterations are PPO's on Breakout: 1,024 agent steps, one training_step row, eight finished games
(measured: 5 to 9 early in training). It ends with a checkpoint, of a tiny network.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.fs import LocalFileSystem
from ray.train._internal.checkpoint_manager import _TrainingResult
from ray.tune import Checkpoint, Trainable
from safetensors.numpy import save_file

from retro_ml.cluster.trial_actor import TrialActor
from retro_ml.core.artifacts.checkpoint_files import save_checkpoint_folder
from retro_ml.rllib.names import AGENT_STEPS, RECORDS, SCORE

ITERATION_AGENT_STEPS = 1_024
GAMES = 8
EVENTS_PER_ITERATION = GAMES + 1


class Emitter:
    """The records of one trial, iteration by iteration."""

    def __init__(self) -> None:
        self.agent_steps = self._games = self._number = 0

    def emit(self) -> tuple[list[dict[str, Any]], float]:
        """The next iteration's, and the score after it."""
        records = []
        if not self.agent_steps:
            records.append(_record("run_started", {"from_step": 0, "device": "cpu", "pid": 1}))
        for game in range(GAMES):
            self._games += 1
            records.append(
                _record(
                    "episode_finished",
                    {
                        "step": self.agent_steps + (game + 1) * ITERATION_AGENT_STEPS // GAMES,
                        "reward": float(self._games % 7),
                        "length": 180 + self._games % 50,
                        "frames": 4 * (180 + self._games % 50),
                        "games": self._games,
                    },
                )
            )
        self.agent_steps += ITERATION_AGENT_STEPS
        self._number += 1
        row = {
            "step": self.agent_steps,
            "reward": 1.5925925925925926,
            "iteration": self._number,
            "frames": 4 * self.agent_steps,
            "games": self._games,
            "policy_loss": -0.0026480811648070812,
            "value_loss": 0.11286348849534988,
            "entropy": 1.3854525089263916,
            "learning_rate": 0.00025,
            "approx_kl": 0.0010234567895531654,
            "clip_fraction": 0.0234375,
            "explained_variance": 0.31245875358581543,
            "steps_per_s": 461.48752213591823,
            "time_total_s": 2.2 * self._number,
        }
        records.append(_record("training_step", row))
        return records, row["reward"]


class EmittingTrial(Trainable):
    """Takes the place of `TrialActor`."""

    default_resource_request = TrialActor.default_resource_request

    def setup(self, config: dict[str, Any]) -> None:
        """Begins at agent step 0."""
        self._emitter = Emitter()
        self._checkpoints_dir = Path(config["checkpoints_dir"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial in the same process: starting one takes the machine a second."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One iteration's records."""
        records, score = self._emitter.emit()
        return {RECORDS: records, AGENT_STEPS: self._emitter.agent_steps, SCORE: score}

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """As `TrialActor` does, for the driver to make a model.zip of."""
        folder = self._checkpoints_dir / f"step-{self._emitter.agent_steps}"
        save_checkpoint_folder(folder, _write_module, facts={"action_meanings": ["NOOP"]})
        checkpoint = Checkpoint(str(folder), filesystem=LocalFileSystem())
        return _TrainingResult(checkpoint, dict(self._last_result or {}))


def _write_module(folder: Path) -> list[Path]:
    save_file({"w": np.ones(2, np.float32)}, folder / "module.safetensors")
    return []


def _record(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"type": kind, "timestamp": moment, "data": data}
