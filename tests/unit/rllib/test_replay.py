"""Replay: every transition that comes out is one that was played, stacks and ends included.

Games are made up: each frame bears a number of its own, so a stack tells which frames it is of.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retro_ml.core.artifacts.checkpoint_files import describe_file
from retro_ml.envs.frames import PACKED_FRAME_SHAPE
from retro_ml.rllib.priorities import Priorities
from retro_ml.rllib.replay import CUT, FrameReplay
from retro_ml.rllib.replay_segments import ReplaySegments
from retro_ml.rllib.rollout import Rollout

pytestmark = pytest.mark.unit

Stack = tuple[int, int, int, int]
GAMMA = 0.5
PLAY_ON, GAME_OVER, LIFE_LOST, TIME_LIMIT = range(4)


def frame(number: int) -> NDArray[np.uint8]:
    made = np.zeros(PACKED_FRAME_SHAPE, np.uint8)
    made[0, 0, :2] = divmod(number, 256)
    return made


def numbers(stack: NDArray[np.uint8]) -> Stack:
    """The numbers of a stack's four frames, oldest first; 0 where there is none."""
    a, b, c, d = (256 * int(stack[0, 0, i]) + int(stack[0, 0, i + 1]) for i in (0, 16, 32, 48))
    return a, b, c, d


class MadeUpGames:
    """N games side by side, and a record of all transitions by their newest frame's number."""

    def __init__(self, games: int, *, seed: int = 0, first_number: int = 1) -> None:
        self.games = games
        self.rng = np.random.default_rng(seed)
        self._next_number = first_number
        self.stacks: list[Stack] = [(0, 0, 0, self._number()) for _ in range(games)]
        self.ages = [0] * games
        self.played: dict[int, dict[str, Any]] = {}

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    def newest_rows(self) -> list[int]:
        """The newest frames of the last steps' observations, one for each game in progress."""
        return [stack[2] for stack in self.stacks]

    def play(self, steps: int, ends: dict[tuple[int, int], int] | None = None) -> Rollout:
        """T steps; `ends` by (t, game), at random where it is None."""
        games = self.games
        rollout = Rollout(
            frames=np.zeros((3 + steps + 1, games, *PACKED_FRAME_SHAPE), np.uint8),
            ages=np.zeros((steps + 1, games), np.uint8),
            actions=self.rng.integers(0, 4, (steps, games)),
            scores=np.zeros((steps, games, 4), np.float32),
            values=np.zeros((0, games), np.float32),
            rewards=self.rng.integers(-1, 2, (steps, games)).astype(np.float32),
            terminated=np.zeros((steps, games), np.bool_),
            truncated=np.zeros((steps, games), np.bool_),
            final_values=np.zeros((steps, games), np.float32),
        )
        for game in range(games):
            for row in range(4):
                rollout.frames[row, game] = frame(self.stacks[game][row])
            rollout.ages[0, game] = self.ages[game]
            for t in range(steps):
                if ends is None:
                    end = int(self.rng.choice(4, p=[0.85, 0.05, 0.05, 0.05]))
                else:
                    end = ends.get((t, game), PLAY_ON)
                self._step(rollout, t, game, end)
        return rollout

    def _step(self, rollout: Rollout, t: int, game: int, end: int) -> None:
        stack = self.stacks[game]
        following = (*stack[1:], self._number())
        self.played[stack[3]] = {
            "stack": stack,
            "action": rollout.actions[t, game],
            "reward": rollout.rewards[t, game],
            "over": end in (GAME_OVER, LIFE_LOST),
            "following": following,
            "cut": end == TIME_LIMIT,
        }
        rollout.terminated[t, game] = end in (GAME_OVER, LIFE_LOST)
        rollout.truncated[t, game] = end == TIME_LIMIT
        if end == TIME_LIMIT:
            rollout.final_frames[t, game] = frame(following[3])
        if end in (GAME_OVER, TIME_LIMIT):
            self.stacks[game], self.ages[game] = (0, 0, 0, self._number()), 0
        else:
            self.stacks[game], self.ages[game] = following, min(self.ages[game] + 1, 3)
        rollout.frames[3 + t + 1, game] = frame(self.stacks[game][3])
        rollout.ages[t + 1, game] = self.ages[game]


