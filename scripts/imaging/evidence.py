"""What a trial looks at: files, layers, logs, checkpoints; and secrets that it plants."""

from __future__ import annotations

import json
import secrets
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT_S = 900.0


class Failed(AssertionError):
    """A check did not hold; the message says what was seen."""


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Raises: Failed after a while."""
    end_s = time.monotonic() + LIMIT_S
    while not happened():
        if time.monotonic() > end_s:
            raise Failed(what)
        time.sleep(0.5)


def plant_secrets() -> dict[str, str]:
    """Keys and tokens as they would be there, which must appear nowhere."""
    return {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def find_in_files(folder: Path, values: Sequence[str]) -> None:
    """Raises: Failed where one of `values` stands in a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for value in values:
                if value.encode() in content:
                    raise Failed(f"{path} has a planted secret")


def find_in_layer(image: tarfile.TarFile, member: tarfile.TarInfo, values: Sequence[str]) -> None:
    """Raises: Failed where one of `values` stands in an image's layer."""
    longest = max(map(len, values), default=0)
    file = image.extractfile(member)
    kept = b""
    while file is not None and (block := file.read(1 << 24)):
        content = kept + block
        if any(value.encode() in content for value in values):
            raise Failed(f"the layer {member.name} has a planted secret")
        kept = content[-longest:]


def newest_checkpoint(run: Path) -> int:
    """Agent steps of the newest whole checkpoint, 0 without."""
    found = run.glob("checkpoints/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def describe_checkpoint(run: Path) -> str:
    """Where a run can go on; it must be where it stopped. Raises: Failed."""
    steps, stopped = newest_checkpoint(run), read_status(run)["step"]
    expect(steps, stopped)
    return f"checkpoint at {steps:,} agent steps, where it stopped"


def read_status(run: Path) -> dict[str, Any]:
    """status.json."""
    status: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    return status


def wait_for_line(path: Path, words: str) -> str:
    """The first line with `words`. Raises: Failed after a while."""
    found: list[str] = []

    def has_line() -> bool:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found[:] = [line for line in lines if words in line]
        return bool(found)

    wait_until(has_line, f"no line with {words!r} in {path}")
    return found[0]


def expect(seen: object, wanted: object, more: str = "") -> None:
    """Raises: Failed."""
    if seen != wanted:
        raise Failed(f"{seen!r} instead of {wanted!r}\n{more}")
