"""Checkpoint folders on disk: written whole or not at all, proved before they are read.

A checkpoint is a folder `step-N` whose `manifest.json` names every file that belongs to it with
size and sha256. It is built under another name, flushed to disk, and renamed once the manifest,
written last, is there; one that a kill left between the two is renamed when it is looked for. Files
outside the folder that several checkpoints share (DQN's replay) are named in the manifest by their
path relative to it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.experiments.faults import as_line

MANIFEST_NAME = "manifest.json"
ADOPTED = "adopted"
"""In a manifest: true where the checkpoint is another run's, so its rows are not in metrics.csv."""
RANKS = ("evaluation", "score")
"""In a manifest, means of scores or null: in an evaluation of just this agent, in training."""
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 1024**2  # a segment of the replay takes 150, each checkpoint adds one
_STEP_NAME = re.compile(r"step-(\d+)")
_UNFINISHED_NAME = re.compile(r"\.(step-\d+)-.+")
_ASIDE = "aside-"
_ASIDE_NAME = re.compile(rf"{_ASIDE}step-(\d+)")
_LONGEST_NAME = 100  # characters of a file's name that are shown


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or not one of ours."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A folder that bears a checkpoint's name; whether it is whole, `verify_checkpoint` tells."""

    agent_steps: int
    path: Path


