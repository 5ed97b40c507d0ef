"""training.log: who writes where during a run, and that all is as before afterwards."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.engine.run_log import LOGGER_NAMES, RunLog

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _loggers_are_given_back() -> Iterator[None]:
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in LOGGER_NAMES]
        logs = [
            (log.handlers.copy(), log.propagate, log.level, sorted(vars(log))) for log in loggers
        ]
        return [logs, warnings.showwarning]

    before = state()
    yield
    assert state() == before


def test_everything_goes_to_the_file_and_our_warnings_to_the_user(tmp_path: Path) -> None:
    shown: list[str] = []
    with RunLog(tmp_path / "training.log", notice=shown.append):
        logging.getLogger("retro_ml.run").info("step 10")
        logging.getLogger("retro_ml.cluster").warning("no GPU found")
        logging.getLogger("retro_ml.engine").error("told by the summary")
        logging.getLogger("ray.tune").info("chatter")
        logging.getLogger("ray.rllib.algorithms").warning("more chatter")
        warnings.warn("old function", DeprecationWarning, stacklevel=1)

    lines = (tmp_path / "training.log").read_text().splitlines()
    assert shown == ["warning: no GPU found"]
    assert lines[0].endswith("+00:00 INFO retro_ml.run: step 10")
    assert [line.split(": ", 1)[1] for line in lines[1:5]] == [
        "no GPU found",
        "told by the summary",
        "chatter",
        "more chatter",
    ]
    assert "old function" in lines[5]


@pytest.mark.parametrize("before", ["", "whole\n", "torn by a kil"])
def test_a_torn_last_line_stays_alone(tmp_path: Path, before: str) -> None:
    path = tmp_path / "training.log"
    path.write_text(before)
    with RunLog(path, notice=print):
        logging.getLogger("retro_ml.run").info("step 10")
    *lines, last = path.read_text().splitlines()
    assert lines == before.splitlines()
    assert last.endswith("INFO retro_ml.run: step 10")


def test_handlers_that_ray_adds_in_between_print_nothing_until_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_logger, late = logging.getLogger("ray"), logging.StreamHandler()
    monkeypatch.setattr(ray_logger, "handlers", [])  # another test may have imported Ray
    with RunLog(tmp_path / "training.log", notice=print):
        ray_logger.addHandler(late)
        for handler in ray_logger.handlers:  # as ray.init does
            handler.setFormatter(logging.Formatter("OTHER %(message)s"))
        ray_logger.warning("during")
    ray_logger.warning("afterwards")
    ray_logger.removeHandler(late)

    assert capfd.readouterr().err == "afterwards\n"
    log = (tmp_path / "training.log").read_text()
    assert "during" in log
    assert "OTHER" not in log


def test_a_file_that_cannot_be_written_is_an_error_not_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    for name, reason in (("full.log", "No space left"), ("gone/a.log", "No such file")):
        log = RunLog(tmp_path / name, notice=print)
        with log:
            logging.getLogger("retro_ml.run").info("step 10")
        assert reason in str(log.error)
    assert capfd.readouterr() == ("", "")


def test_a_bug_in_a_log_call_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "training.log", notice=print) as log:
        logging.getLogger("retro_ml.run").info("step %d", "x")
    assert log.error is None
    assert "Logging error" in capfd.readouterr().err
