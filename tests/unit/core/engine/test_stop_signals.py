"""Signals of a process of its own: what the first does, and what others can see of it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retro_ml.core.engine.stop_signals import STOPPING

pytestmark = pytest.mark.unit

PROGRAM = """
import time
from retro_ml.core.engine.stop_signals import StopSignals

with StopSignals(on_first=lambda: print("asked", flush=True), before_exit=lambda: None):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_is_seen_the_second_ends(first: int, second: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        comm = Path(f"/proc/{process.pid}/comm")
        assert process.stdout.readline() == "ready\n"
        assert comm.read_bytes().strip() != STOPPING
        process.send_signal(first)
        assert process.stdout.readline() == "asked\n"
        assert comm.read_bytes().strip() == STOPPING
        process.send_signal(second)
        assert process.wait(30) == 128 + second
