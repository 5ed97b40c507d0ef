"""How the process that films holds back while training goes on; nothing is filmed here."""

import os
import threading
from pathlib import Path

import pytest

from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.engine.milestone_films import ENOUGH, JOIN
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.envs.screens import ScreensDiffer
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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ScreensDiffer("the emulators differ"), "the emulators differ"),
        (ArchiveError("6 actions\nare too many"), "6 actions\\nare too many"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_is_odd_about_a_film_the_next_one_is_made(
    error: Exception,
    words: str,
    orders: tuple[Orders, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read, pipe = orders
    filmed: list[int] = []

    def film(paths: RunPaths, agent_steps: int, orders: Orders) -> None:
        orders.unfinished = tmp_path / "half"
        if agent_steps == 10:
            raise error
        filmed.append(agent_steps)

    def join(paths: RunPaths) -> None:
        raise RuntimeError("they do not fit")

    monkeypatch.setattr(film_worker, "step_back", lambda: None)
    monkeypatch.setattr(film_worker, "Orders", lambda stream: read)
    monkeypatch.setattr(film_worker, "_film", film)
    monkeypatch.setattr(film_worker, "_join", join)
    paths = RunPaths(output_dir=str(tmp_path), experiment_id="run")
    paths.videos_dir.mkdir(parents=True)
    paths.milestone_weights_path(10).touch()
    os.write(pipe, b"10\n20\njoin\n")

    assert film_worker.main(str(tmp_path / "run")) == 0

    assert filmed == [20]
    assert capsys.readouterr().out.splitlines() == [
        f"warning: no film of the agent after 10 agent steps: {words}",
        "warning: no film of all milestones: they do not fit",
    ]
    assert read.unfinished is None
    assert not paths.milestone_weights_path(10).exists()
