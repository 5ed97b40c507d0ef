"""An embedded Ray's folder lives as long as its driver, whatever number a process has."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retro_ml.cluster.ray_folder import LOCK, make_folder, remove_orphans

pytestmark = pytest.mark.unit


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def gone() -> int:
    """The number of a process that is not there."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_driver_that_lives_keeps_its_folder(tmp: Path) -> None:
    folder, lock = make_folder()
    remove_orphans()
    assert folder.parent == tmp
    assert folder.exists()
    os.close(lock)


def test_it_keeps_it_where_its_process_is_not_seen(tmp: Path, gone: int) -> None:
    """As from another container that shares /tmp."""
    folder, lock = make_folder()
    elsewhere = folder.rename(tmp / f"retro_ml-{gone}-x")
    remove_orphans()
    assert elsewhere.exists()
    os.close(lock)


def test_a_killed_driver_s_folder_goes_though_its_number_is_another_s_now(tmp: Path) -> None:
    """As in a container that starts again with its file system."""
    folder, lock = make_folder()
    (folder / "session").mkdir()
    os.close(lock)
    remove_orphans()
    assert not folder.exists()


def test_one_without_a_lock_goes_if_its_process_is_gone(tmp: Path, gone: int) -> None:
    begun, left, strange = (tmp / f"retro_ml-{who}-x" for who in (os.getpid(), gone, "job"))
    for folder in (begun, left, strange):
        folder.mkdir()
    remove_orphans()
    assert [begun.exists(), left.exists(), strange.exists()] == [True, False, True]


def test_a_folder_that_was_taken_for_an_orphan_is_made_again(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(**how: str) -> str:
        made.append(make_really(**how))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    make_really = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", make)
    folder, lock = make_folder()
    assert str(folder) == made[1]
    assert (folder / LOCK).exists()
    os.close(lock)
