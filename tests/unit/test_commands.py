"""What all commands do alike."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from retro_ml import doctor, export
from retro_ml.cli import COMMANDS
from retro_ml.cluster import machine_checks
from retro_ml.cluster.node_checks import Check
from retro_ml.evaluation import agent
from retro_ml.evaluation import export as exporting

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


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has seen enough."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_doctor_whose_reader_has_seen_enough(
    words: list[str], unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("one", "well"), Check("two", "well")]
    monkeypatch.setattr(machine_checks, "check_machine", lambda config: checks)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "stdout", unread)
    assert doctor.main(words) == 0


def test_an_export_whose_reader_has_seen_enough(
    unread: TextIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exporting.Export(
        path=tmp_path / "x", num_observations=1, largest_difference=0.0, signature="x"
    )
    monkeypatch.setattr(agent, "Agent", SimpleNamespace(load=lambda path: None))
    monkeypatch.setattr(exporting, "export_agent", lambda agent, to, output: made)
    (tmp_path / "model.zip").touch()
    monkeypatch.setattr(sys, "stdout", unread)
    assert export.main([str(tmp_path / "model.zip"), "--to", "onnx"]) == 0
    unread.flush()
