"""Packed frames: how an 84x84 greyscale frame lies in memory, and how four of them make a stack.

NatureCNN's first layer (8x8, stride 4) reads the same 4x4 tiles wherever it stands, so it equals a
2x2, stride 1 convolution over an image whose "pixels" are those tiles (space-to-depth). Frames are
packed into tiles once, when the emulator hands them over: `[84, 84]` becomes `[21, 21, 16]`, and a
stack of four is their concatenation along the last axis, `[21, 21, 64]`, oldest first. Nothing is
lost; `unpack_stacks` gives the usual `[4, 84, 84]` back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME_SIDE = 84
STACK_SIZE = 4
TILE = 4
GRID = FRAME_SIDE // TILE
FRAME_CHANNELS = TILE * TILE
STACK_CHANNELS = STACK_SIZE * FRAME_CHANNELS
PACKED_FRAME_SHAPE = (GRID, GRID, FRAME_CHANNELS)
PACKED_STACK_SHAPE = (GRID, GRID, STACK_CHANNELS)
TILE_ITEM = np.complex128
"""16 bytes that numpy copies without looking at them."""
OBSERVATION_SHAPE = (STACK_SIZE, FRAME_SIDE, FRAME_SIDE)


def pack_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[..., 84, 84] uint8` -> `[..., 21, 21, 16] uint8`, a copy."""
    lead = frames.shape[:-2]
    tiles = frames.reshape(*lead, GRID, TILE, GRID, TILE)
    return np.ascontiguousarray(np.swapaxes(tiles, -3, -2)).reshape(*lead, *PACKED_FRAME_SHAPE)


def unpack_stacks(stacks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[..., 21, 21, 64] uint8` -> `[..., 4, 84, 84] uint8`, oldest frame first, a copy."""
    lead = stacks.shape[:-3]
    tiles = stacks.reshape(*lead, GRID, GRID, STACK_SIZE, TILE, TILE)
    tiles = np.moveaxis(tiles, -3, len(lead))
    return np.swapaxes(tiles, -3, -2).reshape(*lead, *OBSERVATION_SHAPE)


def push_frames(
    stacks: NDArray[np.uint8], newest: NDArray[np.uint8], started: NDArray[np.bool_]
) -> None:
    """Moves each game's stack on by one frame, in place.

    Args:
        stacks: `[N, 21, 21, 64]`, those of the step before; overwritten.
        newest: `[N, 21, 21, 16]`, packed.
        started: `[N]`, True where `newest` is the first frame of a new game: the three older frames
            of its stack are zeros (Gymnasium's FrameStackObservation with zero padding).
    """
    stacks[..., :-FRAME_CHANNELS] = stacks[..., FRAME_CHANNELS:]
    stacks[..., -FRAME_CHANNELS:] = newest
    if started.any():
        stacks[started, ..., :-FRAME_CHANNELS] = 0


def gather_stacks(
    frames: NDArray[np.uint8], newest: NDArray[np.intp], ages: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Rebuilds stacks from frames that were stored once.

    Args:
        frames: `[R, 21, 21, 16]`, rows in the order of play.
        newest: `[B, 4]` rows of each stack's frames, oldest first; rows that `ages` rules out may
            hold any valid index.
        ages: `[B]` agent steps since the game began, 3 standing for "3 or more".

    Returns:
        `[B, 21, 21, 64] uint8`, zeros where a frame would lie before its game's start.
    """
    batch = len(newest)
    # The 16 channels of a tile are moved as one item, three times as fast as one by one.
    stacks = np.empty((batch, GRID * GRID, STACK_SIZE), TILE_ITEM)
    flat = frames.reshape(len(frames), GRID * GRID * FRAME_CHANNELS).view(TILE_ITEM)
    for position in range(STACK_SIZE):
        stacks[:, :, position] = flat[newest[:, position]]
        missing = ages < STACK_SIZE - 1 - position
        if missing.any():
            stacks[missing, :, position] = 0
    return stacks.view(np.uint8).reshape(batch, *PACKED_STACK_SHAPE)
