"""A trained agent from a model.zip: observations in, actions out. Needs PyTorch, not Ray.

Opening the archive runs no code (safetensors and JSON only). The network computes in float32,
whatever it was trained in.

    agent = Agent.load("model.zip")
    print(agent.play().score)
    action = agent.act(observation)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from retro_ml.core.artifacts.model_archive import ArchiveError, load_model_archive
from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.faults import as_line
from retro_ml.envs.frames import OBSERVATION_SHAPE
from retro_ml.evaluation.episodes import Episode, play_episodes
from retro_ml.evaluation.protocols import EvaluationOptions, build_protocol
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork, pack_observations

_MAX_ACTIONS = 18  # all that the Atari 2600's joystick can do


class Agent:
    """A policy, ready to act.

    Args:
        network: its weights.
        config: the experiment that trained it.
        metadata: what the archive tells of it (agent steps, score, versions).
        seed: of the actions that are drawn.

    Attributes:
        network: the `torch.nn.Module`, float32, in evaluation mode.
        config: the experiment that trained it.
        metadata: metadata.json of the archive; empty for an agent in training.
    """

    def __init__(
        self,
        network: ActorCriticNetwork | QNetwork,
        *,
        config: ExperimentConfig,
        metadata: dict[str, Any],
        seed: int = 0,
    ) -> None:
        self.config = config
        self.metadata = metadata
        self.network = network.eval()
        self._rng = np.random.default_rng(seed)

    @classmethod
    def load(cls, path: str | Path, *, seed: int = 0) -> Agent:
        """Opens a model.zip.

        Raises:
            ArchiveError: it is damaged, foreign, or does not hold the network it says; or its
                weights are NaN or infinite.
        """
        archive = load_model_archive(Path(path))
        try:
            config = ExperimentConfig.model_validate(archive.config)
        except ValidationError as error:
            faults = "; ".join(config_faults(error))
            raise ArchiveError(f"{path}: its config.json is not valid: {faults}") from None
        agent_steps = archive.metadata.get("agent_steps")
        if agent_steps is not None and type(agent_steps) is not int:
            raise ArchiveError(f"{path}: agent_steps in its metadata.json is no whole number")
        try:
            network = _build_network(config, archive.weights)
        except _Misfit as misfit:
            raise ArchiveError(f"{path}: not the weights of a NatureCNN: {misfit}") from None
        return cls(network, config=config, metadata=archive.metadata, seed=seed)

    @classmethod
    def from_weights(cls, weights: dict[str, NDArray[Any]], *, config: ExperimentConfig) -> Agent:
        """An agent in the middle of its training.

        Raises:
            ArchiveError: the weights are not those of the config's network, or not finite.
        """
        try:
            return cls(_build_network(config, weights), config=config, metadata={})
        except _Misfit as misfit:
            raise ArchiveError(f"not the weights of a NatureCNN: {misfit}") from None

    def act(
        self, observation: NDArray[np.uint8], deterministic: bool = False
    ) -> np.int64 | NDArray[np.int64]:
        """The agent's choice.

        Args:
            observation: `[4, 84, 84] uint8`, oldest frame first, or a batch `[B, 4, 84, 84]`.
            deterministic: the likeliest action, or the one of highest value. Otherwise PPO and A2C
                draw from their policy and DQN is greedy all the same.

        Returns:
            An action's index, or `[B] int64` for a batch.

        Raises:
            ValueError: the observation has another shape or dtype.
        """
        batch = _as_batch(observation)
        scores = self.scores(batch)
        if not deterministic and self.has_policy:
            scores = scores - np.log(self._rng.standard_exponential(scores.shape))
        actions = scores.argmax(axis=1)
        return actions if _is_batch(observation) else actions[0]

    def action_probabilities(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely each action is; for DQN 1 for the best one, the first where several are.

        Args:
            observation: as `act` takes it.

        Returns:
            `[A] float32`, in the order of `action_meanings`, or `[B, A]` for a batch.

        Raises:
            ValueError: the observation has another shape or dtype.
        """
        scores = self.scores(_as_batch(observation))
        if self.has_policy:
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities = odds / odds.sum(axis=1, keepdims=True)
        else:
            probabilities = np.eye(scores.shape[1], dtype=np.float32)[scores.argmax(axis=1)]
        return probabilities if _is_batch(observation) else probabilities[0]

    def value(self, observation: NDArray[np.uint8]) -> np.float32 | NDArray[np.float32]:
        """The discounted sum of clipped rewards that is expected; for DQN that of the best action.

        Args:
            observation: as `act` takes it.

        Returns:
            A number, or `[B] float32` for a batch.

        Raises:
            ValueError: the observation has another shape or dtype.
        """
        values = self.judge(_as_batch(observation))[1]
        return values if _is_batch(observation) else values[0]

    def play(self, *, seed: int = 0, deterministic: bool = False) -> Episode:
        """Plays one whole game as `retro-ml evaluate` does where no protocol is named.

        Sticky actions, no-ops and the limit of frames are those that the game's id stands for,
        whatever the run has overridden; FIRE and the set of actions are the run's.

        Args:
            seed: of the game and of the actions.
            deterministic: no action is drawn.

        Returns:
            The unclipped score and the length.

        Raises:
            pydantic.ValidationError: the seed is out of its range; a ValueError.
            ArchiveError: the game has another number of actions than the network.
        """
        options = EvaluationOptions(episodes=1, seed=seed, deterministic=deterministic, num_games=1)
        protocol = build_protocol(self.config, options)
        return play_episodes(self, protocol=protocol, episodes=1, seed=options.seed, num_games=1)[0]

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """ale-py's names of the actions, as the archive has them; empty where it has none."""
        game = self.metadata.get("game")
        meanings = game.get("action_meanings") if isinstance(game, dict) else None
        return tuple(map(str, meanings)) if isinstance(meanings, list) else ()

    @property
    def has_policy(self) -> bool:
        """True where `scores` are a policy's logits, False where they are the actions' values."""
        return isinstance(self.network, ActorCriticNetwork)

    def scores(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's output `[B, A]`.

        Args:
            batch: `[B, 4, 84, 84] uint8`, or packed as in `envs.frames`, `[B, 21, 21, 64]`.
        """
        return self.judge(batch)[0]

    def judge(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the network makes of observations: `scores` `[B, A]`, and its value of each `[B]`.

        The value is the critic's estimate of the discounted return, in clipped rewards; where there
        is none, that of the best action.

        Args:
            batch: as of `scores`.
        """
        with torch.inference_mode():
            output: Any = self.network(pack_observations(torch.from_numpy(batch)))
        scores: Tensor
        values: Tensor
        scores, values = output if self.has_policy else (output, output.amax(dim=1))
        return scores.numpy(), values.numpy()


class _Misfit(Exception):
    """Why weights are not those of the network."""


def _build_network(
    config: ExperimentConfig, weights: dict[str, NDArray[Any]]
) -> ActorCriticNetwork | QNetwork:
    for name, array in weights.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise _Misfit(f"{as_line(name, longest=60)} is of type {array.dtype}")
    network = _build_blank(config, weights)
    try:
        network.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    except RuntimeError as error:
        raise _Misfit(as_line(" ".join(str(error).split()), longest=500)) from None
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise _Misfit(f"{name} has NaN or infinite values, its training has diverged")
    return network


def _build_blank(
    config: ExperimentConfig, weights: dict[str, NDArray[Any]]
) -> ActorCriticNetwork | QNetwork:
    head = "q.bias" if config.algorithm == "DQN" else "policy.bias"
    bias = weights.get(head)
    # The network's size comes from the file: without a bound it could ask for all memory.
    if bias is None or bias.ndim != 1 or not 1 <= len(bias) <= _MAX_ACTIONS:
        found = "missing" if bias is None else f"of shape {list(bias.shape)}"
        raise _Misfit(
            f"{head} of a {config.algorithm} agent is {found}, not 1 to {_MAX_ACTIONS} values"
        )
    if config.algorithm == "DQN":
        return QNetwork(len(bias), dueling=config.dqn.dueling)
    return ActorCriticNetwork(len(bias))


def _is_batch(observation: NDArray[np.uint8]) -> bool:
    return np.ndim(observation) == 1 + len(OBSERVATION_SHAPE)


def _as_batch(observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = np.asarray(observation)
    if array.dtype != np.uint8 or array.shape[-3:] != OBSERVATION_SHAPE or array.ndim not in (3, 4):
        raise ValueError(
            f"an observation is [4, 84, 84] or [B, 4, 84, 84] uint8, not "
            f"{list(array.shape)} {array.dtype}"
        )
    return np.ascontiguousarray(array.reshape(-1, *OBSERVATION_SHAPE))
