"""What is shown while a film is made, and what it shows in the end, in words."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from retro_ml.evaluation.video_file import FRAMES_PER_S

if TYPE_CHECKING:
    from retro_ml.evaluation.films import Film
    from retro_ml.evaluation.playback import Moment

_LINE_INTERVAL_S = 10.0
_TERMINAL_INTERVAL_S = 0.25


class FilmProgress:
    """Shows how far a film is: in place on a terminal, else a line every 10 seconds.

    A context manager, so that nothing is left on a terminal; without a stream it shows nothing.
    """

    def __init__(self, stream: TextIO | None, *, episodes: int) -> None:
        self._stream = stream
        self._episodes = episodes
        self._in_place = stream is not None and stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._in_place else _LINE_INTERVAL_S
        self._shown_s = time.monotonic()
        self._frames = 0
        self._width = 0

    def __enter__(self) -> FilmProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place and self._width:
            self._write("\r" + " " * self._width + "\r")

    def __call__(self, moment: Moment) -> None:
        """Takes one agent step."""
        self._frames += len(moment.screens)
        now_s = time.monotonic()
        if now_s - self._shown_s < self._interval_s:
            return
        self._shown_s = now_s
        text = (
            f"game {moment.game + 1} of {self._episodes}, score {moment.score:,.0f}, "
            f"{clock(self._frames)} filmed"
        )
        if self._in_place:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        # A reader that went away ends the lines, not the film.
        with suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()


def film_words(film: Film) -> str:
    """`score 23, 0:54, 1120x630, 2.3 MB`."""
    scores = [f"{episode.score:,.0f}" for episode in film.episodes]
    parts = [f"score{'s' if len(scores) > 1 else ''} {', '.join(scores[:10])}"] if scores else []
    if len(scores) > 10:
        parts[0] += ", ..."
    parts += [
        clock(film.frames),
        f"{film.width}x{film.height}",
        f"{film.path.stat().st_size / 1e6:,.1f} MB",
    ]
    return ", ".join(parts)


def clock(frames: int) -> str:
    """Minutes and seconds."""
    seconds = frames // FRAMES_PER_S
    return f"{seconds // 60}:{seconds % 60:02}"
