"""The strip beside the game: score, lives, the agent's estimate of the value, its actions.

Drawn once for each agent step. Colours are Okabe and Ito's, which people who are colour-blind tell
apart (jfly.uni-koeln.de/color), and nothing is told by colour alone: the chosen action is also
marked. The typeface is Aileron, which Pillow brings along (CC0); its figures are of one width, so
that numbers do not jump.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retro_ml.evaluation.playback import Moment, Opinion

_GROUND = (18, 20, 24)
_INK = (240, 242, 245)
_MUTED = (154, 160, 170)
_LINE = (52, 56, 64)
_BLUE = (86, 180, 233)  # sky blue
_ORANGE = (230, 159, 0)
_HISTORY = 150
"""Agent steps on the value's chart: 10 s."""
_AGENT_STEPS_PER_S = 15
_FINER = 3
"""A chart is drawn this many times as big and made smaller, which smooths its line."""

# In units of a 320 x 630 strip, which `scale` 3 gives; others are in proportion.
_UNITS_WIDTH, _UNITS_HEIGHT = 320, 630
_MARGIN = 26
_FOOT = 30
_ROW, _TEXT_ROW = 34, 15
_NUMBER_WIDTH = 52


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand, from the top."""

    numbers_size: float
    """Of score and lives."""
    value: int
    """The value's label, and its number."""
    chart: int
    chart_height: int
    actions: int
    """The first action; the label is above."""


_ROOMY = _Layout(numbers_size=62, value=238, chart=262, chart_height=74, actions=392)
_DENSE = _Layout(numbers_size=44, value=206, chart=228, chart_height=40, actions=312)
"""For more than 9 actions."""


@dataclass(frozen=True, slots=True)
class Caption:
    """What stays on the strip throughout a film."""

    title: str
    """The game."""
    lines: tuple[str, ...]
    """What is known of the agent: algorithm, training."""
    share: float | None = None
    """How much of its training the agent has had, 0 to 1, as a bar."""


