"""One short course of play, worked out by hand from the emulator's answers to what is learned from.

Eight agent steps of one game with a lost life, a game over and a time limit in the middle. All
pixels of a frame have one level, and the state's value is the newest frame's level:

    t            0    1      2    3     4    5      6    7
    level        4    6      8    2     6    4      2    8    then 4
    reward       7    0     -3    0     1    0      2    0
    what ends         life        game       time (last frame: 10)
"""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.envs.atari import Step
from retro_ml.envs.frames import (
    FRAME_CHANNELS,
    OBSERVATION_SHAPE,
    PACKED_FRAME_SHAPE,
    unpack_stacks,
)
from retro_ml.rllib import env_runner
from retro_ml.rllib.ppo import build_train_batch
from retro_ml.rllib.replay import FrameReplay, Transitions
from retro_ml.rllib.rollout import Rollout
from retro_ml.rllib.translate import translate

pytestmark = pytest.mark.unit

LEVELS = [4, 6, 8, 2, 6, 4, 2, 8, 4]
REWARDS = [7, 0, -3, 0, 1, 0, 2, 0]
LIFE_LOST, GAME_OVER, TIME_LIMIT, LAST_LEVEL = 1, 3, 5, 10
STACKS = [
    [0, 0, 0, 4],
    [0, 0, 4, 6],
    [0, 4, 6, 8],  # a lost life leaves the stack alone
    [4, 6, 8, 2],
    [0, 0, 0, 6],
    [0, 0, 6, 4],
    [0, 0, 0, 2],
    [0, 0, 2, 8],
]


def frame(level: int) -> NDArray[np.uint8]:
    return np.full(PACKED_FRAME_SHAPE, level, np.uint8)


class ScriptedGames:
    """Stands where `GameGroups` would; answers with the course above whatever the agent does."""

    def __init__(self, settings: object, **how: Any) -> None:
        self.threads_per_group = 1
        self.num_envs, self.frames_played, self._t = 1, 0, -1
        self.single_observation_space = Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        self.single_action_space = Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, 1)
        self.action_space = batch_space(self.single_action_space, 1)

    @property
    def unwrapped(self) -> "ScriptedGames":
        return self

    def reset(self) -> NDArray[np.uint8]:
        return frame(LEVELS[0])[None]

    def side_by_side(self, function: Any) -> list[Any]:
        return [function(self, slice(0, 1))]

    def step(self, actions: NDArray[np.int64]) -> Step:
        self._t += 1
        t = self._t
        return Step(
            frames=frame(LEVELS[t + 1])[None],
            rewards=np.array([REWARDS[t]], np.float32),
            terminated=np.array([t == GAME_OVER]),
            truncated=np.array([t == TIME_LIMIT]),
            life_lost=np.array([t == LIFE_LOST]),
            final_frames={0: frame(LAST_LEVEL)} if t == TIME_LIMIT else {},
            finished=[],
        )

    def close(self) -> None:
        pass


class LevelModule:
    """Scores 0 for all actions; a state's value is its newest frame's level."""

    def build_actor(self) -> Any:
        def act(packed: Tensor) -> tuple[Tensor, Tensor | None]:
            return torch.zeros(len(packed), 4), packed[:, 0, 0, -1].float()

        return act


class StackModule:
    """A state's value has the levels of its stack as digits, the oldest first."""

    def build_actor(self) -> Any:
        def act(packed: Tensor) -> tuple[Tensor, Tensor | None]:
            levels = packed[:, 0, 0, ::FRAME_CHANNELS].float()
            digits = torch.tensor([4096.0, 256.0, 16.0, 1.0])
            return torch.zeros(len(packed), 4), levels @ digits

        return act


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(env_runner, "GameGroups", ScriptedGames)
    monkeypatch.setattr(env_runner.AtariEnvRunner, "make_module", lambda runner: None)

    def play(*, lives_end: bool = True, clip: bool = True, module: Any = None) -> Rollout:
        config = ExperimentConfig(
            game_id="BreakoutNoFrameskip-v4",
            algorithm="PPO",
            total_timesteps=10_000,
            use_gpu=False,
            resources={"games_per_env_runner": 1},
            ppo={"minibatch_size": 128},
            environment={"terminal_on_life_loss": lives_end, "clip_rewards": clip},
        )
        runner = env_runner.AtariEnvRunner(config=translate(config, num_cpus=1))
        runner.module = module or LevelModule()
        (rollout,) = runner.sample(num_timesteps=8, explore=True)
        return rollout

    return play


def learned_from(rollout: Rollout) -> Any:
    """Columns of the train batch at gamma 0.5 and lambda 0.5."""
    batch = build_train_batch([rollout], gamma=0.5, gae_lambda=0.5)
    return batch.policy_batches["default_policy"]


