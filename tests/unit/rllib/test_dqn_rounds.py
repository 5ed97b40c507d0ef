"""DQN's rounds without a learner: how many updates, with which weights, and where errors go."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.envs.frames import PACKED_FRAME_SHAPE
from retro_ml.rllib.dqn import DQN
from retro_ml.rllib.priorities import Priorities
from retro_ml.rllib.progress import Progress
from retro_ml.rllib.replay import FrameReplay
from retro_ml.rllib.rollout import Rollout
from retro_ml.rllib.translate import translate

pytestmark = pytest.mark.unit


def endless_play(steps: int) -> Rollout:
    """One game whose frames are black and which never ends."""
    return Rollout(
        frames=np.zeros((3 + steps + 1, 1, *PACKED_FRAME_SHAPE), np.uint8),
        ages=np.minimum(np.arange(steps + 1), 3).astype(np.uint8)[:, None],
        actions=np.zeros((steps, 1), np.int64),
        scores=np.zeros((steps, 1, 4), np.float32),
        values=np.zeros((0, 1), np.float32),
        rewards=np.ones((steps, 1), np.float32),
        terminated=np.zeros((steps, 1), np.bool_),
        truncated=np.zeros((steps, 1), np.bool_),
        final_values=np.zeros((steps, 1), np.float32),
    )


class Rounds(DQN):
    """DQN that has played 60 agent steps, before a learner that notes what it is given."""

    def __init__(self, **settings: Any) -> None:
        # Not RLlib's: it would start Ray.
        experiment = ExperimentConfig(
            game_id="BreakoutNoFrameskip-v4",
            algorithm="DQN",
            total_timesteps=10_000,
            use_gpu=False,
            dqn={"batch_size": 8, "warmup_agent_steps": 100, **settings},
        )
        self.config = translate(experiment, num_cpus=1)
        self.progress = Progress()
        self.replay = FrameReplay(size=100, num_lanes=1)
        written = np.concatenate(self.replay.add([endless_play(60)]))
        self.priorities = None
        if self.config.prioritized:
            self.priorities = Priorities(self.replay, alpha=self.config.prioritized_alpha)
            self.priorities.add(written)
        self._draws = np.random.default_rng(0)
        self._owed_steps = 0
        self.errors: NDArray[np.float32] = np.zeros(0, np.float32)
        self.rows: list[NDArray[np.int64]] = []
        self.updates: list[tuple[int, int]] = []
        self.weights: list[Any] = []

    # `learner_group` is asked for the errors only.
    learner_group = property(  # type: ignore[assignment]
        lambda self: SimpleNamespace(
            foreach_learner=lambda function: [SimpleNamespace(get=lambda: self.errors)]
        )
    )

    def update_learner(self, batch: Any, **how: Any) -> None:
        columns = batch.policy_batches["default_policy"]
        self.updates.append((batch.count // how["minibatch_size"], how["minibatch_size"]))
        self.weights.append(columns.get("weights"))

    def _draw_batch(self, count: int) -> Any:
        batch, rows = super()._draw_batch(count)
        self.rows.append(rows)
        return batch, rows

    def sync_weights(self) -> None:
        pass

    def learn(self, agent_steps: int) -> None:
        self.progress.agent_steps += agent_steps
        self._learn(agent_steps)


def test_nothing_is_learned_before_the_warm_up_is_over() -> None:
    rounds = Rounds()
    for _ in range(10):
        rounds.learn(16)
    # 16, 32 ... 96 are warm-up; 112, 128, 144 and 160 have four updates each.
    assert rounds.updates == [(4, 8)] * 4


def test_an_update_for_every_so_many_agent_steps() -> None:
    """Rounds of 10 agent steps, an update for 4 of them: what is left over is not lost."""
    rounds = Rounds(warmup_agent_steps=0)
    for _ in range(4):
        rounds.learn(10)
    assert [updates for updates, _ in rounds.updates] == [2, 3, 2, 3]


def test_rounds_shorter_than_an_update() -> None:
    rounds = Rounds(warmup_agent_steps=0, agent_steps_per_update=16)
    for _ in range(8):
        rounds.learn(4)
    assert rounds.updates == [(1, 8)] * 2


@pytest.mark.parametrize(
    ("agent_steps", "beta"),
    [(1, 0.40006), (2_500, 0.55), (5_000, 0.7), (10_000, 1.0), (20_000, 1.0)],
)
def test_beta_goes_from_0_4_to_1_over_the_schedule(agent_steps: int, beta: float) -> None:
    """Priorities 1 and 16, alpha 0.5: shares 1 to 4, weights 1 and 4^-beta."""
    rounds = Rounds(prioritized=True, warmup_agent_steps=0)
    assert rounds.priorities is not None
    rounds.priorities.update(np.arange(60), np.resize([1.0, 16.0], 60).astype(np.float32))
    rounds.progress.agent_steps = agent_steps
    rounds.errors = np.zeros(4 * 8, np.float32)
    rounds._learn(16)
    expected = np.where(rounds.rows[0] % 2, 4.0**-beta, 1.0)
    assert set(rounds.rows[0] % 2) == {0, 1}
    np.testing.assert_allclose(rounds.weights[0], expected, rtol=1e-5)


def test_errors_become_the_priorities_of_the_rows_they_are_of() -> None:
    rounds = Rounds(prioritized=True, warmup_agent_steps=0, batch_size=2)
    rounds.errors = np.array([-9, 4, -1, 25, 36, 49, -64, 81], np.float32)
    rounds.learn(16)
    assert rounds.priorities is not None
    last = dict(zip(rounds.rows[0].tolist(), np.sqrt(np.abs(rounds.errors)), strict=True))
    for row in range(60):
        expected = last.get(row, 1.0)
        assert rounds.priorities.leaves[row] == pytest.approx(expected, rel=1e-5)


def test_what_was_just_played_has_the_highest_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(prioritized=True, warmup_agent_steps=9_000)
    assert rounds.priorities is not None
    rounds.priorities.update(np.arange(60), np.full(60, 9, np.float32))
    rounds.config.rounds_per_iteration = 2
    monkeypatch.setattr(rounds, "sample_rollouts", lambda: [endless_play(4)])
    rounds.training_step()
    assert rounds.updates == []
    np.testing.assert_allclose(rounds.priorities.leaves[60:68], 3.0, rtol=1e-5)
    assert not rounds.priorities.leaves[68:].any()


def test_without_priorities_there_are_no_weights() -> None:
    rounds = Rounds(warmup_agent_steps=0)
    rounds.learn(16)
    assert rounds.weights == [None]
