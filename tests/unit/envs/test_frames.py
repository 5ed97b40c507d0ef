"""Packed frames: nothing lost, stacks oldest first, zeros before a game's start."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retro_ml.envs.frames import (
    PACKED_STACK_SHAPE,
    gather_stacks,
    pack_frames,
    push_frames,
    unpack_stacks,
)

pytestmark = pytest.mark.unit


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat_frames(*levels: int) -> NDArray[np.uint8]:
    """One packed frame for each grey level."""
    return pack_frames(np.stack([np.full((84, 84), level, np.uint8) for level in levels]))


def levels_of(stack: NDArray[np.uint8]) -> list[int]:
    """The grey levels of a stack of flat frames, oldest first."""
    frames = unpack_stacks(stack)
    assert all(len(np.unique(frame)) == 1 for frame in frames)
    return [int(frame[0, 0]) for frame in frames]


def test_a_pixel_lies_in_its_tile() -> None:
    frame = np.zeros((84, 84), np.uint8)
    frame[9, 6] = 77  # row 9: tile 2, line 1 in it; column 6: tile 1, column 2 in it
    packed = pack_frames(frame)
    assert packed.shape == (21, 21, 16)
    assert packed[2, 1, 1 * 4 + 2] == 77
    assert packed.sum() == 77


def test_unpacking_four_packed_frames_gives_them_back_oldest_first() -> None:
    frames = noise(0, 5, 4, 84, 84)
    stacks = np.concatenate([pack_frames(frames[:, i]) for i in range(4)], axis=-1)
    np.testing.assert_array_equal(unpack_stacks(stacks), frames)


def test_packing_copies() -> None:
    frames = noise(1, 2, 84, 84)
    before = frames.copy()
    pack_frames(frames)[:] = 0
    np.testing.assert_array_equal(frames, before)


def test_pushing_moves_on_by_one_and_clears_at_a_start() -> None:
    older = np.stack([flat_frames(1, 2, 3, 4), flat_frames(5, 6, 7, 8)])
    stacks = np.concatenate([older[:, i] for i in range(4)], axis=-1)
    push_frames(stacks, flat_frames(10, 20), np.array([False, True]))
    assert levels_of(stacks[0]) == [2, 3, 4, 10]
    assert levels_of(stacks[1]) == [0, 0, 0, 20]


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0, [0, 0, 0, 13]), (1, [0, 0, 12, 13]), (2, [0, 11, 12, 13]), (3, [10, 11, 12, 13])],
)
def test_gathering_puts_zeros_before_the_games_start(age: int, expected: list[int]) -> None:
    frames = flat_frames(10, 11, 12, 13, 14)
    stacks = gather_stacks(frames, np.array([[0, 1, 2, 3]]), np.array([age], np.uint8))
    assert stacks.shape == (1, *PACKED_STACK_SHAPE)
    assert levels_of(stacks[0]) == expected


@given(starts=st.lists(st.booleans(), min_size=1, max_size=12))
def test_gathered_stacks_equal_pushed_ones(starts: list[bool]) -> None:
    """Frame t has level t + 1; a game starts where `starts` says, and at the beginning."""
    starts[0] = True
    frames = flat_frames(*range(1, len(starts) + 1))
    stack = np.zeros((1, *PACKED_STACK_SHAPE), np.uint8)
    age = 0
    for t, start in enumerate(starts):
        push_frames(stack, frames[t : t + 1], np.array([start]))
        age = 0 if start else min(age + 1, 3)
        rows = np.maximum(np.arange(t - 3, t + 1), 0)[None]
        gathered = gather_stacks(frames, rows, np.array([age], np.uint8))
        np.testing.assert_array_equal(gathered, stack)
