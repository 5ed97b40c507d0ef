"""Plays whole games with a trained agent, many at a time.

An episode is a function of the evaluation's seed and its own number, and of nothing else: its game
is seeded, its actions are drawn by a generator of its own, and the network sees batches of one
size. So the number of games at a time, and which of them end first, change no score; and since the
episodes are settled beforehand, there is no bias towards short games, as there would be among the
first N to finish.

Every game is a vector of one, so that none waits for another or plays on without need. Seeding
costs a reload of the ROM (0.1 s an episode).

Seeds: numpy's SeedSequence gives (seed, key) streams that are unrelated for different keys, and the
first word of a key is another one here than in training, whatever the two seeds are. Only by chance
can two of the 31-bit numbers be equal, 1 in 2^31 for a pair; and the actions still differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.envs.atari import AtariGames, GameSettings
from retro_ml.envs.frames import PACKED_STACK_SHAPE, push_frames
from retro_ml.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from retro_ml.evaluation.agent import Agent

EVALUATION_GAME_SEEDS = 5
"""First word of the key from which the seeds of an evaluation's games are derived."""
EVALUATION_ACTION_SEEDS = 6
"""First word of the key from which its generators of actions are derived."""
BATCH_ROWS = 16
"""Observations the network sees at a time: sums come out in another order for another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One whole game: `score` unclipped, `agent_steps` and `frames` its length (start included)."""

    score: float
    agent_steps: int
    frames: int
    capped: bool
    """Cut off by the limit of frames."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an evaluation has come."""

    finished: int
    """Games."""
    total: int
    """Games."""
    agent_steps: int
    """Of all games, also of those that go on."""
    mean: float | None
    """Score of the finished games."""


def play_episodes(
    agent: Agent,
    *,
    protocol: Protocol,
    episodes: int,
    seed: int,
    num_games: int,
    on_step: Callable[[Standing], None] = lambda standing: None,
) -> list[Episode]:
    """The games that `seed` and `protocol` mean, in the order of their numbers.

    Args:
        agent: plays.
        protocol: how.
        episodes: games to play.
        seed: of all randomness, 0 to 2^31-1.
        num_games: games at a time.
        on_step: called after every agent step of the games at hand.

    Raises:
        ArchiveError: the agent has another number of actions than the game.
    """
    rom = agent.config.game.rom
    finished: dict[int, Episode] = {}
    agent_steps, total_score = 0, 0.0
    with one_torch_thread(), ExitStack() as stack:
        settings = build_settings(rom, protocol)
        seats = [
            Seat(AtariGames(settings, num_games=1, num_threads=1, seed=seed), protocol, seed)
            for _ in range(min(num_games, episodes))
        ]
        for number, seat in enumerate(seats):
            stack.enter_context(closing(seat))
            seat.start(number)
        started = len(seats)
        check_actions(agent, seats[0].num_actions)
        while seats:
            scores, _ = judge_in_batches(agent, [seat.observation for seat in seats])
            for seat, row in zip(seats, scores, strict=True):
                seat.send(row)
            agent_steps += len(seats)
            for seat in list(seats):
                episode = seat.receive()
                if episode is None:
                    continue
                finished[seat.number] = episode
                total_score += episode.score
                if started < episodes:
                    seat.start(started)
                    started += 1
                else:
                    seats.remove(seat)
            mean = total_score / len(finished) if finished else None
            on_step(Standing(len(finished), episodes, agent_steps, mean))
    return [finished[number] for number in range(episodes)]


def game_seed(seed: int, number: int) -> int:
    """The emulator's seed for the evaluation's game `number`."""
    return derive_seed(seed, EVALUATION_GAME_SEEDS, number)


def build_settings(rom: str, protocol: Protocol) -> GameSettings:
    """The emulator's settings for a protocol's games."""
    return GameSettings(
        rom=rom,
        sticky_actions=protocol.sticky_actions,
        noop_max=protocol.noop_max,
        max_frames=protocol.max_frames,
        auto_fire=protocol.auto_fire,
        full_action_space=protocol.full_action_space,
    )


class Seat:
    """One game being played, episode after episode.

    Args:
        games: a vector of one game.
        protocol: how actions are chosen.
        seed: the evaluation's.
    """

    def __init__(self, games: AtariGames, protocol: Protocol, seed: int) -> None:
        self._protocol = protocol
        self._seed = seed
        self._games = games
        self._stack = np.zeros((1, *PACKED_STACK_SHAPE), np.uint8)

    def start(self, number: int) -> None:
        """Begins episode `number`."""
        self.number = number
        seeds = np.array([game_seed(self._seed, number)], np.int64)
        frames = self._games.reset(seeds=seeds)
        push_frames(self._stack, frames, np.ones(1, np.bool_))
        actions_seed = derive_seed(self._seed, EVALUATION_ACTION_SEEDS, number)
        self._rng = np.random.default_rng(actions_seed)

    def send(self, scores: NDArray[np.float32]) -> int:
        """Begins the agent step that the network's `scores` `[A]` mean; returns the action."""
        action = self._choose(scores)
        self._games.send(np.array([action], np.int64))
        return action

    def receive(self) -> Episode | None:
        """Waits for the step; the episode, if it ended with it."""
        step = self._games.receive()
        push_frames(self._stack, step.frames, step.started)
        for _, game in step.finished:
            return Episode(
                score=game.score,
                agent_steps=game.agent_steps,
                frames=game.frames,
                capped=bool(step.truncated[0]),
            )
        return None

    def close(self) -> None:
        """Stops the emulator."""
        self._games.close()

    @property
    def observation(self) -> NDArray[np.uint8]:
        """`[21, 21, 64]`."""
        return self._stack[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return int(self._games.single_action_space.n)

    def _choose(self, scores: NDArray[np.float32]) -> int:
        if self._protocol.actions == "sampled":
            # The Gumbel-max trick: argmax(score - log E), E ~ Exp(1), is a draw from the softmax.
            scores = scores - np.log(self._rng.standard_exponential(len(scores)))
        elif self._protocol.epsilon and self._rng.random() < self._protocol.epsilon:
            return int(self._rng.integers(len(scores)))
        return int(scores.argmax())


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The batch is small and the emulators want the other CPUs; more threads would wait busily."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def judge_in_batches(
    agent: Agent, observations: list[NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`Agent.judge` of N observations, `[N, A]` and `[N]`, in batches filled up to BATCH_ROWS."""
    count = len(observations)
    rows = -(-count // BATCH_ROWS) * BATCH_ROWS
    batch = np.zeros((rows, *PACKED_STACK_SHAPE), np.uint8)
    np.stack(observations, out=batch[:count])
    starts = range(0, rows, BATCH_ROWS)
    judged = [agent.judge(batch[start : start + BATCH_ROWS]) for start in starts]
    scores, values = (np.concatenate(parts)[:count] for parts in zip(*judged, strict=True))
    return scores, values


def check_actions(agent: Agent, num_actions: int) -> None:
    """Raises ArchiveError where the agent has another number of actions than the game."""
    blank = np.zeros((1, *PACKED_STACK_SHAPE), np.uint8)
    known = agent.scores(blank).shape[1]
    if known != num_actions:
        raise ArchiveError(
            f"the model knows {known} actions, {agent.config.game.rom} has {num_actions}: "
            "its config.json does not belong to its weights"
        )
