"""`init_from`: the weights of a model.zip, or of a Stable-Baselines3 zip, for a run to begin with.

Only tensors are read: of ours the safetensors, of theirs those in `policy.pth`, without unpickling
(`evaluation.stable_baselines3`). What does not fit the run is refused.
PPO and A2C have the same network and may take over from each other.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.guarded_zip import ZipFault, open_zip
from retro_ml.core.artifacts.initial_weights import InitialWeights
from retro_ml.core.artifacts.model_archive import METADATA, ArchiveError, Weights
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.faults import as_line
from retro_ml.envs.atari import AtariGames, GameSettings
from retro_ml.evaluation import stable_baselines3
from retro_ml.evaluation.agent import Agent

_LONGEST = 200  # characters of what a file says of itself
_NOT_TAKEN_OVER = ["optimizer", "step counts", "schedules", "replay", "settings"]


def read_initial_weights(config: ExperimentConfig) -> InitialWeights:
    """The weights in the file that `config.init_from` names.

    Raises:
        ArchiveError: it cannot be read or trusted, or does not fit; the message says what to do.
    """
    assert config.init_from is not None
    path = Path(config.init_from)
    sha256 = _hash_file(path)
    if config.init_sha256 not in {None, sha256}:
        raise ArchiveError(
            f"{path} is not the file that init_sha256 means, its sha256 is {sha256}; bring that "
            "file back, or leave init_sha256 out to begin with this one"
        )
    weights, origin = _read_ours(path) if _is_ours(path) else _read_theirs(path)
    if _hash_file(path) != sha256:  # by a run that goes on
        raise ArchiveError(f"{path} was replaced while it was read; try again, or use a copy")
    _check_kind(path, weights, config)
    _check_actions(path, weights, origin.pop("action_meanings"), config)
    Agent.from_weights(weights, config=config)
    not_taken_over = [w for w in _NOT_TAKEN_OVER if w != "replay" or config.algorithm == "DQN"]
    origin = {"file": str(path), "sha256": sha256, **origin, "not_taken_over": not_taken_over}
    return InitialWeights(weights=weights, origin=origin)


def _is_ours(path: Path) -> bool:
    try:
        with open_zip(path, limits_bytes={}) as archive:
            names = archive.namelist()
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
    except ZipFault as fault:
        raise ArchiveError(f"{path} is no usable zip of a model: {fault}") from fault.__cause__
    if METADATA not in names and stable_baselines3.POLICY not in names:
        raise ArchiveError(
            f"{path} is neither a model.zip nor what Stable-Baselines3 saves: it has no {METADATA} "
            f"and no {stable_baselines3.POLICY}"
        )
    return METADATA in names


def _read_ours(path: Path) -> tuple[Weights, dict[str, Any]]:
    agent = Agent.load(path)
    weights = {name: tensor.numpy() for name, tensor in agent.network.state_dict().items()}
    return weights, {
        "format": "model.zip",
        "algorithm": agent.config.algorithm,
        "game": agent.config.game_id,
        "agent_steps": agent.metadata.get("agent_steps"),
        "action_meanings": agent.action_meanings,
    }


def _read_theirs(path: Path) -> tuple[Weights, dict[str, Any]]:
    model = stable_baselines3.read_model(path)
    return model.weights, {
        "format": "Stable-Baselines3",
        "algorithm": model.kind,
        "game": None,
        "agent_steps": model.num_timesteps,
        "action_meanings": (),
    }


def _check_kind(path: Path, weights: Weights, config: ExperimentConfig) -> None:
    has_values = "q.bias" in weights
    if has_values != (config.algorithm == "DQN"):
        found, remedy = ("action values", "DQN") if has_values else ("a policy", "PPO or A2C")
        raise ArchiveError(
            f"{path} holds {found}, which {config.algorithm} cannot begin with; "
            f"choose --algorithm {remedy}"
        )
    dueling = "value_hidden.bias" in weights
    if has_values and dueling != config.dqn.dueling:
        raise ArchiveError(
            f"{path} holds {'a' if dueling else 'no'} dueling network; "
            f"set dqn.dueling to {str(dueling).lower()}"
        )


def _check_actions(
    path: Path, weights: Weights, theirs: tuple[str, ...], config: ExperimentConfig
) -> None:
    """By their meanings where the file has them, which may be those of another game."""
    ours = _find_action_meanings(config)
    head = weights["q.bias" if config.algorithm == "DQN" else "policy.bias"]
    if theirs == ours or (not theirs and head.shape == (len(ours),)):
        return
    named = as_line(", ".join(theirs), longest=_LONGEST)
    raise ArchiveError(
        f"{path} has {head.size} actions{f' ({named})' if named else ''}, {config.game.rom} has "
        f"{len(ours)} ({', '.join(ours)}); choose a model of a game with the same actions, or one "
        "trained with environment.full_action_space, which this run must have too then"
    )


def _find_action_meanings(config: ExperimentConfig) -> tuple[str, ...]:
    settings = GameSettings(
        rom=config.game.rom,
        sticky_actions=0.0,
        noop_max=0,
        max_frames=config.environment.max_frames,
        auto_fire=False,
        full_action_space=config.environment.full_action_space,
    )
    with closing(AtariGames(settings, num_games=1, num_threads=1, seed=0)) as games:
        return games.action_meanings


def _hash_file(path: Path) -> str:
    try:
        # A pipe or a device would be read for ever.
        if not path.is_file():
            kind = "no regular file" if path.exists() else "no such file"
            if path.is_dir():
                kind = "it is a folder; a run's model is the model.zip in it"
            raise ArchiveError(f"cannot read {path}: {kind}")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
