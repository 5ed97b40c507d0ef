"""One vector of Atari games on `ale_py.vector_env`: true scores, lives, time limits, seeds.

Preprocessing is the published one (Mnih et al. 2015; Machado et al. 2018): every action is held for
4 frames, the pixelwise maximum of the last two is turned grey and resized to 84x84, all in ALE's
C++ threads. With no-op starts, sticky actions and FIRE off, frames and rewards equal Gymnasium's
AtariPreprocessing bit for bit.

Deviations on purpose, and why:

- *Starts.* ale-py presses FIRE first and counts it among the no-ops, drawing 0 to `noop_max - 1` of
  them. Here a game begins after 1 to `noop_max` frames: ale-py is asked for one more, and a start
  of no frame at all (games without FIRE) is drawn again. With FIRE a start of one frame is twice
  as likely as any other.
- *FIRE after a lost life.* ale-py presses it at a game's start only, so that a greedy agent which
  does not fire stalls for ever. Here the first action after a lost life is FIRE, whatever the
  agent chose (Stable-Baselines3's and OpenAI Baselines' FireResetEnv press it there as well).
  With sticky actions so is a game's first one: ale-py's single frame is lost as often as any
  action is, a quarter of the time, where FireResetEnv holds it for 4.
  To the agent this is a property of the game: the action it chose is the one that is recorded.
- *Seeds.* A game is a function of its seed and its actions since it was seeded. Seeding costs a
  reload of the ROM (0.1 s), so it is done at the first game's end after `RESEED_AGENT_STEPS`. The
  actions since are kept; `set_state` plays them again to bring the emulators back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py import Action
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.envs.frames import OBSERVATION_SHAPE, pack_frames

FRAME_SKIP = 4
"""Frames for which an action is held (Mnih et al. 2015, Extended Data Table 1)."""
RESEED_AGENT_STEPS = 2_500
"""Agent steps after which a game's end is followed by a new seed: under 2 % of a run's time, and
bringing a game back replays 2,500 steps and one game at the most."""
GAME_SEEDS = 1
"""First word of the key from which the seeds of games in training are derived."""


@dataclass(frozen=True, slots=True)
class GameSettings:
    """How a game is played: the fields of `ExperimentConfig.environment` the emulator needs."""

    rom: str
    sticky_actions: float
    noop_max: int
    max_frames: int
    auto_fire: bool
    full_action_space: bool = False


@dataclass(frozen=True, slots=True)
class FinishedGame:
    """One whole game: `score` unclipped, `agent_steps` and `frames` its length (start included)."""

    score: float
    agent_steps: int
    frames: int


@dataclass(slots=True)
class Step:
    """What one agent step of N games gave. Arrays are the caller's to keep."""

    frames: NDArray[np.uint8]
    """`[N, 21, 21, 16]` packed; the first frame of the next game where one ended."""
    rewards: NDArray[np.float32]
    """`[N]` unclipped."""
    terminated: NDArray[np.bool_]
    """`[N]` game over."""
    truncated: NDArray[np.bool_]
    """`[N]` cut by the time limit, not over."""
    life_lost: NDArray[np.bool_]
    """`[N]` a life was lost and the game goes on."""
    final_frames: dict[int, NDArray[np.uint8]]
    """The last frame `[21, 21, 16]` of each game that was truncated, by its index. ale-py ends the
    step before it takes the screen, so it is the frame before, as in Gymnasium's wrapper."""
    finished: list[tuple[int, FinishedGame]]
    """The games that ended, with their index, in the order of the indices."""

    @property
    def started(self) -> NDArray[np.bool_]:
        """`[N]` True where `frames` holds the first frame of a new game."""
        return self.terminated | self.truncated


