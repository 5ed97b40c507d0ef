"""The words of a sweep's progress: lines made of its board."""

import time
from collections.abc import Sequence

from retro_ml.core.artifacts.leaderboard import (
    STATES,
    Combination,
    Normalise,
    Standing,
    mean_normalised,
    settings_words,
)
from retro_ml.core.engine.progress_text import delivery_words, duration, score_words, shown_path
from retro_ml.core.engine.sweep_board import SweepBoard
from retro_ml.core.engine.sweep_result import SweepResult

_MOST_ROWS = 60
"""Of the table at the end; the leaderboard's files have all."""
_MOST_FAILED = 20
HEADINGS = ("game", "algorithm", "settings", "score", "of seeds", "human = 1", "trials", "state")


class SweepView:
    """What is shown of a sweep while it lasts."""

    def __init__(self, board: SweepBoard) -> None:
        self.board = board
        self._started_s = time.monotonic()
        self._began_at: int | None = None

    @property
    def title(self) -> str:
        """`sweep NAME`."""
        return f"sweep {self.board.config.sweep_id}"

    @property
    def folder(self) -> str:
        """Where its files are."""
        return shown_path(self.board.config.paths.sweep_dir)

    @property
    def elapsed(self) -> str:
        """Time since the start, in words."""
        return duration(time.monotonic() - self._started_s)

    @property
    def running(self) -> list[Standing]:
        """The trials that run, in the order in which they began."""
        return [one for one in self.board.standings.values() if one.state == "running"]

    def note_begin(self) -> None:
        """The first trial begins: what is there already was not this call's work."""
        if self._began_at is None:
            self._began_at = self.board.agent_steps

    def facts(self) -> list[str]:
        """Trials that ended, agent steps, speed, time left: those that are known."""
        counts, total = self.board.counts, len(self.board.standings)
        ended = counts["completed"] + counts["stopped"] + counts["failed"]
        facts = [f"{ended:,} of {total:,} trials ended"]
        facts += [
            f"{counts[state]:,} {state}"
            for state in ("running", "stopped", "failed")
            if counts[state]
        ]
        facts.append(f"{self.board.agent_steps:,} agent steps ({100 * self.board.share:.0f} %)")
        elapsed_s = time.monotonic() - self._started_s
        done = self.board.agent_steps - (self._began_at or 0)
        if self._began_at is not None and done > 0 and self.board.share < 1:
            rate = done / elapsed_s
            left = (1 - self.board.share) * self.board.total_agent_steps
            facts += [f"{rate:,.0f} steps/s", f"{duration(left / rate)} left"]
        return facts


def trial_words(one: Standing) -> str:
    """`score 1.4, mean of 37 games, 10,240 agent steps`, or why it failed."""
    if one.error is not None:
        return one.error
    return f"{score_words(one.score, one.games)}, {one.agent_steps:,} agent steps"


def summary_lines(result: SweepResult, *, normalise: Normalise) -> list[tuple[str, str]]:
    """The end of a sweep as pairs of a heading and its text; the table has no heading."""
    counts = {state: sum(one.state == state for one in result.standings) for state in STATES}
    words = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    heading = {"completed": "done", "interrupted": "stopped", "failed": "failed"}[result.state]
    total = f"sweep {result.sweep_id}, {len(result.standings):,} trials in "
    lines = [(heading, f"{total}{duration(result.took_s)}: {words}")]
    if result.error is not None:
        lines.append(("reason", result.error))
    lines += [("", row) for row in table_lines(result, normalise=normalise)]
    failed = result.failed
    for one in failed[:_MOST_FAILED]:
        lines.append(("failed", f"{one.experiment_id}: {one.error}"))
    if len(failed) > _MOST_FAILED:
        lines.append(("failed", f"and {len(failed) - _MOST_FAILED:,} more"))
    lines.append(("files", shown_path(result.sweep_dir)))
    lines.append(("table", shown_path(result.paths.leaderboard_csv_path)))
    if result.storage is not None:
        lines.append(("storage", delivery_words(result.storage)))
    return lines


def table_lines(result: SweepResult, *, normalise: Normalise) -> list[str]:
    """The leaderboard's combinations, the best of each game first."""
    combinations = result.combinations
    rows = [
        (
            one.game,
            one.algorithm,
            settings_words(one.settings),
            "-" if one.score is None else f"{one.score:,.1f}",
            _spread(one.scores),
            _number(mean_normalised(one, normalise)),
            _counted(one),
            ", ".join(sorted({trial.state for trial in one.trials})),
        )
        for one in combinations[:_MOST_ROWS]
    ]
    lines = align([HEADINGS, *rows], right={3, 4, 5, 6})
    if len(combinations) > _MOST_ROWS:
        lines.append(f"and {len(combinations) - _MOST_ROWS:,} more")
    return lines


def align(rows: Sequence[Sequence[str]], *, right: set[int]) -> list[str]:
    """Columns side by side, those that are empty but for their heading left out."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    return [
        "  ".join(
            row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in kept
        ).rstrip()
        for row in rows
    ]


def _spread(scores: Sequence[float]) -> str:
    return f"{min(scores):,.1f} to {max(scores):,.1f}" if len(scores) > 1 else ""


def _counted(one: Combination) -> str:
    """How many trials there are; `1 of 2` where not all count."""
    count, total = len(one.scores), f"{len(one.trials):,}"
    return total if count in {0, len(one.trials)} else f"{count:,} of {total}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
