"""How a film's frame is put together: the screen enlarged, and the strip beside it.

The console drew 160 pixels across a television that was 4:3, so its pixels are wide. Enlarged by
whole numbers they stay sharp: 4 times in height and 7 in width make 160x210 into 1120x840, which is
4:3 exactly; other sizes come as near as whole numbers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.evaluation.video_file import Planes

PIXEL_ASPECT = 1.75
"""Width of a pixel by its height, for 160x210 pixels in 4:3. (A television's own was 1.71, with
lines above and below that ALE cuts off.)"""


def enlarged_size(height: int, width: int, *, scale: int) -> tuple[int, int]:
    """Height and width of a screen that is enlarged `scale` times in height."""
    # H.264 halves its colours' resolution: only even numbers of pixels.
    return -(-height * scale // 2) * 2, width * widening(scale)


def widening(scale: int) -> int:
    """How many times the width is enlarged where the height is `scale` times."""
    return int(scale * PIXEL_ASPECT + 0.5)


class Enlarger:
    """Screens `[H, W, 3] uint8` RGB -> planes, each pixel a block of one colour.

    Args:
        height, width: of the screens.
        scale: how many times the height is enlarged.
    """

    def __init__(self, height: int, width: int, *, scale: int) -> None:
        self.height, self.width = enlarged_size(height, width, scale=scale)
        self._luma = (
            np.minimum(np.arange(self.height) // scale, height - 1),
            np.arange(self.width) // widening(scale),
        )
        # Where a block of colour lies across two pixels it has the mean of both.
        rows, columns = self._luma
        self._chroma = (rows[::2], rows[1::2]), (columns[::2], columns[1::2])

    def __call__(self, screen: NDArray[np.uint8]) -> Planes:
        """One frame."""
        y, cb, cr = to_planes(screen, pixel_format="yuv444p")
        rows, columns = self._luma
        return y[:, columns][rows], self._enlarge_chroma(cb), self._enlarge_chroma(cr)

    def _enlarge_chroma(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        (upper, lower), (left, right) = self._chroma
        across = plane[:, left].astype(np.uint16) + plane[:, right]
        return np.asarray(((across[upper] + across[lower] + 2) >> 2).astype(np.uint8))


def to_planes(picture: NDArray[np.uint8], *, pixel_format: str) -> Planes:
    """`[H, W, 3] uint8` RGB -> BT.709 planes of FFmpeg's `pixel_format`, yuv444p or yuv420p."""
    import av

    frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(format=pixel_format, dst_colorspace="ITU709")
    planes = []
    for plane in frame.planes:
        values = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        planes.append(values[:, : plane.width])
    return planes[0], planes[1], planes[2]


def side_by_side(left: Planes, right: Planes | None) -> Planes:
    """Both in one frame; they have the same height."""
    if right is None:
        return left
    y, cb, cr = (np.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    return y, cb, cr
