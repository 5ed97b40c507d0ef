"""What the user sees while a run lasts, on stderr: stdout is left to the result.

A live panel on a terminal, plain lines elsewhere, or nothing at all.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from retro_ml.core.engine.progress_text import RunView, summary_lines
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

if TYPE_CHECKING:
    from retro_ml.core.engine.result import ExperimentResult
    from retro_ml.core.experiments.config import ExperimentConfig
    from retro_ml.core.experiments.options import RunOptions

_STOPPING = "stopping after this iteration; once more ends it at once"
_PANEL_WIDTH = 88
# The terminal echoes ^C at the panel's end: were there no room, it would wrap and leave a line.
_ECHO_WIDTH = 3
_REFRESHES_PER_S = 4
_LINE_INTERVAL_S = 10.0
_LINES_BY_SHARE = 20
_SHOW_CURSOR = "\x1b[?25h\n"


class Progress:
    """Shows nothing; the ground of the others.

    A subscriber for the time of a `with` block. `announce_stop` and `restore_terminal` are called
    from signal handlers.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: MetricEvent) -> None:
        """Take one event of the bus."""

    def notice(self, text: str) -> None:
        """Show one line at once, whatever else is on the screen."""

    def announce_stop(self) -> None:
        """Say that the run ends after its current iteration."""

    def restore_terminal(self) -> None:
        """Leave the terminal usable: the process ends at once."""

    def summarize(self, result: "ExperimentResult") -> None:
        """Show how the run ended, after the `with` block."""


def build_progress(
    config: "ExperimentConfig", options: "RunOptions", stream: TextIO | None
) -> Progress:
    """The view that fits the options and the stream; none where there is no stream."""
    if options.progress == "quiet" or stream is None:
        return Progress()
    view = RunView(config)
    if stream.isatty():
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveProgress(view, console)
    return PlainProgress(view, stream)


class PlainLines(Progress):
    """Writes lines."""

    stopping = _STOPPING

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def notice(self, text: str) -> None:
        self._write(text + "\n")

    def announce_stop(self) -> None:
        try:
            os.write(self._stream.fileno(), f"{self.stopping}\n".encode())
        except UnsupportedOperation:  # no file behind it, so nothing that a signal could break
            self._write(f"{self.stopping}\n")
        except OSError:
            return  # nobody is there to read it

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        # A reader that went away ("2>&1 | head") ends the lines, not the training.
        with suppress(OSError):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()


class PlainProgress(PlainLines):
    """One line at the start, one about every 10 seconds or 5 %, a summary."""

    def __init__(self, view: RunView, stream: TextIO) -> None:
        super().__init__(stream)
        self._view = view
        self._shown_at_s = time.monotonic()
        self._shown_step = 0

    def __enter__(self) -> Self:
        self.notice(", ".join([self._view.title, *self._view.details]))
        self.notice(f"files: {self._view.folder}")
        return self

    def __call__(self, event: MetricEvent) -> None:
        if event.experiment_id != self._view.experiment_id:
            return
        self._view.take(event)
        if event.event_type is EventType.RUN_STARTED and self._view.step > 0:
            self._shown_step = self._view.step
            self.notice(f"going on from {self._view.step:,} agent steps")
        if event.event_type is EventType.EVALUATION_FINISHED:
            self.notice(self._view.evaluation)
        if event.event_type is EventType.TRAINING_STEP and self._is_due():
            self._shown_at_s = time.monotonic()
            self._shown_step = self._view.step
            self.notice(", ".join([self._view.steps(), *self._view.facts()]))

    def summarize(self, result: "ExperimentResult") -> None:
        for heading, text in summary_lines(result, title=self._view.title):
            self.notice(f"{heading}: {text}")

    def _is_due(self) -> bool:
        waited_s = time.monotonic() - self._shown_at_s
        advanced_steps = self._view.step - self._shown_step
        enough = _LINES_BY_SHARE * advanced_steps >= self._view.total
        return enough or waited_s >= _LINE_INTERVAL_S


class LiveDisplay(ABC, Progress):
    """Something that redraws itself in place; notices scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._between = " | " if console.options.ascii_only else " · "
        self._stopping = False
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            # What the user's program prints goes above the panel, unless it goes elsewhere.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal may have been closed meanwhile
            self._live.stop()

    def notice(self, text: str) -> None:
        with suppress(OSError):
            self._console.print(Text(text), soft_wrap=True)

    def announce_stop(self) -> None:
        self._stopping = True  # the next redraw shows it

    def restore_terminal(self) -> None:
        with suppress(OSError):
            os.write(self._console.file.fileno(), _SHOW_CURSOR.encode())

    @abstractmethod
    def _render(self) -> RenderableType:
        """What is drawn now."""


class LiveProgress(LiveDisplay):
    """A panel of one run."""

    def __init__(self, view: RunView, console: Console) -> None:
        self._view = view  # rich draws it at once
        super().__init__(console)

    def __call__(self, event: MetricEvent) -> None:
        if event.experiment_id == self._view.experiment_id:
            self._view.take(event)
            if event.event_type is EventType.EVALUATION_FINISHED:
                self.notice(self._view.evaluation)

    def summarize(self, result: "ExperimentResult") -> None:
        style = {"completed": "bold green", "interrupted": "bold yellow", "failed": "bold red"}
        for index, (heading, text) in enumerate(summary_lines(result, title=self._view.title)):
            line = Text(f"{heading:<8}", style=style[result.state] if index == 0 else "bold")
            with suppress(OSError):
                self._console.print(line.append(text, style="default not bold"), soft_wrap=True)

    def _render(self) -> RenderableType:
        view = self._view
        top = Table.grid(expand=True)
        top.add_column(no_wrap=True, overflow="crop", ratio=1)
        top.add_column(justify="right", no_wrap=True)
        title = Text(view.title, style="bold")
        title.append(self._between.join(["", *view.details]), style="not bold dim")
        top.add_row(title, Text("  " + view.elapsed, style="dim"))
        width = min(_PANEL_WIDTH, self._console.width - _ECHO_WIDTH)
        return Constrain(Group(top, self._bar(), self._bottom()), width)

    def _bar(self) -> RenderableType:
        waiting = self._view.step == 0
        bar = ProgressBar(total=self._view.total, completed=self._view.step, pulse=waiting)
        row = Table.grid(expand=True, padding=(0, 2, 0, 0))
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_row(bar, Text("" if waiting else self._view.steps()))
        return row

    def _bottom(self) -> RenderableType:
        if self._stopping:
            return Text(_STOPPING, style="yellow", no_wrap=True, overflow="crop")
        if not self._view.running:
            return Text("starting", style="dim")
        facts = self._view.facts() if self._view.step > 0 else ["playing the first games"]
        return Text(self._between.join(facts), no_wrap=True, overflow="crop")