def save_checkpoint_folder(
    target: Path,
    write: Callable[[Path], Sequence[Path]],
    *,
    facts: dict[str, Any],
    known: Mapping[Path, dict[str, Any]] | None = None,
) -> None:
    """Makes `target` with what `write` puts into the folder it is given.

    Args:
        target: the folder to make; one that is there already is replaced.
        write: returns the files outside of the folder that belong to the checkpoint too.
        facts: plain values to stand in the manifest.
        known: `describe_file` of those of the files outside that `write` has just read anyway.

    Raises:
        ArtifactError: the disk is full or the like; nothing is left behind.
    """
    building = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    replaced = building.with_name(f"{building.name}.before")
    try:
        building.mkdir(parents=True)
        shared = write(building)
        files = sorted(path for path in building.rglob("*") if path.is_file())
        listed = {path.relative_to(building).as_posix(): describe_file(path) for path in files}
        for path in shared:
            described = (known or {}).get(path) or describe_file(path)
            listed[Path(os.path.relpath(path, target)).as_posix()] = described
        manifest = {"format_version": FORMAT_VERSION, **facts, "files": listed}
        manifest_path = building / MANIFEST_NAME
        manifest_path.write_text(_write_manifest(manifest), encoding="utf-8")
        folders = sorted({path.parent for path in [*files, *shared, manifest_path]})
        for path in [*files, *shared, manifest_path, *folders]:
            _flush(path)
        # Killed between the two, `finish_saves` goes on.
        if os.path.lexists(target):
            os.rename(target, replaced)
        os.rename(building, target)
        _flush(target.parent)
        remove_checkpoint(replaced)
    except OSError as error:
        raise ArtifactError.from_os_error(error, target) from error
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(target):
            with suppress(OSError):  # what led here is being reported, and it is found later
                os.rename(replaced, target)
        shutil.rmtree(building, ignore_errors=True)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the manifest and proves every file against it.

    Returns:
        The manifest.

    Raises:
        CheckpointError: says which file is missing or not what was written.
        OSError: a file cannot be read, so that there is no telling.
    """
    manifest = load_manifest(path)
    for name, expected in manifest["files"].items():
        file, shown = path / name, as_line(name, longest=_LONGEST_NAME)
        if not is_of_checkpoints(path.name, name):
            raise CheckpointError(f"{path}: {shown} leads out of the run's checkpoints")
        try:
            if not file.is_file():
                raise CheckpointError(f"{path}: {shown} is missing")
            if not _is_as_described(file, expected):
                raise CheckpointError(
                    f"{path}: {shown} is not what was saved (size or sha256 differs)"
                )
        except OSError as error:
            if not _is_damage(error):
                raise
            raise CheckpointError(f"{path}: {shown} cannot be read: {error.strerror}") from error
    return manifest


def is_of_checkpoints(checkpoint: str, name: str) -> bool:
    """Whether a manifest's file lies in its checkpoint or beside it; farther away it never was."""
    return not os.path.normpath(os.path.join(checkpoint, name)).startswith(("..", "/"))


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, its form checked.

    Raises:
        CheckpointError: there is none, or it is not one that this version reads.
        OSError: it cannot be read, so that there is no telling.
    """
    file = path / MANIFEST_NAME
    try:
        if not file.is_file():
            raise CheckpointError(f"{path}: no {MANIFEST_NAME}, so no complete checkpoint")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path}: {MANIFEST_NAME} is too big to be one")
        content = file.read_bytes()
    except OSError as error:
        if not _is_damage(error):
            raise
        raise CheckpointError(f"{path}: {MANIFEST_NAME} cannot be read: {error}") from error
    return read_manifest(content, path)


def read_manifest(content: bytes, path: Path | str) -> dict[str, Any]:
    """A manifest's content, its form checked; `path` is the checkpoint's, for messages.

    Raises:
        CheckpointError: it is not one that this version reads.
    """
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {MANIFEST_NAME} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path}: {MANIFEST_NAME} is not a checkpoint's manifest")
    for fact in RANKS:
        if not _is_score(manifest.get(fact)):
            raise CheckpointError(f"{path}: the {fact} in {MANIFEST_NAME} is no number")
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


def choose_checkpoint(root: Path, *, at_most: float) -> tuple[CheckpointFolder | None, list[str]]:
    """The newest whole checkpoint of up to `at_most` agent steps; what is wrong with newer ones.

    One that was adopted may be newer: its rows are another run's.

    Whoever goes on from it calls `set_newer_aside`. No save may be under way.

    Raises:
        OSError: a checkpoint cannot be read, so that there is no telling whether it is whole; or
            `root` cannot be written.
    """
    finish_saves(root)
    faults = []
    for folder in reversed(find_checkpoints(root)):
        try:
            manifest = verify_checkpoint(folder.path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if folder.agent_steps <= at_most or manifest.get(ADOPTED) is True:
            return folder, faults
        faults.append(f"{folder.path}: metrics.csv ends before it")
    return None, faults


def set_newer_aside(root: Path, chosen: CheckpointFolder | None) -> None:
    """Renames checkpoints newer than the chosen one to `aside-step-N`.

    A save removes them once the run has a checkpoint of as many steps again. They are damaged, or
    lack their rows, and the run makes them anew. Were they left there, they would be kept as the
    newest ones, and what it saves before it comes that far would not.
    """
    for folder in find_checkpoints(root):
        if chosen is None or folder.agent_steps > chosen.agent_steps:
            aside = folder.path.with_name(f"{_ASIDE}{folder.path.name}")
            remove_checkpoint(aside)
            os.rename(folder.path, aside)


def finish_saves(root: Path) -> None:
    """Gives checkpoints their names that a killed save left without, whole as they are.

    After a killed adoption the run has its own checkpoints again. Nothing may be under way. Raises
    OSError, also where one cannot be read.
    """
    before = _place_aside(root)
    if before.is_dir() and not os.path.lexists(root):
        os.rename(before, root)
    for path in sorted(root.glob(".step-*")):
        match = _UNFINISHED_NAME.fullmatch(path.name)
        if match is None or path.is_symlink() or os.path.lexists(root / match[1]):
            continue
        try:
            verify_checkpoint(path)
        except CheckpointError:  # not finished; the next save removes it
            continue
        os.rename(path, root / match[1])


def adopt_checkpoint(source: Path, root: Path) -> CheckpointFolder:
    """Puts another run's checkpoint in place of all the checkpoints that `root` holds.

    Its own files are linked where the file system can; those that it shares are copied, because
    their run may write them anew. Its manifest says that it was adopted.

    Args:
        source: a `step-N` folder; its run may go on, and remove it, meanwhile.
        root: the run's folder of checkpoints; no save may be under way there.

    Raises:
        CheckpointError: `source` is not whole; `root` is as it was.
        ArtifactError: `source` cannot be read, or `root` not be written.
    """
    building = root.with_name(f".{root.name}-adopted")
    before = _place_aside(root)
    try:
        remove_checkpoint(building)
        remove_checkpoint(before)
        manifest = verify_checkpoint(source)
        for name in manifest["files"]:
            target = Path(os.path.normpath(building / source.name / name))
            target.parent.mkdir(parents=True, exist_ok=True)
            _take_over(source / name, target, link=target.parent.name == source.name)
        manifest_path = building / source.name / MANIFEST_NAME
        manifest_path.write_text(_write_manifest({**manifest, ADOPTED: True}), encoding="utf-8")
        for path in (manifest_path, manifest_path.parent, building):
            _flush(path)
        if root.exists():
            os.rename(root, before)
        os.rename(building, root)
        _flush(root.parent)
        remove_checkpoint(before)
    except FileNotFoundError:
        raise CheckpointError(f"{source}: removed while it was read") from None
    except OSError as error:
        raise ArtifactError.from_os_error(error, root) from error
    return CheckpointFolder(int(source.name.partition("-")[2]), root / source.name)


def prune_checkpoints(root: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` and the best, then the files that none of those names.

    The best is the one of `choose_kept`. The remains of a save that was killed, and checkpoints
    that were set aside and made anew since, go too; so no other save may be under way.

    Raises:
        OSError: something cannot be read or removed.
    """
    for unneeded in root.glob(".step-*"):
        remove_checkpoint(unneeded)
    manifests = {}
    for folder in find_checkpoints(root):
        try:
            manifests[folder] = load_manifest(folder.path)
        except CheckpointError:
            remove_checkpoint(folder.path)
    _remove_aside(root, reached=max((folder.agent_steps for folder in manifests), default=-1))
    by_steps = {folder.agent_steps: manifest for folder, manifest in manifests.items()}
    chosen = choose_kept(by_steps, keep=keep)
    kept = {folder for folder in manifests if folder.agent_steps in chosen}
    for folder in manifests.keys() - kept:
        if not folder.path.is_symlink():
            # First of all: killed in the midst of it, no part of it may pass for a checkpoint.
            (folder.path / MANIFEST_NAME).unlink(missing_ok=True)
        remove_checkpoint(folder.path)
    # By their names alone: what lies there may be a link that leads nowhere.
    needed = {folder.path: manifests[folder] for folder in kept} | _load_aside(root)
    named = {
        os.path.normpath(os.path.join(path, name))
        for path, manifest in needed.items()
        for name in manifest["files"]
    }
    for directory in (path for path in root.iterdir() if path.is_dir()):
        if directory.is_symlink():  # what it leads to is not the run's
            continue
        if _STEP_NAME.fullmatch(directory.name) or directory.name.startswith((".", _ASIDE)):
            continue
        for path in directory.rglob("*"):
            if path.is_file() and os.path.normpath(path) not in named:
                path.unlink()


