"""`retro-ml watch`: what it refuses, with which words and exit code; no game is played."""

import subprocess
import sys
from pathlib import Path

import pytest

from retro_ml.watch import main

pytestmark = pytest.mark.unit


def test_all_faults_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--episodes", "0", "--scale=11", "--vido=x.mp4"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: --vido: unknown -> did you mean --video?",
        "error: MODEL: missing -> a model.zip, or the folder of a run that has one",
        "error: episodes: 0 -> a whole number from 1 up to 10,000",
        "error: scale: 11 -> a whole number from 1 up to 10",
        "hint: retro-ml watch --help lists every option",
    ]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["nothing"], "MODEL: nothing -> no such file or folder"),
        (["d.mp4"], "MODEL: d.mp4 -> this folder has no model.zip: give the folder of a run that"),
        (["model.zip", "--video", "x.avi"], "--video: x.avi -> a file that ends in .mp4"),
        (["model.zip", "--video", "a/x.mp4"], "--video: a/x.mp4 -> there is no folder a; make it"),
        (["model.zip", "--video", "d.mp4"], "--video: d.mp4 -> is a folder; name a file in it"),
        (["model.zip", "--video", "n" * 300 + ".mp4"], ".mp4 -> File name too long"),
        (["model.zip", "--live", "--video", "x.mp4"], "--video: with --live nothing is filmed"),
        (["model.zip", "other.zip"], "other.zip: unexpected -> one model at a time"),
        (["n" * 300], "cannot be read: File name too long"),
        (["model.zip"], "model.zip is no usable model.zip: the zip is damaged"),
    ],
)
def test_bad_input(
    words: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.zip").write_text("no zip")
    Path("d.mp4").mkdir()

    assert main(words) == 2

    lines = capsys.readouterr().err.splitlines()
    assert fault in lines[0]
    assert len(lines) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.mp4", "model.zip"]


def test_live_needs_a_window_or_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    model = tmp_path / "model.zip"
    model.write_text("never looked at")

    assert main([str(model), "--live"]) == 3

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --live: stdout is not a terminal, and no window can be opened (no display name"
    )
    assert line.endswith(
        " -> run it in a terminal or on a desktop, or leave out --live to make a film"
    )


def test_live_without_tkinter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tkinter", None)
    model = tmp_path / "model.zip"
    model.write_text("never looked at")

    assert main([str(model), "--live"]) == 3

    assert "no window can be opened (Python has no tkinter here" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from retro_ml.watch import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'av', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert "--no-strip" in done.stdout