def assert_as_played(
    replay: FrameReplay,
    rows: NDArray[np.int64],
    played: dict[int, dict[str, Any]],
    n_step: int,
    gaps: Sequence[int] = (),
) -> None:
    """Compares with the record; `gaps` are the newest frames of rows whose successor was lost."""
    drawn = replay.gather(rows, n_step=n_step, gamma=GAMMA)
    for i in range(len(rows)):
        step = played[numbers(drawn.observations[i])[3]]
        assert numbers(drawn.observations[i]) == step["stack"]
        assert drawn.actions[i] == step["action"]
        assert step["stack"][3] not in gaps
        reward, discount = 0.0, 1.0
        for _ in range(n_step):
            if step["stack"][3] in gaps:
                break
            reward += discount * float(step["reward"])
            discount *= GAMMA
            following = step["following"]
            if step["over"] or step["cut"]:
                discount = 0.0 if step["over"] else discount
                break
            step = played.get(following[3], {"stack": following, "reward": np.nan})
        assert drawn.rewards[i] == pytest.approx(reward)
        assert drawn.discounts[i] == pytest.approx(discount)
        if discount:
            assert numbers(drawn.next_observations[i]) == following


def every_row(replay: FrameReplay, n_step: int) -> NDArray[np.int64]:
    """All rows that `draw` gives, by drawing often enough."""
    count = replay.count(n_step)
    drawn = replay.draw(40 * count, n_step, np.random.default_rng(0))
    return np.unique(drawn)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("size", [60, 1_000])
def test_only_what_was_played_comes_out(size: int, n_step: int) -> None:
    """Four lanes; with 60 rows the rings go round more than five times."""
    games, replay = MadeUpGames(4), FrameReplay(size=size, num_lanes=4)
    for _ in range(22):
        replay.add([games.play(4)])
        if replay.heads.min() > n_step + 1:
            assert_as_played(replay, every_row(replay, n_step), games.played, n_step)


def test_at_least_size_transitions_are_kept() -> None:
    games, replay = MadeUpGames(3), FrameReplay(size=60, num_lanes=3)
    for _ in range(30):
        replay.add([games.play(5, {})])
    assert len(every_row(replay, 1)) >= 60
    newest = {stack[2] for stack in games.stacks}  # the last whole transition of each lane
    out = replay.gather(every_row(replay, 1), n_step=1, gamma=GAMMA)
    assert newest <= {numbers(stack)[3] for stack in out.next_observations} | newest
    assert {numbers(stack)[2] for stack in out.next_observations} >= {s[1] for s in games.stacks}


def test_the_last_row_has_no_successor_yet() -> None:
    """Five steps: four transitions that can be drawn, two if they are to be over three steps."""
    games, replay = MadeUpGames(1), FrameReplay(size=50, num_lanes=1)
    replay.add([games.play(5, {})])
    assert replay.count(1) == 4
    assert every_row(replay, 1).tolist() == [0, 1, 2, 3]
    assert every_row(replay, 3).tolist() == [0, 1]


def test_the_row_of_a_cut_games_last_frame_is_never_drawn() -> None:
    games, replay = MadeUpGames(1), FrameReplay(size=50, num_lanes=1)
    written = replay.add([games.play(6, {(2, 0): TIME_LIMIT})])
    assert written[0].tolist() == [0, 1, 2, 3, 4, 5, 6]  # row 3 holds the last frame
    assert every_row(replay, 1).tolist() == [0, 1, 2, 4, 5]
    assert_as_played(replay, every_row(replay, 1), games.played, 1)


def test_rows_are_drawn_equally_often() -> None:
    """Two lanes of 9 and 4 drawable rows, one of which is no transition."""
    games, replay = MadeUpGames(2), FrameReplay(size=60, num_lanes=2)
    replay.add([games.play(9, {(2, 0): TIME_LIMIT})])
    rows = replay.draw(16_000, 1, np.random.default_rng(1))
    _, counts = np.unique(rows, return_counts=True)
    assert len(counts) == 16
    assert np.abs(counts - 1_000).max() < 4.5 * np.sqrt(1_000)


def test_an_env_runner_that_comes_back_with_new_games_is_not_joined_to_the_old() -> None:
    replay = FrameReplay(size=100, num_lanes=2)
    lost, new = MadeUpGames(2), MadeUpGames(2, first_number=5_000)
    replay.add([lost.play(6, {})])
    gaps = lost.newest_rows()
    replay.add([new.play(6, {})])
    for n_step in (1, 3):
        rows = every_row(replay, n_step)
        assert_as_played(replay, rows, lost.played | new.played, n_step, gaps)
    assert len(every_row(replay, 1)) == 2 * (5 + 5)


def test_rollouts_of_another_env_runner_in_a_lane_are_not_joined_to_it() -> None:
    """While one of two env runners is down, RLlib asks the other one twice: its second rollout
    stands where the lost one's would, in the middle of its games."""
    replay = FrameReplay(size=200, num_lanes=4)
    first, second = MadeUpGames(2), MadeUpGames(2, first_number=5_000)
    replay.add([first.play(6, {}), second.play(6, {})])
    gaps = second.newest_rows()
    middle = first.play(6, {})
    gaps += first.newest_rows()  # goes on in the other lanes
    replay.add([middle, first.play(6, {})])
    gaps += first.newest_rows()
    replay.add([first.play(6, {}), second.play(6, {})])
    for n_step in (1, 3):
        rows = every_row(replay, n_step)
        assert_as_played(replay, rows, first.played | second.played, n_step, gaps)
    # 12 times six steps of a game: 5 transitions each, and one more where the first env runner's
    # second rollout goes on in its own two lanes.
    assert len(every_row(replay, 1)) == 12 * 5 + 2


