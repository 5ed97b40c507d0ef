"""Which signal asks to stop, which is a repetition, and which ends the process at once."""

import os
import signal
from typing import Any

import pytest

from retro_ml.core.engine import stop_signals
from retro_ml.core.engine.stop_signals import StopSignals

pytestmark = pytest.mark.unit
INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("asked_by", "signals", "heard"),
    [
        (None, [INT], ["asked"]),
        (None, [TERM], ["asked"]),
        (None, [TERM, TERM, TERM], ["asked"]),
        (None, [INT, TERM], ["asked"]),
        (None, [INT, INT], ["asked", "exit 130"]),
        (None, [TERM, INT], ["asked", "exit 130"]),
        (TERM, [TERM, TERM], []),
        (TERM, [TERM, INT, TERM, INT], ["asked", "exit 130"]),
        (INT, [INT], ["asked"]),
    ],
)
def test_a_sigterm_asks_once_and_only_a_sigint_ends_at_once(
    asked_by: int | None,
    signals: list[signal.Signals],
    heard: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(stop_signals.os, "_exit", lambda code: told.append(f"exit {code}"))
    caplog.set_level("INFO")

    def ask() -> None:
        told.append("asked")

    def leave() -> Any:
        pass

    with StopSignals(on_first=ask, before_exit=leave, asked_by=asked_by):
        for signum in signals:
            os.kill(os.getpid(), signum)
    assert told == heard
    repeated = len(signals) - len(heard)
    assert (f"SIGTERM came again while stopping ({repeated})" in caplog.text) is (repeated > 0)
