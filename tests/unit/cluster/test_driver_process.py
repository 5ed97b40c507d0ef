"""Ray's driver keeps its own handler of SIGTERM, whatever is put in its place below Python."""

import ctypes
import os
import signal
from collections.abc import Iterator

import pytest
from ray._private import utils

from retro_ml.cluster.driver_process import own_signal_handlers

pytestmark = pytest.mark.unit

SIG_IGN = ctypes.c_void_p(1)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: signals.append(signum))
    yield signals
    signal.signal(signal.SIGTERM, before)


def replace_below_python() -> None:
    """As Abseil does when Ray starts: Python's record stays what it was."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGTERM, SIG_IGN)


def test_a_handler_that_was_replaced_below_python_is_put_back(heard: list[int]) -> None:
    with own_signal_handlers():
        utils.set_sigterm_handler(lambda signum, frame: os._exit(1))
        replace_below_python()
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_an_alarm_set_meanwhile_is_taken_back_and_ones_own_stays(heard: list[int]) -> None:
    with own_signal_handlers():
        signal.alarm(60)
    assert signal.alarm(0) == 0
    signal.alarm(60)
    with own_signal_handlers():
        pass
    assert signal.alarm(0) > 50
