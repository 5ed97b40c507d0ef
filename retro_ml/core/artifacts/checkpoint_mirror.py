"""A trial's checkpoints in storage: sent, kept and fetched.

A checkpoint is there once its manifest is, which is sent last and deleted first. Files that
checkpoints share are sent once. The same rule as on disk says which checkpoints are kept, applied
to those in storage: this machine may have but a part of them. A checkpoint that was adopted takes
the place of all others there too, once it has been sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from retro_ml.core.artifacts.checkpoint_files import (
    ADOPTED,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    CheckpointError,
    CheckpointFolder,
    choose_kept,
    find_checkpoints,
    is_of_checkpoints,
    read_manifest,
    remove_checkpoint,
    verify_checkpoint,
)
from retro_ml.core.artifacts.mirror import INTERVAL_S, Mirror
from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.run_paths import CLAIM_NAME, STATUS_NAME

_MANIFEST = re.compile(rf"step-([0-9]{{1,19}})/{re.escape(MANIFEST_NAME)}")
_OF_STEP = re.compile(r"step-([0-9]{1,19})/.*")


class CheckpointMirror(Mirror):
    """Sends the checkpoints under a folder, newest first.

    A checkpoint that is removed here while it is being sent is sent all the same: its files are
    open. One that is removed before is left out, so a storage that is slower than training gets
    some of them, always the newest.

    Args:
        root: the folder that the trial's checkpoints are made in.
        run: the run's folder in storage.
        keep: as in `prune_checkpoints`.
        claim: nonce of the claim that the run's driver has there; None takes the one that is there.
    """

    def __init__(
        self,
        root: Path,
        run: RemoteFolder,
        *,
        keep: int,
        claim: str | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__(run.child(root.name), interval_s=interval_s)
        self._root = root
        self._run = run
        self._keep = keep
        self._manifests: dict[int, dict[str, Any]] | None = None
        self._digests: dict[int, str] = {}
        self._claim = claim

    def list_missing(self) -> list[str]:
        """Checkpoints that are here and should be in storage, but are not."""
        unsent = [folder for folder, _ in self._find_unsent(self._manifests or {})]
        return [f"{self._root.name}/{folder.path.name}" for folder in unsent]

    def _send(self) -> None:
        if self._manifests is None:
            self._check_claim()
            self._manifests = self._read_manifests()
        tried: set[tuple[CheckpointFolder, str]] = set()
        while True:
            # After each one anew: training may have saved a newer one, and removed others.
            unsent = [one for one in self._find_unsent(self._manifests) if one not in tried]
            if not unsent:
                break
            tried.add(unsent[-1])
            self._check_claim()
            self._send_one(unsent[-1][0], self._manifests)
        if tried:
            self._prune(self._manifests)

    def _check_claim(self) -> None:
        """A driver on another machine may have taken the run over; its checkpoints are let be."""
        try:
            nonce = json.loads(self._run.get(CLAIM_NAME))["nonce"]
        except (ObjectMissing, ValueError, TypeError, KeyError):
            return
        if self._claim not in (None, nonce):
            raise StorageError(f"another driver has taken over {self._run.uri}", final=True)
        self._claim = nonce

    def _read_manifests(self) -> dict[int, dict[str, Any]]:
        """What is in storage already; one that cannot be read is sent again or removed."""
        manifests = {}
        for steps in list_checkpoints(self.remote):
            name = f"step-{steps}/{MANIFEST_NAME}"
            try:
                content = self.remote.get(name)
                manifests[steps] = read_manifest(content, f"{self.remote.uri}/step-{steps}")
            except (ObjectMissing, CheckpointError):
                continue
            self._digests[steps] = hashlib.sha256(content).hexdigest()
        return manifests

    def _find_unsent(self, there: dict[int, dict[str, Any]]) -> list[tuple[CheckpointFolder, str]]:
        """Those that would be kept in storage and are not there; with their manifests' sha256."""
        folders, here, digests = [], {}, {}
        for folder in find_checkpoints(self._root):
            try:
                content = (folder.path / MANIFEST_NAME).read_bytes()
                here[folder.agent_steps] = read_manifest(content, folder.path)
            except (OSError, CheckpointError):
                continue  # removed meanwhile; a damaged one is found by whoever resumes
            folders.append(folder)
            digests[folder.agent_steps] = hashlib.sha256(content).hexdigest()
        # What is only there is what an adopted one has replaced here.
        candidates = here if _has_adopted(here) else {**there, **here}
        kept = choose_kept(candidates, keep=self._keep)
        return [
            (folder, digests[folder.agent_steps])
            for folder in folders
            if folder.agent_steps in kept
            and digests[folder.agent_steps] != self._digests.get(folder.agent_steps)
        ]

    def _send_one(self, folder: CheckpointFolder, there: dict[int, dict[str, Any]]) -> None:
        steps, name = folder.agent_steps, folder.path.name
        with ExitStack() as opened:
            try:
                content = (folder.path / MANIFEST_NAME).read_bytes()
                manifest = read_manifest(content, folder.path)
                files = self._open_new(folder, manifest, there, opened)
            except (FileNotFoundError, CheckpointError):
                return  # removed meanwhile
            if there.pop(steps, None) is not None:
                self.remote.delete(f"{name}/{MANIFEST_NAME}")
            for target, file in files.items():
                self.remote.put(target, file)
                self._note_progress()
            self.remote.put(f"{name}/{MANIFEST_NAME}", content)
        there[steps] = manifest
        self._digests[steps] = hashlib.sha256(content).hexdigest()
        if manifest.get(ADOPTED) is True:
            for other in there.keys() - {here.agent_steps for here in find_checkpoints(self._root)}:
                self.remote.delete(f"step-{other}/{MANIFEST_NAME}")
                del there[other]
                self._digests.pop(other, None)

    def _open_new(
        self,
        folder: CheckpointFolder,
        manifest: dict[str, Any],
        there: dict[int, dict[str, Any]],
        opened: ExitStack,
    ) -> dict[str, IO[bytes]]:
        """The checkpoint's files that are not in storage, open, by their names there."""
        known = {
            (_resolve(steps, name), json.dumps(described, sort_keys=True))
            for steps, other in there.items()
            if steps != folder.agent_steps
            for name, described in other["files"].items()
        }
        files: dict[str, IO[bytes]] = {}
        for name, described in manifest["files"].items():
            target = _resolve(folder.agent_steps, name)
            if (target, json.dumps(described, sort_keys=True)) not in known:
                files[target] = opened.enter_context((folder.path / name).open("rb"))
        return files

    def _prune(self, manifests: dict[int, dict[str, Any]]) -> None:
        kept = choose_kept(manifests, keep=self._keep) | self._find_covered(manifests)
        for steps in manifests.keys() - kept:
            self.remote.delete(f"step-{steps}/{MANIFEST_NAME}")
            del manifests[steps]
            self._digests.pop(steps, None)
        named = {
            _resolve(steps, name)
            for steps, manifest in manifests.items()
            for name in [*manifest["files"], MANIFEST_NAME]
        }
        objects = self.remote.list()
        unnamed = [name for name in objects if name not in named]
        whole = {match[1] for name in unnamed if (match := _OF_STEP.fullmatch(name))}
        gone = [f"step-{steps}" for steps in whole if int(steps) not in manifests]
        for name in gone:
            self.remote.delete_folder(name)
        for name in unnamed:
            if name.split("/")[0] not in gone:
                self.remote.delete(name)

    def _find_covered(self, manifests: dict[int, dict[str, Any]]) -> set[int]:
        """The newest checkpoint whose rows are in storage: the rows are sent by another process."""
        try:
            reached = json.loads(self._run.get(STATUS_NAME))["step"]
            covered = [steps for steps in manifests if steps <= reached]
        except (ObjectMissing, ValueError, TypeError, KeyError):
            covered = []
        return {max(covered)} if covered else set(sorted(manifests)[:1])


