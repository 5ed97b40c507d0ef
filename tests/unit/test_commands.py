"""What all commands do alike."""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, TextIO

import pytest

from retro_ml import doctor, evaluate, export
from retro_ml.cli import COMMANDS
from retro_ml.cluster import machine_checks
from retro_ml.cluster.node_checks import Check
from retro_ml.core.artifacts import given_runs
from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.experiments.command import Terminated, stoppable, tell_stopped
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


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back after the test."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(signum) for signum in signals]
    yield
    for signum, handler in zip(signals, before, strict=True):
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_of_a_command(
    signum: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fetched = []

    def fetch(remote: RemoteFolder, name: str, target: Path) -> None:
        target.touch()
        fetched.extend(tmp_path.iterdir())
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(RemoteFolder, "download", fetch)
    assert evaluate.main(["s3://runs/x"]) == code
    assert capsys.readouterr().err == "stopped: no result was written\n"
    assert len(fetched) == 1
    assert list(tmp_path.iterdir()) == []
    # The next one ends the process, whatever it waits for.
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_a_command_says_nothing_of() -> None:
    with pytest.raises(SystemExit) as ended, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_signals_are_heeded_for_the_time_of_a_command() -> None:
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(signum) for signum in signals]
    with stoppable():
        assert [signal.getsignal(signum) for signum in signals] != before
    assert [signal.getsignal(signum) for signum in signals] == before


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_is_ignored_stays_so() -> None:
    """As of a command that a shell began with `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)


def test_what_an_error_says_of_a_stop_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell_stopped(Terminated("it is kept"), "nothing is kept") == 143
    assert tell_stopped(KeyboardInterrupt(), "nothing is kept") == 130
    assert capsys.readouterr().err == "stopped: it is kept\nstopped: nothing is kept\n"


def test_an_endpoint_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error ends the fetching, as Ctrl-C does, and neither waits for the others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("config.json", "status.json", "metrics.csv")
    monkeypatch.setattr(RemoteFolder, "list_times", lambda remote: dict.fromkeys(names, 0.0))
    waited_for: list[str] = []
    hangs, asked = threading.Event(), threading.Barrier(len(names))

    def fetch(remote: RemoteFolder, name: str, target: Path) -> None:
        asked.wait()
        if name == "status.json":
            raise given_runs.StorageError("no answer")
        hangs.wait(5)
        waited_for.append(name)

    monkeypatch.setattr(RemoteFolder, "download", fetch)
    fetching = given_runs.open_runs(["s3://runs/x"], word="DIR", needed=lambda name: True)
    with pytest.raises(given_runs.StorageError, match="no answer"), fetching:
        pass
    assert waited_for == []
    assert list(tmp_path.iterdir()) == []
    hangs.set()


@pytest.mark.parametrize("word", ["list", "compare"])
def test_ctrl_c_while_runs_are_read_is_one_line(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **named: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("nobody listened")

    module = importlib.import_module(f"retro_ml.{word}")
    monkeypatch.setattr(module, "open_runs" if word == "list" else "_compare", interrupt)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert module.main(["a", "b"][: 1 if word == "list" else 2]) == 130
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == ("", [told.err.strip()])
    assert told.err.startswith("stopped: nothing was ")
