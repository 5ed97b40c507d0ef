"""What goes to the cluster with a job: its command, the files it names, and retro_ml if need be.

Nothing else of the folder it is submitted from: no runs, no .git, no secrets that lie about.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro_ml.cluster import job_entry
from retro_ml.cluster.node_checks import versions_here

ENTRY = "job_entry.py"
FILE_FLAG = "--config"
FILE_ENDINGS = (".yaml", ".yml", ".json")


def take_files(words: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """A command as the job's folder lets it be read, and the files to put there.

    Args:
        words: a command of retro-ml. What follows --config, and each word that looks like a YAML
            or JSON file and is one, is shipped under a name made of its contents and its own.

    Returns:
        The words with the new names, and the files by them.
    """
    files: dict[str, Path] = {}
    changed: list[str] = []
    after_flag = False
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        named = after_flag or flag == FILE_FLAG or value.lower().endswith(FILE_ENDINGS)
        after_flag = word == FILE_FLAG
        path = Path(value)
        if named and value and os.path.isfile(path):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            value = f"{digest[:8]}-{path.name}"
            files[value] = path
        changed.append(flag + equals + value)
    return changed, files


def build_entrypoint(words: Sequence[str], *, ship: bool) -> str:
    """The shell's line that the job is: always the same for the same words."""
    # What is shipped need not be installed there.
    names = ("Python", "ray") if ship else ("Python", "ray", "retro_ml")
    versions = {name: version for name, version in versions_here().items() if name in names}
    return f"exec python {ENTRY} {shlex.quote(json.dumps(versions))} {shlex.join(words)}"


def pack(folder: Path, files: dict[str, Path], *, ship: bool) -> dict[str, Any]:
    """Copies what the job needs into an empty folder; Ray's runtime_env that ships it from there.

    Args:
        folder: for the time until the job is submitted.
        files: by the names that the job's words have for them.
        ship: retro_ml too.
    """
    work = folder / "work"
    work.mkdir()
    shutil.copyfile(job_entry.__file__, work / ENTRY)
    for name, path in files.items():
        shutil.copyfile(path, work / name)
    runtime_env: dict[str, Any] = {"working_dir": str(work)}
    if ship:
        package = folder / "retro_ml"
        source = Path(__file__).parents[1]
        shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
        runtime_env["py_modules"] = [str(package)]
    return runtime_env
