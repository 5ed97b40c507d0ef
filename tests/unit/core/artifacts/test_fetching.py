"""What storage holds is not trusted: a checkpoint is fetched whole and into its place, or not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.checkpoint_mirror import fetch_checkpoint
from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.engine.run_claim import Claim

pytestmark = pytest.mark.unit


@pytest.fixture
def remote(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder(f"file://{tmp_path}/storage/x/checkpoints")


def put(
    remote: RemoteFolder,
    steps: int,
    files: dict[str, bytes],
    *,
    adopted: bool = False,
    **listed: Any,
) -> None:
    described = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }
    for name, content in files.items():
        remote.put(f"step-{steps}/{name}" if ".." not in name else name[3:], content)
    manifest: dict[str, Any] = {"format_version": 1, "score": None, "files": described | listed}
    if adopted:
        manifest["adopted"] = True
    remote.put(f"step-{steps}/manifest.json", json.dumps(manifest).encode())


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_newest_within_the_rows_comes_with_its_shared_files(
    remote: RemoteFolder, tmp_path: Path
) -> None:
    put(remote, 10, {"a": b"1", "../replay/r1": b"r"})
    put(remote, 20, {"a": b"2", "../replay/r1": b"r", "../replay/r2": b"rr"})
    put(remote, 30, {"a": b"3"})
    root = tmp_path / "here" / "checkpoints"
    found, faults = fetch_checkpoint(remote, root, at_most=25)
    assert found is not None
    assert (found.agent_steps, found.path, faults) == (20, root / "step-20", [])
    names = {"step-20/a", "step-20/manifest.json", "replay/r1", "replay/r2"}
    assert files_of(root) == names
    assert fetch_checkpoint(remote, root, newer_than=20, at_most=25) == (None, [])


def test_an_adopted_one_needs_no_rows(remote: RemoteFolder, tmp_path: Path) -> None:
    put(remote, 10, {"a": b"1"})
    put(remote, 30, {"a": b"3"}, adopted=True)
    found, faults = fetch_checkpoint(remote, tmp_path / "here", at_most=10)
    assert found is not None
    assert (found.agent_steps, faults) == (30, [])


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "../../../../evil", "..", ".", "", "../replay", "a\nb"]
)
def test_names_that_lead_elsewhere_are_not_followed(
    remote: RemoteFolder, tmp_path: Path, name: str
) -> None:
    put(remote, 10, {"a": b"1"})
    put(remote, 20, {"a": b"2"}, **{name: {"sha256": "0" * 64, "bytes": 1}})
    before = files_of(tmp_path)
    found, faults = fetch_checkpoint(remote, tmp_path / "here", at_most=100)
    assert found is not None
    assert found.agent_steps == 10
    assert len(faults) == 1
    assert "\n" not in faults[0]
    written = files_of(tmp_path) - before
    assert written == {"here/step-10/a", "here/step-10/manifest.json"}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"format_version": 9, "files": {}}']
)
def test_a_manifest_that_is_none_is_left_for_the_one_before(
    remote: RemoteFolder, tmp_path: Path, content: bytes
) -> None:
    put(remote, 10, {"a": b"1"})
    remote.put("step-20/manifest.json", content)
    found, faults = fetch_checkpoint(remote, tmp_path / "here", at_most=100)
    assert found is not None
    assert (found.agent_steps, len(faults)) == (10, 1)


def test_a_torn_file_is_left_for_the_one_before(remote: RemoteFolder, tmp_path: Path) -> None:
    put(remote, 10, {"a": b"1"})
    put(remote, 20, {"a": b"22", "b": b"3"})
    remote.put("step-20/a", b"2")
    put(remote, 30, {"a": b"22", "b": b"3"})
    remote.delete("step-30/b")
    found, faults = fetch_checkpoint(remote, tmp_path / "here", at_most=100)
    assert found is not None
    assert found.agent_steps == 10
    assert "step-30: b is missing" in faults[0]
    assert "a is not what was saved" in faults[1]
    assert [name for name in remote.list() if "manifest" in name] == ["step-10/manifest.json"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"step-10"}


def test_what_is_no_claim_is_none() -> None:
    claim = Claim(3, "nonce", "host", "machine", 7, 8)
    assert Claim.read(claim.write()) == claim
    for content in (
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        claim.write().replace(b"3", b'"3"'),
    ):
        assert Claim.read(content) is None
