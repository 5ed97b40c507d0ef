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
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.film_options import FilmOptions
from retro_ml.evaluation.playback import Moment, watch_games
from retro_ml.evaluation.protocols import build_protocol
from retro_ml.evaluation.video_file import FRAMES_PER_S

_FRAMES_A_PICTURE = 2
_HOLD_S = 1.0
_LEAST_COLUMNS, _LEAST_LINES = 40, 17
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # another screen, no cursor, empty
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


class NoTerminal(RuntimeError):
    """There is nothing to show it in; the message says what to do."""


def require_terminal(stream: TextIO) -> None:
    """Raises NoTerminal where `stream` is none that draws."""
    remedy = "-> run it in a terminal, or leave out --live to make a film"
    if not stream.isatty():
        raise NoTerminal(f"--live: stdout is not a terminal {remedy}")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise NoTerminal(f"--live: this terminal (TERM=dumb) cannot draw {remedy}")
    columns, lines = shutil.get_terminal_size()
    if columns < _LEAST_COLUMNS or lines < _LEAST_LINES:
        raise NoTerminal(
            f"--live: the terminal has {columns} columns and {lines} lines -> make it at least "
            f"{_LEAST_COLUMNS} x {_LEAST_LINES}"
        )


def show_live(
    agent: Agent, options: FilmOptions, stream: TextIO, *, stopped: Callable[[], bool]
) -> None:
    """Plays the games at real speed on a terminal, and leaves it as it was.

    Args:
        agent: plays.
        options: how; `scale` is the terminal's affair.
        stream: see `require_terminal`.
        stopped: asked after every agent step; True ends it.
    """
    protocol = build_protocol(agent.config, options.of_evaluation)
    screen = TerminalScreen(stream, status_lines=2 if options.strip else 0)
    due_s = time.monotonic()
    scores: list[float] = []
    stream.write(_ENTER)
    try:
        for action_meanings, moment in watch_games(
            agent, protocol=protocol, episodes=options.episodes, seed=options.seed
        ):
            status = _status(moment, action_meanings) if options.strip else []
            for start in range(0, len(moment.screens), _FRAMES_A_PICTURE):
                frames = moment.screens[start : start + _FRAMES_A_PICTURE]
                screen.draw(frames.max(axis=0), status)
                due_s += len(frames) / FRAMES_PER_S
                time.sleep(max(0.0, due_s - time.monotonic()))
            if moment.ended is not None:
                scores.append(moment.ended.score)
                time.sleep(_HOLD_S)
            # Where the terminal is slow the game is, too: it does not catch up in a rush.
            due_s = max(due_s, time.monotonic())
            if stopped():
                break
    except BrokenPipeError:
        return
    finally:
        with suppress(OSError):
            stream.write(_LEAVE)
            stream.flush()
    if scores:
        print("scores:" if len(scores) > 1 else "score:", ", ".join(f"{s:,.0f}" for s in scores))


class TerminalScreen:
    """Pictures on a terminal; only what has changed is written.

    Args:
        stream: the terminal.
        status_lines: lines of text below the picture.
    """

    def __init__(self, stream: TextIO, *, status_lines: int) -> None:
        self._stream = stream
        self._status_lines = status_lines
        self._size: os.terminal_size | None = None
        self._shown: NDArray[np.int16]

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


def _status(moment: Moment, action_meanings: tuple[str, ...]) -> list[str]:
    first = [f"score {moment.score:,.0f}"]
    if moment.lives:
        first.append(f"lives {moment.lives}")
    opinion = moment.opinion
    if opinion is None:
        return ["   ".join(first), ""]
    first.append(f"value {opinion.value:.2f}")
    # The likeliest four, each in its place, so that they do not jump about.
    order = sorted(np.argsort(-opinion.scores)[:4].tolist())
    second = [
        f"{'>' if index == opinion.action else ' '}{action_meanings[index].lower()} "
        f"{opinion.scores[index]:.2f}"
        for index in order
    ]
    return ["   ".join(first), "  ".join(second)]
