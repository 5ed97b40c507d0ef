"""Objects in an S3 server, an emulator of Google's and a file system: whole, retried, explained."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError

pytestmark = pytest.mark.integration


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An emulator of Google's storage on loopback, with a bucket `runs`."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield "gs://runs/some/prefix"
    server.stop()


@pytest.fixture(params=["s3", "gs", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteFolder:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return RemoteFolder("s3://runs/some/prefix")
    if request.param == "gs":
        return RemoteFolder(request.getfixturevalue("google"))
    return RemoteFolder(f"file://{tmp_path}/storage")


def test_objects_are_written_read_listed_and_deleted(folder: RemoteFolder, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(20 * 1024**2))
    folder.put("a/small", b"1")
    folder.put("a/small", b"2")
    with big.open("rb") as file:
        folder.put("big", file)
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        folder.put("empty", file)

    assert folder.list() == {"a/small": 1, "big": 20 * 1024**2, "empty": 0}
    assert folder.child("a").list() == {"small": 1}
    assert folder.get("a/small") == b"2"
    folder.download("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()

    other = RemoteFolder(folder.uri + ".aside")
    folder.move("a/small", other)
    assert other.get("a/small") == b"2"
    folder.delete("big")
    folder.delete("big")
    folder.delete_folder("a")
    folder.delete_folder("nothing")
    assert folder.list() == {"empty": 0}


def test_what_is_missing_is_told_from_what_fails(folder: RemoteFolder, tmp_path: Path) -> None:
    assert folder.list() == {}
    with pytest.raises(ObjectMissing):
        folder.get("nothing")
    with pytest.raises(ObjectMissing):
        folder.download("nothing", tmp_path / "x")


def test_a_file_that_grows_is_sent_up_to_where_it_is(folder: RemoteFolder, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"1\n2\n")
    with path.open("rb") as file:
        file.read()
        folder.put("lines", file)
    assert folder.get("lines") == b"1\n2\n"


def test_what_goes_away_by_itself_is_tried_again(s3: Any) -> None:
    answers = [503, 500, None]
    s3.fault = lambda method, path: answers.pop(0) if answers else None
    RemoteFolder("s3://runs/x", patience_s=30).put("a", b"1")
    assert answers == []
    assert s3.objects("runs") == {"x/a": b"1"}


def test_a_bucket_that_google_does_not_have_is_said(google: str) -> None:
    with pytest.raises(StorageError, match=r"no such bucket; make it") as missing:
        RemoteFolder("gs://no-such-bucket/x").put("a", b"1")
    assert missing.value.final


def test_what_does_not_go_away_is_said_at_once(s3: Any) -> None:
    with pytest.raises(StorageError, match=r"no such bucket; make it") as missing:
        RemoteFolder("s3://no-such-bucket/x", patience_s=60).put("a", b"1")
    assert missing.value.final
    s3.fault = lambda method, path: 403
    with pytest.raises(StorageError, match=r"access is denied; set AWS_ACCESS_KEY_ID") as denied:
        RemoteFolder("s3://runs/x", patience_s=60).put("a", b"1")
    assert denied.value.final
    for error in (missing.value, denied.value):
        assert "\n" not in str(error)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"the endpoint does not answer; check the network"):
        RemoteFolder("s3://runs/x").put("a", b"1")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Not a directory; check that the folder"):
        RemoteFolder(f"file://{tmp_path}/file/x").put("a", b"1")


def test_without_storage_pyarrow_is_not_loaded() -> None:
    code = "import sys, retro_ml.core.engine.run_storage; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