class AtariGames:
    """N games of one ROM, stepped together.

    Args:
        settings: the game and its protocol.
        num_games: N.
        num_threads: emulator threads.
        seed: the run's seed; each game's own is derived from it, `first_game` + its index, and how
            often it was seeded.
        first_game: this vector's first game among all of the run's (several env runners).
    """

    def __init__(
        self,
        settings: GameSettings,
        *,
        num_games: int,
        num_threads: int,
        seed: int,
        first_game: int = 0,
    ) -> None:
        self.settings = settings
        self.num_envs = num_games
        self._seed = seed
        self._first_game = first_game
        self._ale = AtariVectorEnv(
            settings.rom,
            num_envs=num_games,
            num_threads=min(num_threads, num_games),
            max_num_frames_per_episode=settings.max_frames,
            repeat_action_probability=settings.sticky_actions,
            full_action_space=settings.full_action_space,
            autoreset_mode="SameStep",
            stack_num=1,
            frameskip=FRAME_SKIP,
            noop_max=settings.noop_max + 1 if settings.noop_max else 0,
            use_fire_reset=settings.auto_fire,
            reward_clipping=False,
        )
        actions = list(self._ale.ale.get_action_set())
        self.action_meanings = tuple(action.name for action in actions)
        self._fire = (
            actions.index(Action.FIRE) if settings.auto_fire and Action.FIRE in actions else None
        )
        self._fires_first = self._fire is not None and settings.sticky_actions > 0
        self.single_observation_space = gym.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        self.single_action_space: gym.spaces.Discrete[Any] = gym.spaces.Discrete(len(actions))
        self.frames_played = 0
        self.starts = np.zeros(num_games, np.int64)
        """`[N]` how often each game was started since its seed: some starts are drawn again."""
        self.pressed = np.zeros(num_games, np.int64)
        """`[N]` the actions of the last step as the emulator got them, FIRE after a lost life."""
        self._seedings = np.zeros(num_games, np.int64)
        self._history: list[bytearray] = [bytearray() for _ in range(num_games)]
        self._scores = np.zeros(num_games, np.float64)
        self._lengths = np.zeros(num_games, np.int64)
        self._lives = np.zeros(num_games, np.int32)
        self._fire_next = np.zeros(num_games, np.bool_)
        self._frame_numbers = np.zeros(num_games, np.int64)
        self._game_started_at = np.zeros(num_games, np.int64)

    def reset(self, *, seeds: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Seeds every game anew and starts it. Returns the first frames `[N, 21, 21, 16]`.

        Args:
            seeds: `[N] int64`, 0 to 2^31-1, in place of those derived from the run's seed;
                `set_state` cannot bring such games back.
        """
        everyone = np.ones(self.num_envs, np.bool_)
        frames = self._start_games(everyone, reseed=everyone, chosen=seeds)
        self._fire_next[:] = self._fires_first
        self._scores[:] = 0.0
        self._lengths[:] = 0
        return frames

    @property
    def game_frames(self) -> NDArray[np.int64]:
        """`[N]` frames of the games under way, those of their starts included."""
        return self._frame_numbers - self._game_started_at

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Plays one agent step of every game: `send` and `receive`."""
        self.send(actions)
        return self.receive()

    def send(self, actions: NDArray[np.int64]) -> None:
        """Begins an agent step; the emulator's threads play it while the caller does other things.

        Args:
            actions: `[N] int64`, indices into `action_meanings`.
        """
        for history, action in zip(self._history, actions.tolist(), strict=True):
            history.append(action)
        self._send(actions)

    def receive(self) -> Step:
        """What the agent step begun by `send` gave, waited for; ended games are started anew."""
        return self._receive()

    def close(self) -> None:
        """Stops the emulator's threads."""
        self._ale.close()

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs, as arrays and numbers: seeds and the actions since."""
        return {
            "seedings": self._seedings.copy(),
            "history": [np.frombuffer(bytes(history), np.uint8) for history in self._history],
            "scores": self._scores.copy(),
            "lengths": self._lengths.copy(),
            "frames_played": self.frames_played,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Brings every game back to where `get_state` found it, by playing its actions again.

        Costs the emulator's time for the longest history, all games side by side.
        """
        histories = [np.asarray(history, np.int64) for history in state["history"]]
        longest = max(len(history) for history in histories)
        self._seedings = np.asarray(state["seedings"], np.int64) - 1
        everyone = np.ones(self.num_envs, np.bool_)
        self._start_games(everyone, reseed=everyone)
        self._fire_next[:] = self._fires_first
        idle = np.zeros(self.num_envs, np.int64)
        for moment in range(longest):
            joins = np.array([longest - len(history) == moment for history in histories])
            if moment and joins.any():
                self._rejoin(joins)
            actions = idle.copy()
            for game, history in enumerate(histories):
                if moment >= longest - len(history):
                    actions[game] = history[moment - (longest - len(history))]
            self._send(actions)
            self._receive(replaying=True)
        joins = np.array([not len(history) for history in histories])
        if longest and joins.any():
            self._rejoin(joins)
        self._history = [bytearray(history.astype(np.uint8).tobytes()) for history in histories]
        self._scores = np.asarray(state["scores"], np.float64).copy()
        self._lengths = np.asarray(state["lengths"], np.int64).copy()
        self.frames_played = int(state["frames_played"])

    def _rejoin(self, games: NDArray[np.bool_]) -> None:
        """Starts games from their stored seed, while the others are in the middle of theirs."""
        self._seedings[games] -= 1
        self._start_games(games, reseed=games)
        self._fire_next[games] = self._fires_first

    def _send(self, actions: NDArray[np.int64]) -> None:
        if self._fire is not None and self._fire_next.any():
            actions = np.where(self._fire_next, self._fire, actions)
        self.pressed = actions
        self._ale.send(actions)

    def _receive(self, *, replaying: bool = False) -> Step:
        observations, rewards, terminated, truncated, info = self._ale.recv()
        ended = terminated | truncated
        frame_numbers = info["frame_number"].astype(np.int64)
        self.frames_played += int((frame_numbers - self._frame_numbers).sum())
        life_lost = (info["lives"] < self._lives) & ~ended
        self._lives, self._frame_numbers = info["lives"], frame_numbers
        self._fire_next = life_lost | (ended & self._fires_first)
        self._scores += rewards
        self._lengths += 1
        step = Step(
            frames=pack_frames(observations[:, 0]),
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            life_lost=life_lost,
            final_frames={},
            finished=[],
        )
        if ended.any():
            self._end_games(step, ended, info, replaying=replaying)
        return step

    def _end_games(
        self,
        step: Step,
        ended: NDArray[np.bool_],
        info: dict[str, NDArray[Any]],
        *,
        replaying: bool,
    ) -> None:
        """Closes the books of the games that ended; ale-py has started their next ones already."""
        starts = self._frame_numbers - info["episode_frame_number"]
        for game in np.flatnonzero(ended):
            if step.truncated[game]:
                step.final_frames[int(game)] = pack_frames(info["final_obs"][game, 0])
            finished = FinishedGame(
                score=float(self._scores[game]),
                agent_steps=int(self._lengths[game]),
                frames=int(starts[game] - self._game_started_at[game]),
            )
            step.finished.append((int(game), finished))
        self._game_started_at[ended] = starts[ended]
        self._scores[ended] = 0.0
        self._lengths[ended] = 0
        due = np.array([len(history) >= RESEED_AGENT_STEPS for history in self._history])
        reseed = ended & due if not replaying else np.zeros_like(ended)
        again = reseed | (ended & self._without_start(info))
        if again.any():
            step.frames[again] = self._start_games(again, reseed=reseed)[again]

    def _start_games(
        self,
        games: NDArray[np.bool_],
        *,
        reseed: NDArray[np.bool_],
        chosen: NDArray[np.int64] | None = None,
    ) -> NDArray[np.uint8]:
        """Starts the masked games, some with a new seed; returns all games' frames, packed."""
        while True:
            seeds = np.full(self.num_envs, -1, np.int64)
            for game in np.flatnonzero(reseed):
                seeds[game] = derive_seed(
                    self._seed, GAME_SEEDS, self._first_game + int(game), int(self._seedings[game])
                )
                if chosen is not None:
                    seeds[game] = chosen[game]
                self._seedings[game] += 1
                self._history[game].clear()
                self._frame_numbers[game] = 0
            self.starts = np.where(games, np.where(reseed, 1, self.starts + 1), self.starts)
            observations: NDArray[np.uint8]
            observations, info = self._ale.reset(seed=seeds[games], options={"reset_mask": games})
            frame_numbers = info["frame_number"].astype(np.int64)
            self.frames_played += int((frame_numbers - self._frame_numbers).sum())
            self._frame_numbers, self._lives = frame_numbers, info["lives"]
            self._game_started_at[games] = (frame_numbers - info["episode_frame_number"])[games]
            again = games & self._without_start(info)
            if not again.any():
                return pack_frames(observations[:, 0])
            games, reseed = again, np.zeros_like(again)

    def _without_start(self, info: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """`[N]` True where no-ops were asked for and the game began without any."""
        if not self.settings.noop_max:
            return np.zeros(self.num_envs, np.bool_)
        return np.asarray(info["episode_frame_number"] == 0)