def levels(stacks: NDArray[np.uint8]) -> list[list[int]]:
    """Each stack's four levels, oldest first."""
    return unpack_stacks(stacks)[:, :, 50, 3].tolist()


def test_advantages_where_lives_end(play: Any) -> None:
    columns = learned_from(play())
    # clipped rewards: 1 0 -1 0 1 0 1 0; deltas: 1 + 3 - 4 = 0; 0 - 6 (life); -1 + 1 - 8 = -8;
    # 0 - 2 (game over); 1 + 2 - 6 = -3; 0 + 10/2 - 4 = 1 (time); 1 + 4 - 2 = 3; 0 + 2 - 8 = -6
    # A0 = 0 - 6/4; A2 = -8 - 2/4; A4 = -3 + 1/4; A6 = 3 - 6/4; the others are their deltas
    expected = [-1.5, -6.0, -8.5, -2.0, -2.75, 1.0, 1.5, -6.0]
    assert columns["advantages"].tolist() == expected
    # advantage + value
    assert columns["value_targets"].tolist() == [2.5, 0.0, -0.5, 0.0, 3.25, 5.0, 3.5, 2.0]


def test_advantages_where_lives_do_not_end(play: Any) -> None:
    columns = learned_from(play(lives_end=False))
    # delta 1 = 0 + 8/2 - 6 = -2; A1 = -2 - 8.5/4 = -4.125; A0 = 0 - 4.125/4; the rest as above
    expected = [-1.03125, -4.125, -8.5, -2.0, -2.75, 1.0, 1.5, -6.0]
    assert columns["advantages"].tolist() == expected


def test_advantages_of_rewards_as_they_are(play: Any) -> None:
    columns = learned_from(play(clip=False))
    # deltas: 7 + 3 - 4 = 6; -6; -3 + 1 - 8 = -10; -2; -3; 1; 2 + 4 - 2 = 4; -6
    assert columns["advantages"].tolist() == [4.5, -6.0, -10.5, -2.0, -2.75, 1.0, 2.5, -6.0]


def test_observations_and_log_probabilities(play: Any) -> None:
    columns = learned_from(play())
    assert levels(columns["obs"]) == STACKS
    np.testing.assert_allclose(columns["action_logp"], np.log(0.25), rtol=1e-6)


def test_what_is_valued_are_the_stacks(play: Any) -> None:
    rollout = play(module=StackModule())
    assert [f"{int(value):04x}" for value in rollout.values[:8, 0]] == [
        "".join(map(str, stack)) for stack in STACKS
    ]
    # the stack of the last observation before the time limit: 0 6 4 10
    assert rollout.final_values[:, 0].tolist() == [0, 0, 0, 0, 0, 0x064A, 0, 0]


def replayed(rollout: Rollout, *rows: int, n_step: int) -> Transitions:
    replay = FrameReplay(size=20, num_lanes=1)
    replay.add([rollout])
    assert replay.heads.tolist() == [9]  # row 6 holds the last frame before the time limit
    drawn = replay.draw(400, n_step, np.random.default_rng(0))
    assert np.unique(drawn).tolist() == [row for row in range(9 - n_step) if row != 6]
    return replay.gather(np.array(rows), n_step=n_step, gamma=0.5)


def test_one_step_returns(play: Any) -> None:
    drawn = replayed(play(), 0, 1, 2, 3, 4, 5, 7, n_step=1)
    assert levels(drawn.observations) == STACKS[:7]
    assert drawn.rewards.tolist() == [1, 0, -1, 0, 1, 0, 1]
    assert drawn.discounts.tolist() == [0.5, 0, 0.5, 0, 0.5, 0.5, 0.5]
    following = levels(drawn.next_observations)
    assert [following[i] for i in (0, 2, 4, 5, 6)] == [
        STACKS[1],
        STACKS[3],
        STACKS[5],
        [0, 6, 4, 10],  # the last frame before the time limit
        STACKS[7],
    ]


def test_three_step_returns_where_lives_end(play: Any) -> None:
    """They stop at the life, the game over and the time limit; only the last is followed."""
    drawn = replayed(play(), 0, 1, 2, 3, 4, 5, n_step=3)
    assert drawn.rewards.tolist() == [1, 0, -1, 0, 1, 0]
    assert drawn.discounts.tolist() == [0, 0, 0, 0, 0.25, 0.5]
    assert levels(drawn.next_observations)[4:] == [[0, 6, 4, 10]] * 2


def test_three_step_returns_where_lives_do_not_end(play: Any) -> None:
    """From 0: 1 + 0/2 - 1/4; from 1: 0 - 1/2 + 0/4, then the game is over."""
    drawn = replayed(play(lives_end=False), 0, 1, n_step=3)
    assert drawn.rewards.tolist() == [0.75, -0.5]
    assert drawn.discounts.tolist() == [0.125, 0]
    assert levels(drawn.next_observations)[0] == STACKS[3]
