"""The EnvRunner without Ray, its network replaced by a stub that gives chosen scores."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.envs.atari import FinishedGame
from retro_ml.envs.frames import unpack_stacks
from retro_ml.rllib.env_runner import AtariEnvRunner
from retro_ml.rllib.rollout import Rollout
from retro_ml.rllib.translate import translate

pytestmark = pytest.mark.integration

GAMES = 2
BuildRunner = Callable[..., AtariEnvRunner]


class StubModule:
    """Always the same scores; a state's value is the mean of its newest frame."""

    def __init__(self, scores: list[float], *, has_values: bool) -> None:
        self.scores = torch.tensor(scores)
        self.has_values = has_values

    def build_actor(self) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        def act(packed: Tensor) -> tuple[Tensor, Tensor | None]:
            values = packed[..., 48:].float().mean(dim=(1, 2, 3)) if self.has_values else None
            return self.scores.expand(len(packed), -1), values

        return act


@pytest.fixture
def build_runner() -> Iterator[BuildRunner]:
    with ExitStack() as stack:

        def build(
            algorithm: str,
            scores: list[float],
            *,
            game: str = "BreakoutNoFrameskip-v4",
            num_cpus: int = 1,
            **values: Any,
        ) -> AtariEnvRunner:
            config = ExperimentConfig(
                game_id=game,
                algorithm=algorithm,
                total_timesteps=10_000,
                seed=3,
                use_gpu=False,
                **{"resources": {"games_per_env_runner": GAMES}, **values},
            )
            runner = AtariEnvRunner(config=translate(config, num_cpus=num_cpus))
            stack.enter_context(closing(runner.env))
            runner.module = StubModule(scores, has_values=algorithm != "DQN")
            return runner

        yield build


UNIFORM = [0.0, 0.0, 0.0, 0.0]


def test_epsilon_falls_linearly_with_the_runs_agent_steps(build_runner: BuildRunner) -> None:
    """1 to 0.01 over the first 1,000 of 10,000; each step of the two games counts as two."""
    runner = build_runner("DQN", [])
    assert runner.epsilons(251)[[0, 250]] == pytest.approx([1.0, 0.505])
    runner.num_env_steps_sampled_lifetime = 500
    assert runner.epsilons(251)[[0, 250]] == pytest.approx([0.505, 0.01])
    runner.num_env_steps_sampled_lifetime = 9_000
    assert runner.epsilons(1) == pytest.approx([0.01])


def test_epsilon_may_stand_still_before_it_falls(build_runner: BuildRunner) -> None:
    dqn = {"epsilon_hold_agent_steps": 500, "epsilon_agent_steps": 1_000}
    epsilons = build_runner("DQN", [], dqn=dqn).epsilons(1_001)
    assert epsilons[[0, 125, 250]] == pytest.approx([1.0, 1.0, 1.0])
    assert epsilons[[500, 750, 1_000]] == pytest.approx([0.505, 0.01, 0.01])


@pytest.mark.parametrize(
    ("algorithm", "how", "low", "high"),
    [
        # The softmax gives action 1 three quarters, drawn anew by every game at every step ...
        ("PPO", {"explore": True}, 0.65, 0.85),
        # ... epsilon is 1 in the beginning, and falls by a tenth in these 100 steps of two games.
        ("DQN", {"explore": True}, 0.4, 0.65),
        ("PPO", {"explore": False}, 1.0, 1.0),
        ("PPO", {"explore": True, "random_actions": True}, 0.35, 0.65),
    ],
)
def test_how_actions_are_chosen(
    build_runner: BuildRunner, algorithm: str, how: dict[str, bool], low: float, high: float
) -> None:
    """The network gives two of Breakout's four actions a quarter and three, the others nothing."""
    scores = [float(np.log(0.25)), float(np.log(0.75)), -99.0, -99.0]
    runner = build_runner(algorithm, scores)
    (rollout,) = runner.sample(num_timesteps=100 * GAMES, **how)
    chosen = rollout.actions[rollout.actions < 2]
    for game in range(GAMES):
        share = (rollout.actions[:, game] == 1).sum() / max((rollout.actions[:, game] < 2).sum(), 1)
        assert low <= share <= high
    everything = how.get("random_actions", False) or algorithm == "DQN"
    assert (len(chosen) < rollout.actions.size) == everything


