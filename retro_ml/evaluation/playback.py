"""A game as it is watched: every screen, and what the agent made of each.

The games are those of an evaluation: game `number` of `seed` and `protocol` is the same here as in
`evaluation.episodes`, step by step, and ends with the same score.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ml.envs.screens import ScreenedGame
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import (
    Episode,
    Seat,
    build_settings,
    check_actions,
    judge_in_batches,
    one_torch_thread,
)
from retro_ml.evaluation.protocols import Protocol


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the agent thought when it chose an action."""

    scores: NDArray[np.float32]
    """`[A]` the actions' probabilities, or their values (DQN)."""
    are_probabilities: bool
    value: float
    """Estimate of the discounted return, in clipped rewards."""
    action: int
    """The index of its choice."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What one agent step showed; the first one of a game has no opinion."""

    screens: NDArray[np.uint8]
    """`[F, H, W, 3]` RGB, one for each emulator frame."""
    opinion: Opinion | None
    game: int
    """Its number, from 0."""
    score: float
    """Of the game, its rewards of this step included."""
    lives: int
    """0 in games that count none."""
    agent_steps: int
    """Of the game."""
    ended: Episode | None
    """The whole game, where it ended with this step."""


def watch_games(
    agent: Agent, *, protocol: Protocol, episodes: int, seed: int
) -> Iterator[tuple[tuple[str, ...], Moment]]:
    """Plays whole games one after the other.

    Yields:
        The actions' meanings, and a moment.

    Raises:
        ArchiveError: the agent has another number of actions than the game.
    """
    game = ScreenedGame(build_settings(agent.config.game.rom, protocol))
    with one_torch_thread(), closing(Seat(game, protocol, seed)) as seat:
        check_actions(agent, seat.num_actions)
        for number in range(episodes):
            for moment in _watch_game(agent, game, seat, number=number):
                yield game.action_meanings, moment


def _watch_game(agent: Agent, game: ScreenedGame, seat: Seat, *, number: int) -> Iterator[Moment]:
    seat.start(number)
    yield Moment(
        game.screens, None, game=number, score=0.0, lives=game.lives, agent_steps=0, ended=None
    )
    score, agent_steps, ended = 0.0, 0, None
    while ended is None:
        scores, values = judge_in_batches(agent, [seat.observation])
        action = seat.send(scores[0])
        ended = seat.receive()
        score += game.reward
        agent_steps += 1
        yield Moment(
            game.screens,
            Opinion(
                scores=_softmax(scores[0]) if agent.has_policy else scores[0],
                are_probabilities=agent.has_policy,
                value=float(values[0]),
                action=action,
            ),
            game=number,
            score=score,
            lives=game.lives,
            agent_steps=agent_steps,
            ended=ended,
        )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
