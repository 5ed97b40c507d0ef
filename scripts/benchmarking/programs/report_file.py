"""How a program tells the measurer of itself: a file of JSON lines.

A mark is the end of an iteration, `{"agent_steps", "time_s"}` (Unix time); all
else are facts about the program, `{"facts": {...}}`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

PATH_VARIABLE = "RETRO_ML_BENCHMARK_REPORT"
"""Names the file; set by the measurer."""


class ReportFile:
    """The file that the environment names."""

    def __init__(self) -> None:
        self._file = open(os.environ[PATH_VARIABLE], "a", encoding="utf-8")  # noqa: SIM115

    def mark(self, agent_steps: int) -> None:
        """An iteration has just ended, after so many agent steps in all."""
        self._write({"agent_steps": int(agent_steps), "time_s": time.time()})

    def facts(self, **facts: Any) -> None:
        """What else is worth knowing; JSON's types."""
        self._write({"facts": facts})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