def test_a_rollout_left_out_leaves_a_gap_that_nothing_reaches_across() -> None:
    games, replay = MadeUpGames(2), FrameReplay(size=200, num_lanes=2)
    replay.add([games.play(6, {})])
    gaps = games.newest_rows()
    games.play(6, {})  # sampled above the batch and dropped
    replay.add([games.play(6, {})])
    for n_step in (1, 3):
        assert_as_played(replay, every_row(replay, n_step), games.played, n_step, gaps)


def test_an_env_runner_in_the_middle_of_its_games_may_be_the_first_in_a_lane() -> None:
    games, replay = MadeUpGames(1), FrameReplay(size=50, num_lanes=1)
    games.play(6, {})
    replay.add([games.play(6, {})])
    assert len(every_row(replay, 1)) == 5
    assert_as_played(replay, every_row(replay, 1), games.played, 1)


def test_rollouts_that_follow_one_another_are_joined() -> None:
    """A lost life between two of them does not matter, nor does a game that has just begun."""
    games, replay = MadeUpGames(1), FrameReplay(size=50, num_lanes=1)
    ends = [
        {},
        {(2, 0): LIFE_LOST},
        {(2, 0): GAME_OVER},
        {(1, 0): GAME_OVER},
        {(0, 0): LIFE_LOST},
        {},
    ]
    for end in ends:
        replay.add([games.play(3, end)])
    assert replay.heads.tolist() == [18]
    assert len(every_row(replay, 1)) == 17


# Segments on disk


def assert_same(ours: FrameReplay, theirs: FrameReplay) -> None:
    assert ours.heads.tolist() == theirs.heads.tolist()
    for lane, head in enumerate(ours.heads.tolist()):
        start = max(0, head - ours.lane_size)
        for name, column in ours.get_rows(lane, start, head).items():
            np.testing.assert_array_equal(
                theirs.get_rows(lane, start, head)[name], column, err_msg=f"{name}, lane {lane}"
            )


@pytest.mark.parametrize("steps", [3, 11, 40])
def test_segments_bring_the_replay_back(tmp_path: Path, steps: int) -> None:
    """Rings of 19 rows; 40 steps between two checkpoints are more than one goes round."""
    games, replay = MadeUpGames(4), FrameReplay(size=60, num_lanes=4)
    segments = ReplaySegments()
    for number in range(6):
        replay.add([games.play(steps)])
        checkpoint = tmp_path / f"step-{number}"
        state, files = segments.save(replay, checkpoint)
        assert all(file.is_file() for file in files)
        for part in state["segments"]:
            rows = np.array(part["stops"]) - part["starts"]
            assert rows.max() <= replay.lane_size  # what was overwritten is not saved
        for unneeded in set((tmp_path / "replay").iterdir()) - set(files):
            unneeded.unlink()  # as pruning does
        again = FrameReplay(size=60, num_lanes=4)
        restored = ReplaySegments()
        restored.load(again, state, checkpoint)
        assert_same(replay, again)
        segments, replay = (restored, again) if number % 2 else (segments, replay)
    assert len(every_row(replay, 1)) > 40
    assert_as_played(replay, every_row(replay, 1), games.played, 1)


def test_segments_hold_only_what_is_new(tmp_path: Path) -> None:
    games, replay, segments = MadeUpGames(2), FrameReplay(size=1_000, num_lanes=2), ReplaySegments()
    replay.add([games.play(10, {})])
    _, first = segments.save(replay, tmp_path / "step-1")
    (one,) = first
    before = one.read_bytes()
    _, same = segments.save(replay, tmp_path / "step-2")
    assert same == first
    replay.add([games.play(10, {})])
    _, both = segments.save(replay, tmp_path / "step-3")
    assert first.items() <= both.items()
    assert len(both) == 2
    assert one.read_bytes() == before


