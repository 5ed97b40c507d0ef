"""How the process that films holds back while training goes on; nothing is filmed here."""

import os
import threading

import pytest

from retro_ml.core.engine.milestone_films import ENOUGH, JOIN
from retro_ml.evaluation import film_worker
from retro_ml.evaluation.film_worker import Orders

pytestmark = pytest.mark.unit


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> tuple[Orders, int]:
    """Orders, and the end of the pipe that they come from; closed, it would end this process."""
    reading, writing = os.pipe()
    monkeypatch.setattr(film_worker, "SHARE", 1e-9)  # years of sleep
    return Orders(os.fdopen(reading)), writing


@pytest.mark.parametrize("order", [JOIN, ENOUGH])
def test_rests_until_training_is_over(orders: tuple[Orders, int], order: str) -> None:
    read, pipe = orders
    sleeper = threading.Thread(target=read.rest, daemon=True)
    sleeper.start()

    os.write(pipe, b"1024\n")  # another film to make is no reason to hurry
    assert read.next_steps() == 1024
    assert sleeper.is_alive()

    os.write(pipe, f"{order}\n".encode())
    sleeper.join(60.0)
    assert not sleeper.is_alive()