def list_checkpoints(remote: RemoteFolder) -> list[int]:
    """Agent steps of the checkpoints in storage, oldest first. Raises StorageError."""
    return _steps_of(remote.list())


def fetch_checkpoint(
    remote: RemoteFolder, root: Path, *, newer_than: int = -1, at_most: float
) -> tuple[CheckpointFolder | None, list[str]]:
    """Brings the newest whole checkpoint of up to `at_most` agent steps here, or an adopted one.

    Args:
        remote: the trial's checkpoints in storage.
        root: the folder that they are made in here.
        newer_than: older ones and this one are not wanted.
        at_most: agent steps that the run's rows reach to; an adopted one has another run's.

    Returns:
        The checkpoint, None where there is none, and what is wrong with newer ones.

    Raises:
        StorageError, OSError.
    """
    faults: list[str] = []
    objects = remote.list()
    for steps in reversed(_steps_of(objects)):
        if steps <= newer_than:
            break
        try:
            content = _get_manifest(remote, steps)
            manifest = read_manifest(content, f"{remote.uri}/step-{steps}")
            if steps > at_most and manifest.get(ADOPTED) is not True:
                continue
            return CheckpointFolder(steps, _fetch(remote, steps, root, objects, content)), faults
        except (CheckpointError, ObjectMissing) as error:
            faults.append(str(error))
    return None, faults


