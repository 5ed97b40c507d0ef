"""A trial's checkpoint: arrays and JSON, all that decides its future.

    manifest.json                       sha256 and size of every file, written last
    module.safetensors                  the network's weights, as model.zip holds them
    learner.safetensors, learner.json   target network, optimizer, generator of minibatches
    games.safetensors, games.json       seeds and actions of the games in progress, generators
    trial.safetensors, trial.json       counters, the last 100 scores
    ../replay/                          DQN's transitions, in segments that checkpoints share

RLlib's own checkpoints are pickles, also those it calls msgpack; these are not, so they may be read
wherever they come from.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from retro_ml.core.artifacts.checkpoint_files import (
    CheckpointError,
    prune_checkpoints,
    save_checkpoint_folder,
    verify_checkpoint,
)
from retro_ml.core.experiments.faults import as_line
from retro_ml.rllib.names import POINTER_FILE
from retro_ml.rllib.progress import Progress
from retro_ml.rllib.state_files import load_state, save_state

if TYPE_CHECKING:
    from retro_ml.rllib.algorithm import AtariAlgorithm

logger = logging.getLogger("retro_ml.checkpoints")

MODULE_FILE = "module.safetensors"
NETWORK_PREFIX = "network."


def save_checkpoint(algorithm: AtariAlgorithm, folder: Path) -> None:
    """Saves the trial.

    Where the trial has a `checkpoints_dir` the checkpoint becomes `step-N` there and `folder` (Ray
    Tune's, which copies what it is given) gets a note of the path; else `folder` gets it all.
    """
    root = algorithm.config.checkpoints_dir
    steps = algorithm.progress.agent_steps
    target = folder if root is None else Path(root) / f"step-{steps}"
    facts = {
        "experiment_id": algorithm.experiment.experiment_id,
        "algorithm": algorithm.experiment.algorithm,
        "agent_steps": steps,
        "score": algorithm.progress.score,
        "evaluation": algorithm.progress.evaluation,
        "action_meanings": list(algorithm.action_meanings),
    }
    shared: dict[Path, dict[str, Any]] = {}

    def write(into: Path) -> list[Path]:
        shared.update(_write(algorithm, into, target))
        return list(shared)

    save_checkpoint_folder(target, write, facts=facts, known=shared)
    if root is not None:
        try:
            prune_checkpoints(Path(root), keep=algorithm.experiment.checkpointing.keep)
        except OSError as error:  # this one is saved; the next save removes what is too many
            logger.warning("older checkpoints are left: %s", error)
        note = {"path": str(target), "agent_steps": steps}
        (folder / POINTER_FILE).write_text(json.dumps(note), encoding="utf-8")


def load_checkpoint(algorithm: AtariAlgorithm, folder: Path) -> None:
    """Brings a new trial to where `folder` was saved.

    Raises:
        CheckpointError: damaged, or saved by another algorithm.
        OSError: it cannot be read.
    """
    manifest = verify_checkpoint(folder)
    algorithm_name = algorithm.experiment.algorithm
    if manifest.get("algorithm") != algorithm_name:
        saved_by = as_line(str(manifest.get("algorithm")), longest=100)
        raise CheckpointError(
            f"{folder} was saved by {saved_by}; it cannot go on as {algorithm_name}"
        )
    learner = load_state(folder, "learner")
    try:
        weights = load_file(folder / MODULE_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {MODULE_FILE} cannot be read: {error}") from None
    learner[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID] |= {
        NETWORK_PREFIX + name: array for name, array in weights.items()
    }
    algorithm.set_learner_state(learner)
    trial = load_state(folder, "trial")
    algorithm.progress = Progress.from_dict(trial["progress"])
    algorithm.set_games_states(load_state(folder, "games"))
    algorithm.set_extra_state(trial["extra"], folder)


def resolve_checkpoint(folder: Path) -> Path:
    """The checkpoint itself, where `folder` holds only a note of its path."""
    note = folder / POINTER_FILE
    if not note.is_file():
        return folder
    return Path(json.loads(note.read_text(encoding="utf-8"))["path"])


def _write(algorithm: AtariAlgorithm, into: Path, target: Path) -> dict[Path, dict[str, Any]]:
    learner = algorithm.get_learner_state()
    module = dict(learner[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID])
    weights = {name: module.pop(name) for name in list(module) if name.startswith(NETWORK_PREFIX)}
    # Through bytes: a full disk is an OSError then, not one of safetensors' own.
    (into / MODULE_FILE).write_bytes(
        save({name.removeprefix(NETWORK_PREFIX): np.array(a) for name, a in weights.items()})
    )
    learner = {**learner, COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: module}}
    save_state(learner, into, "learner")
    save_state(algorithm.get_games_states(), into, "games")
    extra, shared = algorithm.get_extra_state(target)
    trial: dict[str, Any] = {"progress": algorithm.progress.to_dict(), "extra": extra}
    save_state(trial, into, "trial")
    return shared