@pytest.mark.parametrize("algorithm", ["A2C", "DQN"])
def test_groups_in_threads_play_what_one_group_plays(
    build_runner: BuildRunner, algorithm: str
) -> None:
    """Draws belong to steps and games, whoever comes first; one game beside two."""
    how: dict[str, Any] = {
        "environment": {"max_frames": 60},
        "resources": {"games_per_env_runner": 3},
        "dqn": {"epsilon_initial": 0.5},
    }
    runners = [build_runner(algorithm, UNIFORM, num_cpus=cpus, **how) for cpus in (1, 2)]
    assert [runner.env.parts for runner in runners] == [[slice(0, 3)], [slice(0, 1), slice(1, 3)]]
    arrays = [field.name for field in fields(Rollout)][:9]
    for _ in range(2):
        one, two = (runner.sample(num_timesteps=60, explore=True)[0] for runner in runners)
        for name in arrays:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert one.finished == two.finished != []
        assert one.final_frames.keys() == two.final_frames.keys()
        for key, frame in one.final_frames.items():
            np.testing.assert_array_equal(frame, two.final_frames[key])


def test_a_sample_counts_its_steps(build_runner: BuildRunner) -> None:
    runner = build_runner("DQN", UNIFORM)
    (rollout,) = runner.sample(num_timesteps=8, explore=True)
    assert (len(rollout), rollout.env_steps(), rollout.actions.shape) == (8, 8, (4, GAMES))
    assert runner.num_env_steps_sampled_lifetime == 8
    assert runner.epsilons(1) == pytest.approx([1 - 0.99 * 8 / 1_000])
    assert rollout.values.shape == (0, GAMES)


def test_rollouts_chain(build_runner: BuildRunner) -> None:
    """What one ends with, the next one begins with: frames, ages, values; across game ends too."""
    runner = build_runner("PPO", UNIFORM, environment={"max_frames": 20})
    before = runner.sample(num_timesteps=7 * GAMES, explore=True)[0]
    for _ in range(6):
        after = runner.sample(num_timesteps=7 * GAMES, explore=True)[0]
        np.testing.assert_array_equal(before.ages[-1], after.ages[0])
        np.testing.assert_array_equal(before.values[-1], after.values[0])
        np.testing.assert_array_equal(before.frames[3 + 7], after.frames[3])
        for game in range(GAMES):
            age = int(after.ages[0, game])
            np.testing.assert_array_equal(
                before.frames[3 + 7 - age :, game], after.frames[3 - age : 4, game]
            )
        before = after


def test_observations_are_those_that_were_acted_on(build_runner: BuildRunner) -> None:
    """The stub's value is the mean of the newest frame; older ones come before it."""
    runner = build_runner("PPO", UNIFORM, environment={"max_frames": 24})
    runner.sample(num_timesteps=2 * GAMES, explore=True)
    rollout = runner.sample(num_timesteps=20 * GAMES, explore=True)[0]
    stacks = unpack_stacks(rollout.observations()).reshape(20, GAMES, 4, 84, 84)
    np.testing.assert_allclose(stacks[:, :, 3].mean(axis=(2, 3)), rollout.values[:-1], rtol=1e-4)
    for t in range(3, 20):
        for game in range(GAMES):
            age = int(rollout.ages[t, game])
            for back in range(1, 4):
                older = stacks[t, game, 3 - back]
                if back > age:
                    assert not older.any()
                else:
                    np.testing.assert_array_equal(older, stacks[t - back, game, 3])
    assert set(np.unique(rollout.ages)) == {0, 1, 2, 3}


