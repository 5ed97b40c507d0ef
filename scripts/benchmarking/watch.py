"""Runs one program and watches it from outside: its first mark, its memory, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarking.marks import REPORT_FILE, Report
from benchmarking.processes import MARKER, ProcessFamily
from benchmarking.programs.report_file import PATH_VARIABLE

POLL_INTERVAL_S = 0.05
MEMORY_INTERVAL_S = 1.0
STOP_GRACE_S = 30.0
"""What a run may take to end after a signal: an iteration and a checkpoint."""
NOT_HANDED_ON = ("RAY_ADDRESS", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
"""Variables that would make one program's circumstances another's."""
FOLDER = "FOLDER"
"""Stands in a command for the folder that the program gets."""


@dataclass(frozen=True)
class Program:
    """One program and how to read it."""

    name: str
    arguments: list[str]
    """What comes after the interpreter; `FOLDER` is replaced."""
    read: Callable[[Path], Report]
    """Reads its report while it runs and ..."""
    read_finished: Callable[[Path], Report]
    """... when it has ended."""
    warmup_agent_steps: int = 0
    stop_at_first_mark: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 900.0


@dataclass
class Watched:
    """One program's run, as it goes into the JSON."""

    program: str
    repetition: int
    command: str
    warmup_agent_steps: int
    exit_code: int | None = None
    error: str | None = None
    first_mark_s: float | None = None
    """From the start until the first mark could be seen from outside."""
    watcher_cpu_s: float = 0.0
    """What watching took of the processors, beside the program."""
    processes: int = 0
    marks: list[Any] = field(default_factory=list)
    memory: list[Any] = field(default_factory=list)
    """`[Unix time, bytes]`, sum of PSS over all of its processes."""
    facts: dict[str, Any] = field(default_factory=dict)


def watch(program: Program, *, repetition: int, scratch: Path) -> Watched:
    """Runs a program to its end, in a new folder in `scratch`; a failure is told by `error`.

    However this is left, by an exception too, none of the program's processes is.
    """
    watched = Watched(
        program=program.name,
        repetition=repetition,
        command=" ".join(["python", *program.arguments]),
        warmup_agent_steps=program.warmup_agent_steps,
    )
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="program-", dir=scratch.resolve()) as name:
        folder = Path(name)
        value = uuid.uuid4().hex
        family = ProcessFamily(value)
        with open(folder / "output", "wb") as output:
            started_s, cpu_before_s = time.monotonic(), time.process_time()
            process = subprocess.Popen(
                [sys.executable, *(part.replace(FOLDER, name) for part in program.arguments)],
                env=_environment(program, folder, value),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                stopped = _follow(
                    process,
                    watched,
                    program=program,
                    family=family,
                    folder=folder,
                    started_s=started_s,
                )
                watched.watcher_cpu_s = round(time.process_time() - cpu_before_s, 3)
            finally:
                _end(process, family)
        _conclude(watched, program, folder, stopped=stopped, exit_code=process.returncode)
    return watched


def _environment(program: Program, folder: Path, value: str) -> dict[str, str]:
    inherited = {name: v for name, v in os.environ.items() if name not in NOT_HANDED_ON}
    own = {MARKER: value, PATH_VARIABLE: str(folder / REPORT_FILE)}
    return {**inherited, **own, "RAY_USAGE_STATS_ENABLED": "0", **program.environment}


def _follow(
    process: subprocess.Popen[bytes],
    watched: Watched,
    *,
    program: Program,
    family: ProcessFamily,
    folder: Path,
    started_s: float,
) -> str | None:
    """Returns when the process has ended or should: why, then."""
    memory_due_s = started_s
    while process.poll() is None:
        now_s = time.monotonic()
        if watched.first_mark_s is None and program.read(folder).marks:
            watched.first_mark_s = now_s - started_s
            if program.stop_at_first_mark:
                return "first mark"
        if now_s >= memory_due_s:
            count, size_bytes = family.measure()
            watched.processes = max(watched.processes, count)
            watched.memory.append([round(time.time(), 3), size_bytes])
            memory_due_s = now_s + MEMORY_INTERVAL_S
        if now_s - started_s > program.timeout_s:
            return f"not done after {program.timeout_s:g} s"
        time.sleep(POLL_INTERVAL_S)
    return None


def _end(process: subprocess.Popen[bytes], family: ProcessFamily) -> None:
    """Asks the program to stop if it has not, and ends whatever is left of it."""
    try:
        if process.poll() is None:
            family.find()  # known from now on, even when their parents are gone
            # Only the program itself: a signal to its daemons would make it fail.
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        family.kill()
        process.wait()


def _conclude(
    watched: Watched, program: Program, folder: Path, *, stopped: str | None, exit_code: int
) -> None:
    report = program.read_finished(folder)
    watched.marks = [list(mark) for mark in report.marks]
    watched.facts = report.facts
    watched.exit_code = exit_code
    if stopped == "first mark":
        return
    if stopped is not None or exit_code != 0:
        output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        last = [line for line in output.splitlines() if line.strip()][-3:]
        said = " | ".join(last).replace(str(folder), FOLDER)
        watched.error = f"{stopped or f'exit code {exit_code}'}: {said or 'it said nothing'}"
