"""An agent at play in the terminal: two pixels a character, in the game's own colours.

Every character is an upper half block whose ink is one pixel and whose ground is the one below, in
24-bit colour. A terminal does not keep up with 60 pictures a second, so each shows the brighter of
two frames, as the agent sees them: what the console draws in every other frame only does not
flicker away.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

_LEAST_COLUMNS, _LEAST_LINES = 40, 17
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # another screen, no cursor, empty
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


class NoTerminal(RuntimeError):
    """It cannot be drawn there; the message says why."""


class TerminalScreen:
    """Pictures on a terminal, which is left as it was; only what has changed is written.

    Args:
        stream: the terminal.
        status_lines: lines of text below the picture.

    Raises:
        NoTerminal: `stream` is none that draws.
    """

    frames_a_picture = 2
    closed = False

    def __init__(self, stream: TextIO, *, status_lines: int) -> None:
        if not stream.isatty():
            raise NoTerminal("stdout is not a terminal")
        if os.environ.get("TERM", "dumb") == "dumb":
            raise NoTerminal("this terminal (TERM=dumb) cannot draw")
        columns, lines = shutil.get_terminal_size()
        if columns < _LEAST_COLUMNS or lines < _LEAST_LINES:
            raise NoTerminal(
                f"the terminal has {columns} columns and {lines} lines, at least "
                f"{_LEAST_COLUMNS} x {_LEAST_LINES} are needed"
            )
        self._stream = stream
        self._status_lines = status_lines
        self._size: os.terminal_size | None = None
        self._shown: NDArray[np.int16]

    def __enter__(self) -> TerminalScreen:
        self._stream.write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, at: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._stream.write(_LEAVE)
            self._stream.flush()

    def restore(self) -> None:
        """Leaves the terminal as it was, past whatever is being written to it."""
        with suppress(OSError):
            os.write(self._stream.fileno(), _LEAVE.encode())

    def pause(self, seconds: float) -> None:
        """Shows what it shows for so long."""
        time.sleep(seconds)

    def draw(self, picture: NDArray[np.uint8], status: list[str]) -> None:
        """Shows `[H, W, 3] uint8` RGB and the lines below it."""
        size = shutil.get_terminal_size()
        parts = []
        if size != self._size:
            self._size = size
            self._fit(picture, size)
            parts.append("\x1b[0m\x1b[2J")
        cells = self._cells(picture)
        changed = (cells != self._shown).any(axis=2)
        self._shown = cells
        parts += self._changes(cells, changed)
        parts.append("\x1b[0m")
        for number, line in enumerate(status[: self._status_lines]):
            text = line[: size.columns - 1]
            parts.append(f"\x1b[{self._rows + number + 1};1H{text}\x1b[K")
        self._stream.write("".join(parts))
        self._stream.flush()

    def _fit(self, picture: NDArray[np.uint8], size: os.terminal_size) -> None:
        """The largest 4:3 that there is room for, a character being twice as high as wide."""
        rows = max(1, size.lines - self._status_lines)
        columns = min(size.columns, round(2 * rows * 4 / 3))
        rows = max(1, min(rows, round(columns * 3 / 4 / 2)))
        self._rows, self._left = rows, (size.columns - columns) // 2
        self._down = averaging(picture.shape[0], 2 * rows)
        self._across = averaging(picture.shape[1], columns).T
        self._shown = np.full((rows, columns, 6), -1, np.int16)

    def _cells(self, picture: NDArray[np.uint8]) -> NDArray[np.int16]:
        """`[rows, columns, 6]`: RGB of a character's upper pixel, then of its lower."""
        small = self._down @ np.moveaxis(picture, -1, 0).astype(np.float32) @ self._across
        pixels = np.moveaxis(small + 0.5, 0, -1).astype(np.int16)
        return np.concatenate([pixels[::2], pixels[1::2]], axis=2)

    def _changes(self, cells: NDArray[np.int16], changed: NDArray[np.bool_]) -> list[str]:
        parts = []
        at: tuple[int, int] | None = None
        colours: list[int] = []
        for row, column in np.argwhere(changed).tolist():
            if at != (row, column):
                parts.append(f"\x1b[{row + 1};{self._left + column + 1}H")
            values = cells[row, column].tolist()
            if values != colours:
                r, g, b, r2, g2, b2 = colours = values
                parts.append(f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m")
            parts.append("▀")
            at = row, column + 1
        return parts


def averaging(length: int, parts: int) -> NDArray[np.float32]:
    """`[parts, length]`: takes a line of pixels to fewer, each the mean of those it covers."""
    edges = np.arange(parts + 1) * (length / parts)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