def test_a_truncated_games_last_observation_is_valued(build_runner: BuildRunner) -> None:
    """Games of five agent steps: each fifth one is cut, none is terminated."""
    runner = build_runner("PPO", UNIFORM, environment={"max_frames": 20})
    rollout = runner.sample(num_timesteps=12 * GAMES, explore=True)[0]
    cut = np.zeros((12, GAMES), np.bool_)
    cut[[4, 9]] = True
    np.testing.assert_array_equal(rollout.truncated, cut)
    assert not rollout.terminated.any()
    assert rollout.ages[:, 0].tolist() == [0, 1, 2, 3, 3, 0, 1, 2, 3, 3, 0, 1, 2]
    assert sorted(rollout.final_frames) == [(t, game) for t in (4, 9) for game in range(GAMES)]
    for (t, game), last in rollout.final_frames.items():
        assert rollout.final_values[t, game] == pytest.approx(float(last.mean()), rel=1e-4)
    assert not rollout.final_values[~cut].any()


@pytest.mark.parametrize("lives_end", [True, False])
def test_lost_lives_terminate_where_the_protocol_says_so(
    build_runner: BuildRunner, lives_end: bool
) -> None:
    """An agent that always takes action 0 loses its five lives in Breakout."""
    runner = build_runner("PPO", [9.0, 0, 0, 0], environment={"terminal_on_life_loss": lives_end})
    ended, finished, started = np.zeros(GAMES), [], np.zeros(GAMES)
    while len(finished) < GAMES:
        rollout = runner.sample(num_timesteps=10 * GAMES, explore=False)[0]
        ended += rollout.terminated.sum(axis=0)
        started += (rollout.ages[1:] == 0).sum(axis=0)
        finished += rollout.finished
    assert started.tolist() == [1, 1]  # a lost life begins no new stack
    expected = 5 if lives_end else 1
    assert (ended >= expected).all()
    assert (ended < expected + (2 if lives_end else 1)).all()


@pytest.mark.parametrize("clip", [True, False])
def test_rewards_are_clipped_for_learning_and_scores_are_not(
    build_runner: BuildRunner, clip: bool
) -> None:
    """Ms. Pac-Man: 10 a dot. Games of 600 frames, most of them after its tune."""
    runner = build_runner(
        "PPO",
        [0.0] * 9,
        game="MsPacmanNoFrameskip-v4",
        environment={"clip_rewards": clip, "max_frames": 600, "noop_max": 0},
    )
    rollout = runner.sample(num_timesteps=150 * GAMES, explore=True)[0]
    games: list[FinishedGame] = [game for _, game in rollout.finished]
    assert [played for played, _ in rollout.finished] == [300, 300]
    score = sum(game.score for game in games)
    assert score >= 40
    if clip:
        assert set(np.unique(rollout.rewards)) == {0.0, 1.0}
    else:
        assert rollout.rewards.sum() == score
    assert rollout.frames_played == 600 * GAMES


def test_goes_on_identically_from_a_state(build_runner: BuildRunner) -> None:
    how: dict[str, Any] = {"environment": {"sticky_actions": 0.25, "max_frames": 60}}
    runner, again = (build_runner("PPO", UNIFORM, **how) for _ in range(2))
    runner.sample(num_timesteps=20 * GAMES, explore=True)
    state = runner.get_games_state()
    again.set_games_state(state)
    ours, theirs = (r.sample(num_timesteps=20 * GAMES, explore=True)[0] for r in (runner, again))
    for name in ("frames", "ages", "actions", "rewards", "truncated", "final_values", "values"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert ours.finished == theirs.finished
    assert again.num_env_steps_sampled_lifetime == 40 * GAMES


def test_episodes_are_no_unit_of_sampling(build_runner: BuildRunner) -> None:
    with pytest.raises(ValueError, match="give num_timesteps"):
        build_runner("PPO", UNIFORM).sample(num_episodes=1, explore=True)
