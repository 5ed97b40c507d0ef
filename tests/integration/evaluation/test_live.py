"""The game live: in a real pseudo-terminal, read as a terminal would, and in a real window."""

import fcntl
import importlib.util
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageGrab

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
    unwanted = ("COLUMNS", "LINES", "DISPLAY")
    names = {name: value for name, value in os.environ.items() if name not in unwanted}
    command = [sys.executable, "-m", "retro_ml.watch", str(model), "--live"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=names | {"TERM": "xterm"}
    )
    os.close(follower)
    written = b""
    deadline_s = time.monotonic() + 240
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
    return process.wait(timeout=240), written.decode(errors="replace")


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
    assert "the terminal has 30 columns and 10 lines, at least 40 x 17 are needed" in written
    assert "\x1b" not in written


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A screen in memory that windows can be opened on."""
    if shutil.which("Xvfb") is None or importlib.util.find_spec("tkinter") is None:
        pytest.skip("no Xvfb or no tkinter here")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as numbers:
        name = f":{numbers.readline().strip()}"
    monkeypatch.setenv("DISPLAY", name)
    yield name
    server.terminate()
    server.wait()


def see(display: str) -> np.ndarray:
    """What is on the screen: `[768, 1024, 3] uint8`."""
    return np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))


WINDOW = """
import sys
import numpy as np
from PIL import ImageGrab
from retro_ml.evaluation.window import WindowScreen

picture = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
with WindowScreen(scale=2, status_lines=2) as screen:
    screen.draw(picture, ["score 0", "> fire 0.25"])
    screen.pause(0.3)
    seen = np.asarray(ImageGrab.grab().convert("RGB"))
    assert not screen.closed
    blocks = picture.repeat(2, axis=0).repeat(4, axis=1)
    top, left = np.argwhere((seen == blocks[0, 0]).all(axis=2))[0]
    assert (seen[top : top + 420, left : left + 640] == blocks).all()
    below = seen[top + 420 : top + 480, left : left + 640]
    assert (below.max(axis=2) > 200).any()  # light letters
    screen._root.focus_force()
    screen._root.event_generate(sys.argv[1])
    screen.pause(30)
    assert screen.closed
"""


@pytest.mark.parametrize("key", ["<Escape>", "q"])
def test_a_window_shows_every_pixel_as_a_block_of_its_colour_until_a_key(
    display: str, key: str
) -> None:
    """In a process of its own: one that has lost its X server is ended by Xlib."""
    done = subprocess.run(
        [sys.executable, "-c", WINDOW, key], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert not see(display).any()  # it is gone


def test_a_game_in_a_window(display: str, model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "retro_ml.watch", str(model), "--live", "--scale", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not (see(display) == 142).all(axis=2).any() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)

    assert time.monotonic() < deadline_s
    assert (process.returncode, out) == (130, "")


def test_a_display_that_is_not_there(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retro_ml.watch", str(model), "--live"],
        env=os.environ | {"DISPLAY": ":12345"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "no window can be opened (couldn't connect to display" in line
