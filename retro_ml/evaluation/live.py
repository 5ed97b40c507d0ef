"""An agent at play, live: the games of an evaluation, at real speed, in a window or a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.film_options import FilmOptions
from retro_ml.evaluation.playback import Moment, watch_games
from retro_ml.evaluation.protocols import build_protocol
from retro_ml.evaluation.terminal import NoTerminal, TerminalScreen
from retro_ml.evaluation.video_file import FRAMES_PER_S
from retro_ml.evaluation.window import NoWindow, WindowScreen

STATUS_LINES = 2
_HOLD_S = 1.0
"""How long a game's last picture stays."""


class NoScreen(RuntimeError):
    """There is nothing to show it in; the message says why and what to do."""


class Screen(Protocol):
    """What pictures are shown on, for the time of a `with` block."""

    @property
    def frames_a_picture(self) -> int:
        """How many of the console's 60 frames a second it takes together."""

    @property
    def closed(self) -> bool:
        """Whether whoever watches has seen enough."""

    def draw(self, picture: NDArray[np.uint8], status: list[str]) -> None:
        """Shows `[H, W, 3] uint8` RGB and the lines below it."""

    def pause(self, seconds: float) -> None:
        """Shows what it shows for so long."""

    def restore(self) -> None:
        """For signal handlers: the process ends at once."""

    def __enter__(self) -> Screen: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...


def open_screen(options: FilmOptions, stream: TextIO) -> Screen:
    """A window where there is a display, or else the terminal `stream`.

    Raises:
        NoScreen: there is neither.
    """
    status_lines = STATUS_LINES if options.strip else 0
    try:
        return WindowScreen(scale=options.scale, status_lines=status_lines)
    except NoWindow as error:
        no_window = error
    try:
        return TerminalScreen(stream, status_lines=status_lines)
    except NoTerminal as error:
        raise NoScreen(
            f"--live: {error}, and no window can be opened ({no_window}) -> run it in a terminal "
            "or on a desktop, or leave out --live to make a film"
        ) from None


def show_live(
    agent: Agent, options: FilmOptions, screen: Screen, *, stopped: Callable[[], bool]
) -> list[float]:
    """Plays the games at real speed.

    Args:
        agent: plays.
        options: how; `scale` was the window's affair.
        screen: shows it.
        stopped: asked after every agent step; True ends it.

    Returns:
        The scores of the games that came to their end.
    """
    protocol = build_protocol(agent.config, options.of_evaluation)
    together = screen.frames_a_picture
    due_s = time.monotonic()
    scores: list[float] = []
    for action_meanings, moment in watch_games(
        agent, protocol=protocol, episodes=options.episodes, seed=options.seed
    ):
        status = _status(moment, action_meanings) if options.strip else []
        for start in range(0, len(moment.screens), together):
            frames = moment.screens[start : start + together]
            screen.draw(frames.max(axis=0), status)
            due_s += len(frames) / FRAMES_PER_S
            screen.pause(max(0.0, due_s - time.monotonic()))
        if moment.ended is not None:
            scores.append(moment.ended.score)
            screen.pause(_HOLD_S)
        # Where the screen is slow the game is, too: it does not catch up in a rush.
        due_s = max(due_s, time.monotonic())
        if screen.closed or stopped():
            break
    return scores


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
