"""Checkpoint folders on disk: written whole or not at all, proved before they are read.

A checkpoint is a folder `step-N` whose `manifest.json` names every file that belongs to it with
size and sha256. It is built under another name, flushed to disk, and renamed once the manifest,
written last, is there. Files outside the folder that several checkpoints share (DQN's replay) are
named in the manifest by their path relative to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_STEP_NAME = re.compile(r"step-(\d+)")
_DAMAGED = "damaged-"


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or not one of ours."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A folder that bears a checkpoint's name; whether it is whole, `verify_checkpoint` tells."""

    agent_steps: int
    path: Path


def save_checkpoint_folder(
    target: Path, write: Callable[[Path], Sequence[Path]], *, facts: dict[str, Any]
) -> None:
    """Makes `target` with what `write` puts into the folder it is given.

    Args:
        target: the folder to make; one that is there already is replaced.
        write: returns the files outside of the folder that belong to the checkpoint too.
        facts: plain values to stand in the manifest.

    Raises:
        OSError: the disk is full or the like; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        shared = write(building)
        files = sorted(path for path in building.rglob("*") if path.is_file())
        listed = {path.relative_to(building).as_posix(): _describe(path) for path in files}
        listed |= {
            Path(os.path.relpath(path, target)).as_posix(): _describe(path) for path in shared
        }
        manifest = {"format_version": FORMAT_VERSION, **facts, "files": listed}
        manifest_path = building / MANIFEST_NAME
        manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in [*files, *shared, manifest_path, building]:
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(building, target)
        _flush(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the manifest and proves every file against it.

    Returns:
        The manifest.

    Raises:
        CheckpointError: says which file is missing or not what was written.
    """
    manifest = load_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing")
        if _describe(file) != expected:
            raise CheckpointError(f"{path}: {name} is not what was saved (size or sha256 differs)")
    return manifest


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, its form checked.

    Raises:
        CheckpointError: there is none, or it is not one that this version reads.
    """
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST_NAME}, so no complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {MANIFEST_NAME} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path}: {MANIFEST_NAME} is not a checkpoint's manifest")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {manifest.get('format_version')}; "
            f"this version reads format {FORMAT_VERSION}"
        )
    return manifest


def find_checkpoints(root: Path) -> list[CheckpointFolder]:
    """The `step-N` folders under `root`, oldest first; none where `root` does not exist."""
    if not root.is_dir():
        return []
    matches = ((_STEP_NAME.fullmatch(path.name), path) for path in root.iterdir())
    found = [CheckpointFolder(int(match[1]), path) for match, path in matches if match]
    return sorted(found, key=lambda folder: folder.agent_steps)


def choose_checkpoint(root: Path) -> tuple[CheckpointFolder | None, list[str]]:
    """The newest checkpoint under `root` that is whole, and what is wrong with newer ones.

    Those are renamed to `damaged-step-N`, out of the way of what is saved next; the next save
    removes them.
    """
    faults = []
    for folder in reversed(find_checkpoints(root)):
        try:
            verify_checkpoint(folder.path)
        except CheckpointError as error:
            faults.append(str(error))
            aside = folder.path.with_name(f"{_DAMAGED}{folder.path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder.path, aside)
        else:
            return folder, faults
    return None, faults


def prune_checkpoints(root: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` and the best, then the files that none of those names.

    The best has the highest `score` in its manifest, the newest of them where several have. The
    remains of a save that was killed, and damaged checkpoints, go too; so no other save may be
    under way.
    """
    for unfinished in [*root.glob(".step-*"), *root.glob(f"{_DAMAGED}*")]:
        shutil.rmtree(unfinished)
    manifests = {}
    for folder in find_checkpoints(root):
        try:
            manifests[folder] = load_manifest(folder.path)
        except CheckpointError:
            shutil.rmtree(folder.path)
    kept = set(list(manifests)[-keep:])
    scored = [folder for folder in manifests if manifests[folder].get("score") is not None]
    if scored:
        kept.add(max(scored, key=lambda folder: (manifests[folder]["score"], folder.agent_steps)))
    for folder in manifests.keys() - kept:
        shutil.rmtree(folder.path)
    named = {
        (folder.path / name).resolve() for folder in kept for name in manifests[folder]["files"]
    }
    for directory in (path for path in root.iterdir() if path.is_dir()):
        if _STEP_NAME.fullmatch(directory.name) or directory.name.startswith("."):
            continue
        for path in directory.rglob("*"):
            if path.is_file() and path.resolve() not in named:
                path.unlink()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