def choose_kept(manifests: Mapping[int, dict[str, Any]], *, keep: int) -> set[int]:
    """Agent steps of the newest `keep` and of the best, by agent steps.

    The best has the highest mean score in an evaluation; where none was evaluated, the highest
    score in training. Of equals it is the newest.
    """
    kept = set(sorted(manifests)[-keep:])
    for fact in RANKS:
        ranked = [steps for steps in manifests if manifests[steps].get(fact) is not None]
        if ranked:
            kept.add(max(ranked, key=lambda steps: (manifests[steps][fact], steps)))
            break
    return kept


def remove_checkpoint(path: Path) -> None:
    """A folder with all in it, or a file or link that bears a checkpoint's name; or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def describe_file(path: Path) -> dict[str, Any]:
    """What a manifest tells of a file. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _write_manifest(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _place_aside(root: Path) -> Path:
    """Where a run's own checkpoints lie while another's take their place."""
    return root.with_name(f".{root.name}-before")


def _remove_aside(root: Path, *, reached: int) -> None:
    """Removes what was set aside of up to `reached` agent steps, and what is no such folder."""
    for path in root.glob(f"{_ASIDE}*"):
        match = _ASIDE_NAME.fullmatch(path.name)
        if match is None or int(match[1]) <= reached or path.is_symlink() or not path.is_dir():
            remove_checkpoint(path)


def _load_aside(root: Path) -> dict[Path, dict[str, Any]]:
    """Manifests of the checkpoints that were set aside, by folder; of damaged ones none."""
    manifests = {}
    for path in root.glob(f"{_ASIDE}*"):
        with suppress(CheckpointError):
            manifests[path] = load_manifest(path)
    return manifests


def _is_damage(error: OSError) -> bool:
    """Whether the checkpoint is at fault, not the machine that should read it.

    A file of it is gone, or has a name in the manifest that no file can have.
    """
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    return gone or error.errno == errno.ENAMETOOLONG


def _take_over(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    _flush(target)


def _is_score(score: Any) -> bool:
    if isinstance(score, float):
        return math.isfinite(score)
    return score is None or isinstance(score, int)


def _is_as_described(path: Path, expected: Any) -> bool:
    # The size first: whatever lies there in its place may take long to read.
    size_bytes = expected.get("bytes") if isinstance(expected, dict) else None
    return path.stat().st_size == size_bytes and describe_file(path) == expected


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
