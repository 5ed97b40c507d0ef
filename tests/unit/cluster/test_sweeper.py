"""What is swept when an embedded Ray's driver was killed; processes are faked."""

import io
import json
import signal
from pathlib import Path

import pytest

from retro_ml.cluster import sweeper

pytestmark = pytest.mark.unit


def test_a_process_that_is_gone_meanwhile_keeps_nothing_else_from_being_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def kill(pid: int, signum: int) -> None:
        if pid == 1001:
            raise ProcessLookupError
        ended.append((pid, signum))

    known = {"1001": 7, "1002": 7, "1003": 7}
    monkeypatch.setattr(sweeper.sys, "stdin", io.StringIO(json.dumps(known) + "\n"))
    monkeypatch.setattr(sweeper.time, "sleep", lambda seconds: None)
    # The last is another process of the same number.
    stats = {1001: (1, 7), 1002: (1, 7), 1003: (1, 8)}
    monkeypatch.setattr(sweeper, "_read_stats", lambda: stats)
    monkeypatch.setattr(sweeper.os, "kill", kill)
    folder = tmp_path / "ray"
    folder.mkdir()
    sweeper.main(str(folder))
    assert ended == [(1002, signal.SIGKILL)]
    assert not folder.exists()
