"""A short fault drill: real runs, killed at random, taken up again by the same command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

ROOT = Path(__file__).parents[2]


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    arguments = ["--kills", "2", "--only", "A2C", "--out", str(tmp_path)]
    drill = subprocess.run(
        [sys.executable, "-P", "-m", "drilling", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert drill.returncode == 0, drill.stdout + drill.stderr
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert sum(len(one["kills"]) for one in rounds) >= 2
    for one in rounds:
        assert (one["rows_lost"], one["rows_doubled"], one["left_behind"]) == (0, 0, [])
        assert one["rows"] > 0
        assert one["same_order"]
        assert one["weights_equal"]
