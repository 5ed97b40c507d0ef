"""The JSON: every sample of every run, by group; written after each run, so that none is lost."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarking.groups import Group
from benchmarking.watch import Watched

Results = dict[str, Any]


def build_results(*, machine: dict[str, Any], versions: dict[str, Any], mode: str) -> Results:
    """Nothing measured yet."""
    return {"machine": machine, "versions": versions, "mode": mode, "groups": {}, "summary": []}


def begin_group(results: Results, group: Group, *, commit: str | None) -> None:
    """Forgets what was known of the group."""
    results["groups"][group.name] = {
        "meaning": group.meaning,
        "commit": commit,
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": [],
    }


def add_run(results: Results, group: Group, watched: Watched) -> None:
    """One more run of one of its programs."""
    results["groups"][group.name]["runs"].append(asdict(watched))


def keep_other_groups(results: Results, path: Path, *, measured_now: set[str]) -> str | None:
    """Takes over the groups of an earlier file, but for those that are measured now.

    Returns:
        Why not, where the file is not of this machine, these versions and this mode.
    """
    if not path.exists():
        return None
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key in ("machine", "versions", "mode"):
        if earlier[key] != results[key]:
            return f"{path} is left aside: its {key} is another"
    kept = {name: group for name, group in earlier["groups"].items() if name not in measured_now}
    results["groups"] |= kept
    return None


def save_results(results: Results, path: Path) -> None:
    """Replaces the file in one step."""
    save_text(json.dumps(results, indent=1, allow_nan=False) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Likewise, for any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