def test_a_row_cut_after_it_was_saved_comes_back_cut(tmp_path: Path) -> None:
    """An env runner is lost after the first checkpoint: its last row, on disk already, changes."""
    replay, segments = FrameReplay(size=100, num_lanes=2), ReplaySegments()
    lost, new = MadeUpGames(2), MadeUpGames(2, first_number=5_000)
    replay.add([lost.play(6, {})])
    segments.save(replay, tmp_path / "step-1")
    replay.add([new.play(6, {})])
    state, _ = segments.save(replay, tmp_path / "step-2")
    again = FrameReplay(size=100, num_lanes=2)
    ReplaySegments().load(again, state, tmp_path / "step-2")
    assert_same(replay, again)
    rows = every_row(again, 1)
    assert_as_played(again, rows, lost.played | new.played, 1, lost.newest_rows())


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_segment_that_was_damaged_on_disk_is_written_anew(tmp_path: Path, damage: str) -> None:
    """Its rows are in memory still; what checkpoints share must not be lost to all of them."""
    games, replay, segments = MadeUpGames(2), FrameReplay(size=60, num_lanes=2), ReplaySegments()
    for number in range(3):
        replay.add([games.play(10, {})])
        segments.save(replay, tmp_path / f"step-{number}")
    victim = sorted((tmp_path / "replay").iterdir())[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content if damage == "flip" else content[:-1])
    if damage == "remove":
        victim.unlink()

    replay.add([games.play(10, {})])
    state, files = segments.save(replay, tmp_path / "step-3")
    assert {path: describe_file(path) for path in files} == files
    assert victim not in files
    again, restored = FrameReplay(size=60, num_lanes=2), ReplaySegments()
    restored.load(again, state, tmp_path / "step-3")
    assert_same(replay, again)
    _, same = restored.save(again, tmp_path / "step-4")
    assert same == files


# Priorities


def test_rows_are_drawn_in_proportion_to_their_priority() -> None:
    """Errors 0, 1, 4 and 9 with alpha 0.5: shares 0, 1, 2 and 3 sixths."""
    games, replay = MadeUpGames(1), FrameReplay(size=20, num_lanes=1)
    priorities = Priorities(replay, alpha=0.5)
    priorities.add(np.concatenate(replay.add([games.play(5, {})])))
    priorities.update(np.arange(4), np.array([0, -1, 4, -9], np.float32))
    rows = priorities.draw(12_000, 1, np.random.default_rng(0))
    counts = np.bincount(rows, minlength=5)
    assert counts[4] == 0  # no successor yet
    np.testing.assert_allclose(counts[:4] / 12_000, [0, 1 / 6, 2 / 6, 3 / 6], atol=0.02)


def test_new_rows_have_the_highest_priority_and_cut_ones_none() -> None:
    games, replay = MadeUpGames(1), FrameReplay(size=20, num_lanes=1)
    priorities = Priorities(replay, alpha=1.0)
    priorities.add(np.concatenate(replay.add([games.play(3, {})])))
    assert priorities.leaves[:3].tolist() == [1, 1, 1]
    priorities.update(np.array([0]), np.array([7.0], np.float32))
    rows = np.concatenate(replay.add([games.play(2, {(0, 0): TIME_LIMIT})]))
    priorities.add(rows)
    assert replay.kinds[0, 4] == CUT
    np.testing.assert_allclose(priorities.leaves[:6], [7, 1, 1, 7, 0, 7], rtol=1e-5)


def test_importance_weights() -> None:
    """Priorities 1 and 4 of 10 in all, 4 rows: (4 x 0.1)^-1 = 2.5, (4 x 0.4)^-1 = 0.625."""
    games, replay = MadeUpGames(1), FrameReplay(size=20, num_lanes=1)
    priorities = Priorities(replay, alpha=1.0)
    priorities.add(np.concatenate(replay.add([games.play(4, {})])))
    priorities.update(np.arange(4), np.array([1, 2, 3, 4], np.float32))
    rows = np.array([0, 3])
    np.testing.assert_allclose(priorities.weights(rows, 1.0), [1.0, 0.25], rtol=1e-4)
    np.testing.assert_allclose(priorities.weights(rows, 0.5), [1.0, 0.5], rtol=1e-4)
    np.testing.assert_allclose(priorities.weights(rows, 0.0), [1.0, 1.0])


def test_prioritised_rows_are_what_was_played_when_the_ring_goes_round() -> None:
    games, replay = MadeUpGames(3), FrameReplay(size=45, num_lanes=3)
    priorities = Priorities(replay, alpha=0.5)
    rng = np.random.default_rng(0)
    for _ in range(12):
        priorities.add(np.concatenate(replay.add([games.play(6)])))
        rows = priorities.draw(32, 3, rng)
        assert_as_played(replay, rows, games.played, 3)
        priorities.update(rows, rng.normal(size=32).astype(np.float32))


def test_priorities_come_back() -> None:
    games, replay = MadeUpGames(2), FrameReplay(size=30, num_lanes=2)
    priorities = Priorities(replay, alpha=0.5)
    priorities.add(np.concatenate(replay.add([games.play(8)])))
    priorities.update(np.array([1, 2]), np.array([3.0, 0.1], np.float32))
    again = Priorities(replay, alpha=0.5)
    again.set_state(priorities.get_state())
    drawn = [p.draw(50, 1, np.random.default_rng(5)).tolist() for p in (priorities, again)]
    assert drawn[0] == drawn[1]
