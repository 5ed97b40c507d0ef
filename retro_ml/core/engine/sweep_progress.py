"""What the user sees while a sweep lasts: a live table on a terminal, plain lines elsewhere."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from retro_ml.core.artifacts.leaderboard import Standing
from retro_ml.core.engine.progress import LiveDisplay, PlainLines, Progress
from retro_ml.core.engine.sweep_board import SweepBoard
from retro_ml.core.engine.sweep_result import SweepResult
from retro_ml.core.engine.sweep_text import SweepView, summary_lines, trial_words
from retro_ml.core.metrics.event_bus import MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.experiments.options import RunOptions

_STOPPING = "stopping after each trial's iteration; once more ends it at once"
_LINE_INTERVAL_S = 10.0
_WIDTH = 100
_BAR_WIDTH = 16
_COLUMNS = {"bar": 80, "steps": 0, "score": 50, "speed": 60}
"""What is told of a running trial, and how wide the terminal must be for it."""
_LINES_AROUND = 7
"""Lines of the terminal that the table leaves to what is above and below it."""
_STYLES = {"completed": "green", "stopped": "cyan", "interrupted": "yellow", "failed": "red"}


class SweepProgress(Progress):
    """Shows nothing; the ground of the others."""

    def take(self, event: MetricEvent) -> None:
        """An event of a trial, which the board has taken."""

    def trial_began(self, one: Standing) -> None:
        """A trial begins or goes on."""

    def trial_ended(self, one: Standing) -> None:
        """A trial ended, or could not begin."""

    def summarize_sweep(self, result: SweepResult) -> None:
        """Show how the sweep ended, after the `with` block."""


def build_sweep_progress(
    board: SweepBoard, options: "RunOptions", stream: TextIO | None
) -> SweepProgress:
    """The view that fits the options and the stream; none where there is no stream."""
    if options.progress == "quiet" or stream is None:
        return SweepProgress()
    view = SweepView(board)
    if stream.isatty():
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveSweep(view, console)
    return PlainSweep(view, stream)


class PlainSweep(PlainLines, SweepProgress):
    """A line when a trial begins or ends, and one for the whole about every 10 seconds."""

    stopping = _STOPPING

    def __init__(self, view: SweepView, stream: TextIO) -> None:
        super().__init__(stream)
        self._view = view
        self._shown_at_s = time.monotonic()

    def __enter__(self) -> Self:
        self.notice(f"{self._view.title}: {len(self._view.board.standings):,} trials")
        self.notice(f"files: {self._view.folder}")
        return self

    def take(self, event: MetricEvent) -> None:
        if time.monotonic() - self._shown_at_s >= _LINE_INTERVAL_S:
            self._show_facts()

    def trial_began(self, one: Standing) -> None:
        self._view.note_begin()
        going_on = f", going on from {one.agent_steps:,} agent steps" if one.agent_steps else ""
        self.notice(f"begins: {one.experiment_id}{going_on}")

    def trial_ended(self, one: Standing) -> None:
        self.notice(f"{one.state}: {one.experiment_id}: {trial_words(one)}")
        self._show_facts()

    def summarize_sweep(self, result: SweepResult) -> None:
        for heading, text in summary_lines(result, normalise=self._view.board.normalise):
            self.notice(f"{heading}: {text}" if heading else text)

    def _show_facts(self) -> None:
        self._shown_at_s = time.monotonic()
        self.notice(", ".join(self._view.facts()))


class LiveSweep(LiveDisplay, SweepProgress):
    """A table of the trials that run, redrawn in place; those that ended scroll by above it."""

    def __init__(self, view: SweepView, console: Console) -> None:
        self._view = view  # rich draws it at once
        super().__init__(console)

    def trial_began(self, one: Standing) -> None:
        self._view.note_begin()

    def trial_ended(self, one: Standing) -> None:
        line = Text(f"{one.state}: ", style=_STYLES.get(one.state, ""))
        line.append(f"{one.experiment_id}: {trial_words(one)}", style="default")
        with suppress(OSError):
            self._console.print(line, soft_wrap=True)

    def summarize_sweep(self, result: SweepResult) -> None:
        style = f"bold {_STYLES[result.state]}"
        for heading, text in summary_lines(result, normalise=self._view.board.normalise):
            line = Text(f"{heading:<8}", style=style) if heading else Text("  ")
            style = "bold"
            with suppress(OSError):
                self._console.print(line.append(text, style="default not bold"), soft_wrap=True)

    def _render(self) -> RenderableType:
        view = self._view
        width = min(_WIDTH, self._console.width - 1)
        top = Table.grid(expand=False)
        top.width = width
        top.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(Text(view.title, style="bold"), Text("  " + view.elapsed, style="dim"))
        bar = Table.grid()  # alone it does not end its line
        bar.add_row(ProgressBar(total=1.0, completed=view.board.share, width=width))
        below = Text(self._between.join(view.facts()), no_wrap=True, overflow="crop")
        if self._stopping:
            below = Text(_STOPPING, style="yellow", no_wrap=True, overflow="crop")
        return Group(top, bar, self._table(width), below)

    def _table(self, width: int) -> RenderableType:
        running = self._view.running
        room = max(3, self._console.height - _LINES_AROUND)
        columns = [name for name, least in _COLUMNS.items() if width >= least]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for name in columns:
            table.add_column(justify="left" if name == "bar" else "right", no_wrap=True)
        for one in running[:room]:
            cells: dict[str, RenderableType] = {
                "bar": ProgressBar(one.total_timesteps, one.agent_steps, width=_BAR_WIDTH),
                "steps": f"{one.agent_steps:,}" if one.agent_steps else "starting",
                "score": "" if one.score is None else f"score {one.score:,.1f}",
                "speed": "" if one.steps_per_s is None else f"{one.steps_per_s:,.0f} steps/s",
            }
            table.add_row(f"  {one.experiment_id}", *(cells[name] for name in columns))
        if len(running) > room:
            table.add_row(f"  and {len(running) - room:,} more")
        return table
