"""What the user sees: lines, panel, nothing; and numbers in words."""

import io
import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Console

from retro_ml.core.engine.progress import LiveProgress, PlainProgress, Progress, build_progress
from retro_ml.core.engine.progress_text import RunView, duration, score_words, summary_lines
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(
        game_id="breakout", seed=7, total_timesteps=1000, output_dir=str(tmp_path)
    )


def result_of(config: ExperimentConfig, **fields: Any) -> ExperimentResult:
    values: dict[str, Any] = {
        "success": True,
        "training_time": 81.0,
        "metrics_path": config.metrics_path,
        "model_path": config.model_path,
        "log_path": config.log_path,
        "final_reward": 1.84,
        "error": None,
        "experiment_id": config.experiment_id,
        "experiment_dir": config.experiment_dir,
        "state": "completed",
        "agent_steps": 1024,
        "games": 152,
        "exit_code": 0,
    }
    return ExperimentResult(**{**values, **fields})


def play(progress: Progress, config: ExperimentConfig, *, until: int = 1000) -> None:
    def tell(kind: EventType, **data: Any) -> None:
        progress(MetricEvent.now(kind, config.experiment_id, data))

    tell(EventType.RUN_STARTED, from_step=0, device="cpu", precision="bf16")
    for step in range(10, until + 1, 10):
        tell(EventType.TRAINING_STEP, step=step, reward=2.0, games=3, steps_per_s=100.0)


def test_plain_lines_come_every_twentieth_part(config: ExperimentConfig) -> None:
    stream = io.StringIO()
    progress = build_progress(config, RunOptions(), stream)
    with progress:
        play(progress, config)
    progress.summarize(result_of(config))

    lines = stream.getvalue().splitlines()
    assert lines[0] == "PPO on breakout, 1,000 agent steps, seed 7"
    assert lines[1] == f"files: {config.experiment_dir}"
    assert lines[2] == "50 / 1,000 (5 %), 100 steps/s, score 2.0, mean of 3 games, 10 s left"
    assert len(lines[2:-3]) == 20
    assert lines[-3:] == [
        "done: PPO on breakout, 1,024 agent steps in 1 min 21 s",
        "score: 1.8, mean of the last 100 of 152 games",
        f"files: {config.experiment_dir}",
    ]


def test_plain_lines_come_every_ten_seconds_of_a_slow_run(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = PlainProgress(RunView(config), stream)
    for second in range(1, 31):
        clock[0] = second
        data = {"step": second, "reward": None, "steps_per_s": 1.0}
        progress(MetricEvent.now(EventType.TRAINING_STEP, config.experiment_id, data))

    assert stream.getvalue().splitlines() == [
        "10 / 1,000 (1 %), 1 steps/s, no game over yet, 16 min 30 s left",
        "20 / 1,000 (2 %), 1 steps/s, no game over yet, 16 min 20 s left",
        "30 / 1,000 (3 %), 1 steps/s, no game over yet, 16 min 10 s left",
    ]


def test_quiet_shows_nothing(config: ExperimentConfig) -> None:
    stream = io.StringIO()
    progress = build_progress(config, RunOptions(progress="quiet"), stream)
    with progress:
        play(progress, config)
        progress.notice("warning: x")
        progress.announce_stop()
    progress.summarize(result_of(config))
    assert stream.getvalue() == ""


def test_a_reader_that_went_away_does_not_end_the_training(config: ExperimentConfig) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w")  # noqa: SIM115
    with build_progress(config, RunOptions(), stream) as progress:
        play(progress, config)
        progress.announce_stop()
    progress.summarize(result_of(config))
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_letters_beyond_the_streams_encoding_are_escaped(config: ExperimentConfig) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainProgress(RunView(config), stream).notice("Ordner: /tmp/Läufe")
    assert raw.getvalue() == b"Ordner: /tmp/L\\xe4ufe\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_panel_has_three_lines_of_any_width(
    config: ExperimentConfig, encoding: str, width: int
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    progress = LiveProgress(RunView(config), console)
    play(progress, config, until=410)

    for stopping in (False, True):
        if stopping:
            progress.announce_stop()
        raw.truncate(0)
        console.print(progress._render())
        stream.flush()
        text = raw.getvalue().replace(b"\0", b"").decode(encoding)
        lines = text.splitlines()
        assert len(lines) == 3
        assert all(len(line) <= width for line in lines)
        assert "PPO on breakout" in lines[0]
        assert "410 / 1,000 (41 %)" in lines[1]
        assert ("stopping" if stopping else "100 steps/s") in lines[2]


@contextmanager
def terminal() -> Iterator[tuple[TextIO, list[bytes]]]:
    """A terminal to write to, and what arrived there once the block is left."""
    controller, terminal_side = pty.openpty()
    shown: list[bytes] = []

    def read_all() -> None:
        with suppress(OSError):  # the other side is closed
            while data := os.read(controller, 4096):
                shown.append(data)

    reader = threading.Thread(target=read_all)
    reader.start()
    with open(terminal_side, "w") as stream:
        yield stream, shown
    reader.join(timeout=10)
    os.close(controller)


def test_a_terminal_gets_the_panel_notices_and_the_summary(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal() as (stream, raw):
        progress = build_progress(config, RunOptions(), stream)
        assert isinstance(progress, LiveProgress)
        with progress:
            play(progress, config, until=500)
            progress.notice("warning: [no] GPU")
            progress._live.refresh()
        progress.summarize(result_of(config, state="failed", error="disk full"))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(raw).decode())

    assert "500 / 1,000 (50 %)" in shown
    assert "warning: [no] GPU" in shown
    assert "failed  disk full" in shown
    assert str(config.log_path) in shown.replace("\r\n", "")


def test_a_dumb_terminal_gets_lines(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as (stream, _):
        assert isinstance(build_progress(config, RunOptions(), stream), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
        (183_600, "2 d 03 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_scores_in_words() -> None:
    assert score_words(None, 0) == "no game over yet"
    assert score_words(1.0, 1) == "score 1.0, mean of 1 game"
    assert score_words(1234.56, 101) == "score 1,234.6, mean of the last 100 of 101 games"


def test_the_end_in_words(config: ExperimentConfig) -> None:
    config.experiment_dir.mkdir()
    config.model_path.touch()
    stopped = result_of(config, state="interrupted", error="stopped by SIGINT at 5 of 9")
    failed = result_of(config, state="failed", error="no cluster", agent_steps=0)

    assert summary_lines(stopped, title="t")[0] == ("stopped", "by SIGINT at 5 of 9")
    assert summary_lines(stopped, title="t")[-1] == ("model", str(config.model_path))
    assert [heading for heading, _ in summary_lines(failed, title="t")] == [
        "failed",
        "files",
        "log",
    ]
