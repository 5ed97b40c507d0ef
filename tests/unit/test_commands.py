"""What all commands do alike."""

import subprocess
import sys
from pathlib import Path

import pytest

from retro_ml.cli import COMMANDS

pytestmark = pytest.mark.unit

INTERRUPTS = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("word", COMMANDS)
@pytest.mark.parametrize("is_script", [True, False])
def test_ctrl_c_while_a_command_is_importing(word: str, is_script: bool, tmp_path: Path) -> None:
    """In place of the real ones: every command needs one of them before it reads its call."""
    for name in ("pydantic", "yaml"):
        (tmp_path / f"{name}.py").write_text(INTERRUPTS)
    script = Path(sys.executable).with_name("retro-ml")
    module = [sys.executable, "-m", COMMANDS[word][0]]
    command = [str(script), word] if is_script else module

    done = subprocess.run(
        [*command, "--help"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_other_faults_are_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("raise RuntimeError('not this time')\n")

    done = subprocess.run(
        [sys.executable, "-m", "retro_ml.list"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: not this time"
    assert "Traceback" in done.stderr
