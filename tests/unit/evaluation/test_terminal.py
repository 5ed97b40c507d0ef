"""A terminal that an agent is shown in, also when the process ends at once."""

import os
import pty
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import numpy as np
import pytest

from retro_ml import watch
from retro_ml.core.engine import stop_signals
from retro_ml.evaluation import agent, live
from retro_ml.evaluation.terminal import TerminalScreen

pytestmark = pytest.mark.unit

LEFT_AS_IT_WAS = "\x1b[0m\x1b[?25h\x1b[?1049l"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """What is written to, and where it is read."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "17")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        yield stream, leader
    os.close(leader)


def test_a_second_signal_leaves_the_terminal_as_it_was(
    terminal: tuple[TextIO, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, leader = terminal
    written = []

    def exit_at_once(code: int) -> None:
        written.append(os.read(leader, 65_536).decode())  # before the screen is closed in order
        raise SystemExit(code)

    def show(agent: object, options: object, screen: TerminalScreen, **_: Callable[[], bool]):
        screen.draw(np.zeros((210, 160, 3), np.uint8), [])
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stop_signals.os, "_exit", exit_at_once)
    monkeypatch.setattr(stop_signals, "_tell_others", lambda: None)
    monkeypatch.setattr(agent, "Agent", SimpleNamespace(load=lambda path: None))
    monkeypatch.setattr(live, "show_live", show)
    screen = TerminalScreen(stream, status_lines=2)
    monkeypatch.setattr(live, "open_screen", lambda options, stream: screen)
    (tmp_path / "model.zip").touch()
    with pytest.raises(SystemExit) as ended:
        watch.main([str(tmp_path / "model.zip"), "--live"])
    assert ended.value.code == 143
    assert written[0].endswith(LEFT_AS_IT_WAS)
