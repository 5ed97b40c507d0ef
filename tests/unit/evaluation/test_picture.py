"""How a film's frame is put together."""

import numpy as np
import pytest

from retro_ml.evaluation.picture import Enlarger, enlarged_size, side_by_side, to_planes
from retro_ml.evaluation.terminal import averaging

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1, (210, 320)), (2, (420, 640)), (3, (630, 800)), (4, (840, 1120)), (8, (1680, 2240))],
)
def test_enlarged_size(scale: int, expected: tuple[int, int]) -> None:
    assert enlarged_size(210, 160, scale=scale) == expected


def test_four_by_three() -> None:
    height, width = enlarged_size(210, 160, scale=4)

    assert width * 3 == height * 4


def test_odd_heights_become_even() -> None:
    assert enlarged_size(211, 160, scale=3) == (634, 800)


def test_pixels_become_blocks() -> None:
    # Black, white, and a grey row below: Y 16, 235, and (16 + 219 * 128 / 255) = 126.
    screen = np.array([[[0] * 3, [255] * 3], [[128] * 3, [128] * 3]], np.uint8)

    y, cb, cr = Enlarger(2, 2, scale=2)(screen)

    assert y.shape == (4, 8)
    assert cb.shape == cr.shape == (2, 4)
    assert (y[:2, :4] == 16).all()
    assert (y[:2, 4:] == 235).all()
    assert (y[2:] == 126).all()
    assert (cb == 128).all()
    assert (cr == 128).all()


def test_colours_are_bt709() -> None:
    # Pure red: Y = 16 + 219 * 0.2126 = 63, Cr = 128 + 112 = 240 (ITU-R BT.709, limited range).
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)

    y, cb, cr = Enlarger(2, 2, scale=1)(red)

    assert np.abs(y.astype(int) - 63).max() <= 1
    assert np.abs(cr.astype(int) - 240).max() <= 1
    assert np.abs(cb.astype(int) - 102).max() <= 1


def test_a_colour_across_two_pixels_is_their_mean() -> None:
    # 5 columns for each pixel: the third block of two columns lies across both.
    screen = np.zeros((2, 2, 3), np.uint8)
    screen[:, 1] = (255, 0, 0)

    _, _, cr = Enlarger(2, 2, scale=3)(screen)

    assert cr.shape == (3, 5)
    assert cr[0, 1] == 128
    assert abs(int(cr[0, 2]) - (128 + 240) // 2) <= 1
    assert abs(int(cr[0, 3]) - 240) <= 1


def test_side_by_side() -> None:
    left = to_planes(np.zeros((4, 6, 3), np.uint8), pixel_format="yuv420p")
    right = to_planes(np.full((4, 2, 3), 255, np.uint8), pixel_format="yuv420p")

    y, cb, _ = side_by_side(left, right)

    assert y.shape == (4, 8)
    assert cb.shape == (2, 4)
    assert (y[:, :6] == 16).all()
    assert (y[:, 6:] == 235).all()
    assert side_by_side(left, None) is left


def test_averaging_covers_every_pixel_once() -> None:
    weights = averaging(7, 3)

    assert weights.sum(axis=1) == pytest.approx([1, 1, 1])
    # 7 pixels in 3 parts: each has 2 1/3, so the third pixel is shared 1 to 2.
    assert weights[0] * 7 / 3 == pytest.approx([1, 1, 1 / 3, 0, 0, 0, 0])
    assert (weights * 7 / 3).sum(axis=0) == pytest.approx(np.ones(7))


def test_averaging_enlarges_too() -> None:
    assert averaging(2, 4) == pytest.approx(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]))
