"""An evaluation in words: a table for people, and what is shown while the games are played."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from retro_ml.core.engine.progress_text import duration

if TYPE_CHECKING:
    from retro_ml.evaluation.episodes import Standing
    from retro_ml.evaluation.evaluate import Estimate, Evaluation
    from retro_ml.evaluation.protocols import Protocol
    from retro_ml.evaluation.statistics import Interval

_LINE_INTERVAL_S = 10.0
_TERMINAL_INTERVAL_S = 0.25


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """The table, line by line."""
    trained = evaluation.trained_agent_steps
    after = f", trained for {trained:,} agent steps" if trained is not None else ""
    rows: list[tuple[str, ...]] = [("", "score", "95 % interval", "human = 1", "95 % interval")]
    for name, estimate in (
        ("mean", evaluation.mean),
        ("median", evaluation.median),
        ("IQM", evaluation.iqm),
    ):
        rows.append((name, *_estimate_cells(estimate)))
    return [
        f"{evaluation.algorithm} on {evaluation.game}{after}",
        f"protocol: {_protocol_words(evaluation.protocol)}",
        f"actions: {_action_words(evaluation.protocol)}; seed {evaluation.seed}",
        f"games: {_game_words(evaluation)}",
        "",
        *_align(rows),
        "",
        *_remarks(evaluation),
        f"model: sha256 {evaluation.model_sha256}",
    ]


class EvaluationProgress:
    """Shows how far the games are: in place on a terminal, else a line every 10 seconds.

    A context manager, so that nothing is left on a terminal; without a stream it shows nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._in_place = stream is not None and stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._in_place else _LINE_INTERVAL_S
        self._started_s = self._shown_s = time.monotonic()
        self._width = 0

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place and self._width:
            self._write("\r" + " " * self._width + "\r")

    def __call__(self, standing: Standing) -> None:
        """Takes one agent step of all games."""
        now_s = time.monotonic()
        if now_s - self._shown_s < self._interval_s:
            return
        self._shown_s = now_s
        text = _standing_words(standing, elapsed_s=now_s - self._started_s)
        if self._in_place:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        # A reader that went away ends the lines, not the games.
        with suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()


def _standing_words(standing: Standing, *, elapsed_s: float) -> str:
    words = [
        f"{standing.finished:,} / {standing.total:,} games",
        f"{standing.agent_steps / max(elapsed_s, 1e-9):,.0f} steps/s",
    ]
    if standing.mean is not None:
        words.append(f"mean score {standing.mean:,.1f}")
        # The first games to finish are short ones, so this is a little too early.
        left_s = elapsed_s * (standing.total / standing.finished - 1)
        words.append(f"about {duration(left_s)} left")
    return ", ".join(words)


def _estimate_cells(estimate: Estimate) -> tuple[str, str, str, str]:
    human, human_interval = estimate.human_normalised, estimate.human_normalised_interval
    return (
        f"{estimate.value:,.2f}",
        _interval_words(estimate.interval, digits=2),
        "-" if human is None else f"{human:,.3f}",
        "-" if human_interval is None else _interval_words(human_interval, digits=3),
    )


def _interval_words(interval: Interval, *, digits: int) -> str:
    return f"{interval.low:,.{digits}f} to {interval.high:,.{digits}f}"


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _protocol_words(protocol: Protocol) -> str:
    start = f"1 to {protocol.noop_max} no-ops" if protocol.noop_max else "no no-ops"
    fire = "FIRE pressed at starts" if protocol.auto_fire else "FIRE not pressed"
    actions = "all 18 actions" if protocol.full_action_space else "the game's own actions"
    return (
        f"{protocol.name}: sticky actions {protocol.sticky_actions:g}, {start}, whole games of "
        f"{protocol.max_frames:,} frames at most, {actions}, {fire}"
    )


def _action_words(protocol: Protocol) -> str:
    return {
        "sampled": "drawn from the policy",
        "epsilon-greedy": f"of highest value, random with probability {protocol.epsilon:g}",
        "greedy": "the likeliest or of highest value, none drawn",
    }[protocol.actions]


def _game_words(evaluation: Evaluation) -> str:
    count = len(evaluation.episodes)
    agent_steps = sum(episode.agent_steps for episode in evaluation.episodes) / count
    if evaluation.capped:
        capped = (
            f"{evaluation.capped:,} cut off after {evaluation.protocol.max_frames:,} frames "
            "(stalled, or too good to end)"
        )
    else:
        capped = "none cut off"
    return f"{count:,}, {agent_steps:,.0f} agent steps on average, {capped}"


def _remarks(evaluation: Evaluation) -> list[str]:
    error = evaluation.standard_error
    known = "unknown from a single game" if error is None else f"{error:,.2f}"
    lines = [f"standard error of the mean: {known}"]
    scale = evaluation.human_scale
    if scale is None:
        lines.append(f"human-normalised: no figures are known for {evaluation.game}")
    else:
        lines.append(
            f"human-normalised: random {scale['random']:,} is 0, human {scale['human']:,} is 1"
        )
    lines.append("intervals: over the games of this one model, not over training seeds")
    return lines
