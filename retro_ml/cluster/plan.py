"""What a run will take: agent steps, time, disk, memory. Nothing is started for it.

Sizes follow from the config, from the size of the network and from what rows and frames were
measured to take; they are meant to be a little too large. The time is taken from the latest run of
the same algorithm beside it, and left open where there is none.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.engine.progress_text import duration, shown_path
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.core.machine import count_free_memory
from retro_ml.envs.frames import OBSERVATION_SHAPE
from retro_ml.rllib.replay import ROW_BYTES

BASE_BYTES = {"PPO": 1_100_000_000, "A2C": 1_100_000_000, "DQN": 1_500_000_000}
"""A trial, its driver and an embedded Ray, without the replay (measured: 0.9 to 1.2 GB)."""
OBSERVATION_BYTES = math.prod(OBSERVATION_SHAPE)
BODY_PARAMETERS, HEAD_PARAMETERS = 1_684_128, 19 * 513
"""NatureCNN: three convolutions and a layer of 512; up to 18 actions and a value."""
COPIES = {"PPO": 3, "A2C": 2, "DQN": 4}
"""Of the network in a checkpoint: weights, what the optimizer keeps, the target network."""
MODEL_COPIES = 2
"""Of the network in a model.zip: for retro_ml and for Stable-Baselines3."""
ROW_OF_METRICS_BYTES, EVENT_BYTES = 500, 500
"""A row in metrics.csv and metrics.json, and the same in events.log (measured: 400 each)."""
AGENT_STEPS_PER_GAME = 100
"""Few games are shorter."""
REPLAY_SHRINKS = 10
"""Frames on disk are compressed, twentyfold and more (measured); segments overlap."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take."""

    agent_steps: int
    iterations: int
    time_s: float | None
    checkpoint_bytes: int
    """Of one checkpoint, DQN's replay apart."""
    disk_bytes: int
    """Of the whole folder, at most."""
    free_disk_bytes: int
    memory_bytes: int
    free_memory_bytes: int


def count_memory(config: ExperimentConfig) -> int:
    """Bytes of memory that a run takes at most, its replay full."""
    resources = config.resources
    rows = config.num_games * config.settings.rollout_length
    batch_bytes = rows * OBSERVATION_BYTES
    if resources.num_env_runners > 1:
        batch_bytes *= 2  # the parts, and all together
    replay_bytes = 0
    if config.algorithm == "DQN":
        replay_bytes = (config.dqn.replay_size or 0) * ROW_BYTES
        drawn = rows // config.dqn.agent_steps_per_update * config.dqn.batch_size
        batch_bytes += 2 * drawn * OBSERVATION_BYTES  # of all a round's updates, and the next ones
    return BASE_BYTES[config.algorithm] + batch_bytes + replay_bytes


def plan_run(config: ExperimentConfig) -> Plan:
    """The plan of a run from its beginning on this machine."""
    iterations = -(-config.total_timesteps // config.iteration_agent_steps)
    agent_steps = iterations * config.iteration_agent_steps
    parameters = BODY_PARAMETERS + HEAD_PARAMETERS
    replay_size = 0
    if config.algorithm == "DQN":
        parameters *= 2 if config.dqn.dueling else 1
        replay_size = config.dqn.replay_size or 0
    checkpoint_bytes = 4 * parameters * COPIES[config.algorithm]
    # The newest, the best, the one being written.
    checkpoints = -(-iterations // config.checkpoint_iterations)
    every = config.evaluation.every_steps
    if every is not None:
        checkpoints += min(agent_steps // every, iterations)
    models = 1 if every is None else 2
    kept = min(config.checkpointing.keep + 2, checkpoints)
    rows = iterations + agent_steps // AGENT_STEPS_PER_GAME
    disk_bytes = kept * checkpoint_bytes + models * MODEL_COPIES * 4 * parameters
    disk_bytes += rows * (2 * ROW_OF_METRICS_BYTES + EVENT_BYTES)
    disk_bytes += min(replay_size, agent_steps) * ROW_BYTES // REPLAY_SHRINKS
    rate = _find_rate(config)
    return Plan(
        agent_steps=agent_steps,
        iterations=iterations,
        time_s=None if rate is None else agent_steps / rate,
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=disk_bytes,
        free_disk_bytes=_free_disk(config.paths.experiment_dir),
        memory_bytes=count_memory(config),
        free_memory_bytes=count_free_memory(),
    )


def plan_lines(config: ExperimentConfig, plan: Plan) -> list[str]:
    """The plan in words."""
    time = "no run of this algorithm beside it to go by"
    if plan.time_s is not None:
        time = f"about {duration(plan.time_s)}, at the speed of the latest run beside it"
    files = shown_path(config.paths.experiment_dir)
    if config.paths.storage_uri is not None:
        files += f", sent to {config.paths.storage_uri}"
    every, keep = f"{config.checkpointing.every_steps:,}", config.checkpointing.keep
    evaluated = "" if config.evaluation.every_steps is None else " and at each evaluation"
    return [
        f"{config.algorithm} on {config.game.rom}, seed {config.seed}",
        f"steps: {plan.agent_steps:,} agent steps in {plan.iterations:,} iterations",
        f"time: {time}",
        f"disk: up to {_size(plan.disk_bytes)} of {_size(plan.free_disk_bytes)} that are free, "
        f"{_size(plan.checkpoint_bytes)} a checkpoint every {every} agent steps{evaluated}, "
        f"the last {keep} and the best are kept",
        f"memory: about {_size(plan.memory_bytes)} "
        f"of {_size(plan.free_memory_bytes)} that are free",
        f"files: {files}",
    ]


def _find_rate(config: ExperimentConfig) -> float | None:
    """Agent steps per second of the latest run of the same algorithm in the output folder."""
    for folder in _latest_first(config.paths.experiment_dir.parent):
        paths = RunPaths(str(folder.parent), folder.name)
        try:
            stored = ExperimentConfig.model_validate_json(paths.config_path.read_bytes())
            if stored.algorithm != config.algorithm:
                continue
            rows = [row for row in read_rows(paths.metrics_csv_path) if row.get("time_total_s")]
        except (OSError, ValueError, ArtifactError):  # damaged, or no run at all
            continue
        if rows:
            return float(rows[-1]["step"] / rows[-1]["time_total_s"])
    return None


def _latest_first(folder: Path) -> Iterator[Path]:
    found = [path.parent for path in folder.glob("*/metrics.csv")]
    yield from sorted(found, key=lambda path: (path / "metrics.csv").stat().st_mtime, reverse=True)


def _free_disk(folder: Path) -> int:
    there = next(path for path in [folder, *folder.parents] if path.exists())
    return shutil.disk_usage(there).free


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
