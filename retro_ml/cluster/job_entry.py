"""The first process of a submitted job, on the cluster's head.

It looks whether the words can be run there, runs them, and ends with their exit code. It is shipped
with the job as a file of its own, since it has to say so where retro_ml is missing; Python's
standard library is all it uses. What it is given: the submitter's versions as JSON, then the words
of `retro-ml`.

Ray stops a job with SIGTERM to each of its processes and notes no exit code then (2.60). So this
process outlives the signal, and prints the exit code as the log's last line.

A command that was given hours ends with exit code 0 when they are over, as one does that is at its
end. Which of the two it was, the command leaves in a file, and this process tells in the log's last
line: there the submitter finds it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

EXIT_LINE = "retro_ml: exit code "
LEFT_LINE = "retro_ml: there is work left; the same command goes on with it"
NOTE_VARIABLE = "RETRO_ML_JOB_NOTE"
"""Of the command's environment: the file that it makes where there is work left."""
CANNOT = 3


def main(versions: dict[str, str], words: list[str]) -> int:
    """Runs `python -m retro_ml.WORD ...`; its exit code, or 3 where that is not possible."""
    faults = find_faults(versions)
    for fault in faults:
        print(f"error: {fault}", flush=True)
    if faults:
        return CANNOT
    stopped: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        # A handler and not SIG_IGN, which the child would inherit.
        signal.signal(signum, lambda number, frame: stopped.append(number))
    # -P: what lies in the job's folder is nobody's module.
    command = [sys.executable, "-P", "-m", f"retro_ml.{words[0]}", *words[1:]]
    # A copy of the job's files: Ray takes the folder away when the last worker of a node with it
    # ends, also from under other nodes that share the machine (2.60).
    with tempfile.TemporaryDirectory(prefix="retro_ml-job-") as folder:
        for path in Path().iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        note = Path(folder, ".work-left")
        environment = {**os.environ, NOTE_VARIABLE: str(note)}
        with subprocess.Popen(command, cwd=folder, env=environment) as child:
            if stopped:  # before there was a child to hear it
                child.send_signal(signal.SIGTERM)
            code = child.wait()
        work_left = note.exists()
    code = 128 - code if code < 0 else code
    if stopped:
        print(f"{EXIT_LINE}{code}", flush=True)
    elif work_left:
        print(LEFT_LINE, flush=True)
    return code


def note_work_left() -> None:
    """Lets the job say that there is work left, where this process is the command of one."""
    if NOTE_VARIABLE in os.environ:
        Path(os.environ[NOTE_VARIABLE]).touch()


def find_faults(versions: dict[str, str]) -> list[str]:
    """What differs from the submitter's side, each in one line with its remedy."""
    if importlib.util.find_spec("retro_ml") is None:
        return [
            f"retro_ml is not installed for {sys.executable} on the cluster -> use an image with "
            "it, install it on each node, or ship it (--ship)"
        ]
    faults = []
    for name, theirs in versions.items():
        here = _version_here(name)
        if here != theirs:
            faults.append(
                f"{name} is {here} on the cluster and {theirs} where the job was submitted -> "
                "make them equal"
            )
    return faults


def _version_here(name: str) -> str:
    if name == "Python":
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
