"""Frames, rewards and ends equal Gymnasium's bit for bit; sticky actions at ALE's rate."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from ale_py import Action, ALEInterface, roms
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames
from retro_ml.envs.frames import PACKED_STACK_SHAPE, push_frames, unpack_stacks

cv2 = pytest.importorskip("cv2")  # what Gymnasium resizes with

pytestmark = pytest.mark.integration

BuildGames = Callable[..., AtariGames]
NO_LIMIT = 108_000


@contextmanager
def gymnasium_game(game: str, max_frames: int) -> Iterator[gym.Env]:  # type: ignore[type-arg]
    gym.register_envs(ale_py)
    env = gym.make(f"{game}NoFrameskip-v4", max_num_frames_per_episode=max_frames)
    env = AtariPreprocessing(env, noop_max=0, frame_skip=4, screen_size=84, grayscale_obs=True)
    yield FrameStackObservation(env, 4, padding_type="zero")
    env.close()


@pytest.mark.parametrize(
    ("rom", "game", "max_frames", "agent_steps", "ends"),
    [
        ("breakout", "Breakout", NO_LIMIT, 300, 1),
        ("ms_pacman", "MsPacman", NO_LIMIT, 620, 1),
        ("pong", "Pong", NO_LIMIT, 200, 0),
        ("ms_pacman", "MsPacman", 400, 210, 2),
    ],
)
def test_equals_gymnasiums_wrappers(
    build_games: BuildGames, rom: str, game: str, max_frames: int, agent_steps: int, ends: int
) -> None:
    games = build_games(rom, max_frames=max_frames)
    stack = np.zeros((1, *PACKED_STACK_SHAPE), np.uint8)
    rng = np.random.default_rng(0)
    ended = 0

    def push(
        older: NDArray[np.uint8], frame: NDArray[np.uint8], *, start: bool
    ) -> NDArray[np.uint8]:
        moved_on = older.copy()
        push_frames(moved_on, frame, np.array([start]))
        return moved_on

    with gymnasium_game(game, max_frames) as theirs:
        expected, _ = theirs.reset()
        stack = push(stack, games.reset(), start=True)
        np.testing.assert_array_equal(unpack_stacks(stack)[0], expected)
        for _ in range(agent_steps):
            action = int(rng.integers(int(games.single_action_space.n)))
            expected, reward, terminated, truncated, _ = theirs.step(action)
            step = games.step(np.array([action]))
            assert step.rewards[0] == reward
            assert (step.terminated[0], step.truncated[0]) == (terminated, truncated)
            if truncated:
                last = push(stack, step.final_frames[0][None], start=False)
                np.testing.assert_array_equal(unpack_stacks(last)[0], expected)
            if terminated or truncated:
                expected, _ = theirs.reset()
                ended += 1
            stack = push(stack, step.frames, start=bool(step.started[0]))
            np.testing.assert_array_equal(unpack_stacks(stack)[0], expected)
    assert ended >= ends


def four_frames(ale: ALEInterface, before: Action, action: Action, delay: int) -> NDArray[np.uint8]:
    """An agent step whose first `delay` frames repeat the action before, as it is then seen."""
    screens = []
    for frame in range(4):
        ale.act(before if frame < delay else action)
        screens.append(ale.getScreenGrayscale())
    seen: NDArray[np.uint8] = cv2.resize(
        np.maximum(screens[2], screens[3]), (84, 84), interpolation=cv2.INTER_AREA
    )
    return seen


def possible_delays(
    ale: ALEInterface, before: Action, action: Action, seen: NDArray[np.uint8]
) -> list[int]:
    start = ale.cloneState()
    fitting = []
    for delay in range(5):
        ale.restoreState(start)
        if np.array_equal(four_frames(ale, before, action, delay), seen):
            fitting.append(delay)
    ale.restoreState(start)
    return fitting


@pytest.mark.parametrize(("sticky_actions", "at_once", "rounds"), [(0.25, 0.75, 50), (0.0, 1.0, 3)])
def test_a_quarter_of_the_frames_repeat_the_action_before(
    build_games: BuildGames, sticky_actions: float, at_once: float, rounds: int
) -> None:
    """Games that have just begun, each given RIGHT: an emulator without sticky actions shows after
    how many frames it came to be pressed. Not in the first one: 1/4; not in the first two: 1/16.

    Breakout without its ball stands still, so every game of two steps is the same but for this.
    """
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path("breakout"))
    ale.reset_game()
    games = build_games(num_games=4, sticky_actions=sticky_actions, max_frames=8, seed=7)
    games.reset()
    right = games.action_meanings.index("RIGHT")
    delays: Counter[int] = Counter()
    for _ in range(rounds):
        step = games.step(np.full(4, right))
        frames = np.concatenate([np.zeros((4, 21, 21, 48), np.uint8), step.frames], axis=-1)
        for seen in unpack_stacks(frames)[:, 3]:
            fitting = possible_delays(ale, Action.NOOP, Action.RIGHT, seen)
            assert fitting in ([0], [1], [2], [3, 4])  # after one frame the paddle still stands
            delays[fitting[0]] += 1
        assert games.step(np.zeros(4, np.int64)).truncated.all()
    shares = np.array([delays[delay] / (4 * rounds) for delay in range(3)])
    expected = np.array([at_once * (1 - at_once) ** delay for delay in range(3)])
    deviations = np.sqrt(expected * (1 - expected) / (4 * rounds))
    assert (np.abs(shares - expected) <= 3.5 * deviations + 1e-9).all(), shares