def fetch_manifest(remote: RemoteFolder, agent_steps: int) -> dict[str, Any]:
    """The manifest of a checkpoint in storage. Raises StorageError, CheckpointError."""
    content = _get_manifest(remote, agent_steps)
    return read_manifest(content, f"{remote.uri}/step-{agent_steps}")


def _get_manifest(remote: RemoteFolder, steps: int) -> bytes:
    content = remote.get(f"step-{steps}/{MANIFEST_NAME}")
    if len(content) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{remote.uri}/step-{steps}: {MANIFEST_NAME} is too big to be one")
    return content


def _fetch(
    remote: RemoteFolder, steps: int, root: Path, objects: Collection[str], manifest: bytes
) -> Path:
    """Downloads one checkpoint and proves it before it gets its name."""
    name = f"step-{steps}"
    where = f"{remote.uri}/{name}"
    files = read_manifest(manifest, where)["files"]
    for file in files:
        shown = as_line(file, longest=100)
        if not is_of_checkpoints(name, file):
            raise CheckpointError(f"{where}: {shown} leads out of the run's checkpoints")
        if _resolve(steps, file) not in objects:
            _disown(remote, name)
            raise CheckpointError(f"{where}: {shown} is missing")
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        for file, described in files.items():
            target = building / file
            if not _is_there(target, described):
                target.parent.mkdir(parents=True, exist_ok=True)
                remote.download(_resolve(steps, file), target)
        (building / MANIFEST_NAME).write_bytes(manifest)
        try:
            verify_checkpoint(building)
        except CheckpointError:
            _disown(remote, name)
            raise
        remove_checkpoint(root / name)
        os.rename(building, root / name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root / name


def _has_adopted(manifests: dict[int, dict[str, Any]]) -> bool:
    return any(manifest.get(ADOPTED) is True for manifest in manifests.values())


def _disown(remote: RemoteFolder, name: str) -> None:
    """A damaged checkpoint counts no more.

    Trained again it may come out the same, manifest and all, and must be sent again then.
    """
    with suppress(StorageError):
        remote.delete(f"{name}/{MANIFEST_NAME}")


def _steps_of(objects: Collection[str]) -> list[int]:
    matches = (_MANIFEST.fullmatch(name) for name in objects)
    return sorted(int(match[1]) for match in matches if match)


def _is_there(path: Path, described: Any) -> bool:
    """A shared file that an earlier fetch, or this machine's own work, has left."""
    if not path.is_file() or not isinstance(described, dict):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == described.get("sha256")


def _resolve(steps: int, name: str) -> str:
    """An object's name under the checkpoints, of a file as its manifest names it."""
    return os.path.normpath(os.path.join(f"step-{steps}", name))
