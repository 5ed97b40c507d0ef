"""The game in a terminal: a real pseudo-terminal, read as a terminal would."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from retro_ml.core.artifacts.model_archive import save_model_archive
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.integration

LEFT_AS_IT_WAS = "\x1b[0m\x1b[?25h\x1b[?1049l"
WALL = "38;2;142;142;142"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model.zip that has learned nothing."""
    torch.manual_seed(0)
    path = tmp_path / "model.zip"
    weights = {name: tensor.numpy() for name, tensor in ActorCriticNetwork(4).state_dict().items()}
    config = ExperimentConfig(game_id="breakout")
    save_model_archive(path, weights=weights, config_json=config.model_dump_json(), metadata={})
    return path


def watch(
    model: Path, *, until: str, signum: int | None, size: tuple[int, int] = (40, 100)
) -> tuple[int, str]:
    """Runs it in a terminal of these lines and columns; its exit code and all that it wrote."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    names = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "retro_ml.watch", str(model), "--live"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=names | {"TERM": "xterm"}
    )
    os.close(follower)
    written = b""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if not select.select([leader], [], [], 0.1)[0]:
            continue
        try:
            written += os.read(leader, 65_536)
        except OSError:  # Linux's way to say that nobody has it open any more
            break
        if signum is not None and until.encode() in written:
            process.send_signal(signum)
            signum = None
    os.close(leader)
    return process.wait(timeout=30), written.decode(errors="replace")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_is_drawn_and_the_terminal_left_as_it_was(model: Path, signum: int) -> None:
    code, written = watch(model, until="value", signum=signum)

    assert code == 128 + signum
    assert WALL in written
    assert "▀" in written
    assert "score 0   lives 5" in written
    assert written.rstrip().endswith(LEFT_AS_IT_WAS)
    assert "Traceback" not in written


def test_a_terminal_that_is_too_small(model: Path) -> None:
    code, written = watch(model, until="", signum=None, size=(10, 30))

    assert code == 3
    assert "the terminal has 30 columns and 10 lines -> make it at least 40 x 17" in written
    assert "\x1b" not in written