class Strip:
    """Moments -> pictures.

    Args:
        caption: see there.
        action_meanings: ale-py's names of the actions.
        height: of the film, in pixels.
        episodes: games that the film will show.
    """

    def __init__(
        self, caption: Caption, *, action_meanings: tuple[str, ...], height: int, episodes: int
    ) -> None:
        self._unit = height / _UNITS_HEIGHT
        self.width = round(height * _UNITS_WIDTH / _UNITS_HEIGHT / 2) * 2
        """In pixels, even."""
        self._size = (self.width, height)
        self._episodes = episodes
        self._has_lives = False
        self._values: deque[float] = deque(maxlen=_HISTORY)
        self._scores: deque[NDArray[np.float32]] = deque(maxlen=_HISTORY)
        self._names = [_action_words(meaning) for meaning in action_meanings]
        self._layout = _ROOMY if len(self._names) <= 9 else _DENSE
        room = _UNITS_HEIGHT - _FOOT - 20 - self._layout.actions
        self._row = min(_ROW, room / len(self._names))
        self._text_size = min(_TEXT_ROW, self._row * 0.85)
        font = self._font(self._text_size)
        self._names_width = 16 + max(font.getlength(name) for name in self._names) / self._unit
        self._bare = self._draw_bare(caption)

    def draw(self, moment: Moment) -> NDArray[np.uint8]:
        """`[H, W, 3] uint8` RGB."""
        if moment.opinion is None:
            self._values.clear()
            self._scores.clear()
        else:
            self._values.append(moment.opinion.value)
            self._scores.append(moment.opinion.scores)
        image = self._bare.copy()
        pen = ImageDraw.Draw(image)
        self._text(pen, (_MARGIN, 150), f"{moment.score:,.0f}", self._layout.numbers_size)
        self._has_lives = self._has_lives or moment.lives > 0
        if self._has_lives:
            right = _UNITS_WIDTH - _MARGIN
            size = self._layout.numbers_size
            self._text(pen, (right, 150), str(moment.lives), size, anchor="ra")
            self._text(pen, (right, 130), "LIVES", 13, _MUTED, anchor="ra")
        self._draw_value(image, pen)
        self._draw_actions(pen, moment.opinion)
        self._draw_foot(pen, moment)
        return np.asarray(image)

    def _draw_bare(self, caption: Caption) -> Image.Image:
        image = Image.new("RGB", self._size, _GROUND)
        pen = ImageDraw.Draw(image)
        room = _UNITS_WIDTH - 2 * _MARGIN
        size = 32.0
        while self._font(size).getlength(caption.title) > room * self._unit and size > 12:
            size -= 1
        self._text(pen, (_MARGIN, 22), caption.title, size=size)
        for number, line in enumerate(caption.lines[:2]):
            self._text(pen, (_MARGIN, 64 + 20 * number), line, 15, _MUTED)
        if caption.share is not None:
            self._bar(pen, (_MARGIN, 112), (room, 4), _LINE)
            self._bar(pen, (_MARGIN, 112), (room * min(1.0, caption.share), 4), _ORANGE)
        self._text(pen, (_MARGIN, 130), "SCORE", 13, _MUTED)
        self._text(pen, (_MARGIN, self._layout.value), "VALUE ESTIMATE", 13, _MUTED)
        return image

    def _draw_value(self, image: Image.Image, pen: Any) -> None:
        left, right, layout = _MARGIN, _UNITS_WIDTH - _MARGIN, self._layout
        bottom = layout.chart + layout.chart_height
        self._bar(pen, (left, bottom), (right - left, 1), _LINE)
        if not self._values:
            return
        newest = self._values[-1]
        self._text(pen, (right, layout.value - 6), f"{newest:,.2f}", 20, anchor="ra")
        low, high = min(self._values), max(self._values)
        margin = max(0.1, 0.1 * (high - low))
        low, high = low - margin, high + margin
        width, height = (round(n * self._unit) for n in (right - left, layout.chart_height))
        chart = Image.new("L", (width * _FINER, height * _FINER))
        xs = np.arange(_HISTORY - len(self._values), _HISTORY) / (_HISTORY - 1)
        ys = (high - np.array(self._values)) / (high - low)
        points = [
            (x * (width - 6) * _FINER, y * height * _FINER) for x, y in zip(xs, ys, strict=True)
        ]
        thick = max(2, round(2 * self._unit * _FINER))
        fine = ImageDraw.Draw(chart)
        if len(points) > 1:
            fine.line(points, fill=255, width=thick, joint="curve")
        x, y = points[-1]
        fine.ellipse((x - 1.6 * thick, y - 1.6 * thick, x + 1.6 * thick, y + 1.6 * thick), fill=255)
        mask = chart.resize((width, height), Image.Resampling.BOX)
        corner = (round(left * self._unit), round(layout.chart * self._unit))
        image.paste(_BLUE, (*corner, corner[0] + width, corner[1] + height), mask)

    def _draw_actions(self, pen: Any, opinion: Opinion | None) -> None:
        probabilities = opinion is None or opinion.are_probabilities
        label = "ACTION PROBABILITIES" if probabilities else "ACTION VALUES"
        self._text(pen, (_MARGIN, self._layout.actions - 28), label, 13, _MUTED)
        lengths = self._bar_lengths(opinion)
        room = _UNITS_WIDTH - 2 * _MARGIN - self._names_width - _NUMBER_WIDTH
        size = self._text_size
        thick = max(2.0, self._row * 0.42)
        for index, name in enumerate(self._names):
            middle = self._layout.actions + self._row * (index + 0.5)
            chosen = opinion is not None and index == opinion.action
            ink = _INK if chosen else _MUTED
            self._text(pen, (_MARGIN, middle), name, size, ink, anchor="lm")
            left, top = _MARGIN + self._names_width, middle - thick / 2
            self._bar(pen, (left, top), (room, thick), _LINE)
            if opinion is None:
                continue
            self._bar(
                pen, (left, top), (room * lengths[index], thick), _ORANGE if chosen else _BLUE
            )
            number = f"{opinion.scores[index]:.2f}"
            end = (_UNITS_WIDTH - _MARGIN, middle)
            self._text(pen, end, number, size, ink, anchor="rm")
            if chosen:
                self._mark(pen, (_MARGIN - 14, middle), size=min(4.5, self._row * 0.3))

    def _bar_lengths(self, opinion: Opinion | None) -> NDArray[np.float32]:
        """`[A]` 0 to 1; values lie between the lowest and highest of the last 10 s."""
        if opinion is None or opinion.are_probabilities:
            return np.zeros(0, np.float32) if opinion is None else opinion.scores
        low = min(float(scores.min()) for scores in self._scores)
        high = max(float(scores.max()) for scores in self._scores)
        return np.asarray((opinion.scores - low) / max(high - low, 1e-6), np.float32)

    def _draw_foot(self, pen: Any, moment: Moment) -> None:
        seconds = moment.agent_steps // _AGENT_STEPS_PER_S
        baseline = _UNITS_HEIGHT - _FOOT
        clock = f"{seconds // 60}:{seconds % 60:02}"
        self._text(pen, (_MARGIN, baseline), clock, 14, _MUTED, anchor="lm")
        words = f"game {moment.game + 1} of {self._episodes}" if self._episodes > 1 else ""
        if moment.ended is not None:
            words = "cut off" if moment.ended.capped else "game over"
        end = (_UNITS_WIDTH - _MARGIN, baseline)
        self._text(pen, end, words, 14, _MUTED, anchor="rm")

    def _text(
        self,
        pen: Any,
        at: tuple[float, float],
        text: str,
        size: float,
        ink: tuple[int, int, int] = _INK,
        *,
        anchor: str = "la",
    ) -> None:
        pen.text(self._scaled(at), text, font=self._font(size), fill=ink, anchor=anchor)

    def _bar(
        self,
        pen: Any,
        at: tuple[float, float],
        size: tuple[float, float],
        ink: tuple[int, int, int],
    ) -> None:
        (x, y), (width, height) = self._scaled(at), self._scaled(size)
        if width >= 1:
            pen.rectangle((x, y, x + width - 1, y + max(height, 1) - 1), fill=ink)

    def _mark(self, pen: Any, at: tuple[float, float], *, size: float) -> None:
        (x, y), (half, _) = self._scaled(at), self._scaled((size, size))
        pen.polygon([(x, y - half), (x, y + half), (x + 1.4 * half, y)], fill=_ORANGE)

    def _font(self, size: float) -> Any:
        return _load_font(max(6, round(size * self._unit)))

    def _scaled(self, pair: tuple[float, float]) -> tuple[int, int]:
        return round(pair[0] * self._unit), round(pair[1] * self._unit)


@cache
def _load_font(pixels: int) -> Any:
    return ImageFont.load_default(pixels)


def _action_words(meaning: str) -> str:
    """`UPRIGHTFIRE` -> `up right fire`."""
    words = []
    rest = meaning
    while rest:
        known = ("NOOP", "FIRE", "UP", "DOWN", "RIGHT", "LEFT", rest)
        word = next(word for word in known if rest.startswith(word))
        words.append("no-op" if word == "NOOP" else word.lower())
        rest = rest[len(word) :]
    return " ".join(words)
