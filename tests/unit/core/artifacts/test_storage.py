"""Files that survive kills: atomic replacement and whole lines."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from retro_ml.core.artifacts import storage
from retro_ml.core.artifacts.storage import (
    AppendFile,
    ArtifactError,
    own_temporary_path,
    rename_whole,
    replace_atomically,
    rewrite_lines,
    temporary_path,
)

pytestmark = pytest.mark.unit


def test_replace_leaves_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    replace_atomically(path, lambda file: file.write(b"new"))

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [RuntimeError("bug"), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_replace_keeps_the_old_content_and_no_part(
    tmp_path: Path, fault: Exception
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise fault

    with pytest.raises((RuntimeError, ArtifactError)) as caught:
        replace_atomically(path, write)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(fault, OSError):
        message = str(caught.value)
        assert str(path) in message
        assert "No space left" in message
        assert "free some space" in message


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        done.append(("replace", str(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    building = temporary_path(path)
    replace_atomically(path, lambda file: file.write(b"new"))
    building.write_text("newer")
    rename_whole(building, path)

    step = [("fsync", str(building)), ("replace", str(building)), ("fsync", str(tmp_path))]
    assert done == 2 * step
    assert path.read_text() == "newer"


def test_replace_into_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.json"
    with pytest.raises(ArtifactError, match=r"gone/a\.json"):
        replace_atomically(path, lambda file: file.write(b""))


def test_a_temporary_file_left_by_a_kill_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    pid = os.fork()
    if pid == 0:
        replace_atomically(path, lambda file: os._exit(0))
    os.waitpid(pid, 0)
    assert len(list(tmp_path.iterdir())) == 1

    replace_atomically(path, lambda file: file.write(b"new"))

    assert list(tmp_path.iterdir()) == [path]


def test_appended_lines_are_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = AppendFile(path)
    lines.append(b"one\n")

    assert path.read_bytes() == b"one\n"
    assert lines.size_bytes == 4
    lines.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"one\ntw", b"one\n"),
        (b"torn", b""),
        (b"one\n", b"one\n"),
        (b"one\n" + b"x" * 200_000, b"one\n"),
        (b"y" * 100_000 + b"\ntorn", b"y" * 100_000 + b"\n"),
    ],
    ids=["empty", "torn", "only-torn", "whole", "long-torn", "long-line"],
)
def test_opening_drops_a_torn_last_line(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(before)

    lines = AppendFile(path)
    lines.append(b"next\n")
    lines.close()

    assert path.read_bytes() == after + b"next\n"


def test_a_line_that_does_not_fit_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    lines = AppendFile(path)
    lines.append(b"one\n")
    really_write = os.pwrite

    def write_two_bytes_then_fail(descriptor: int, data: bytes, position: int) -> int:
        if position > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_write(descriptor, data[:2], position)

    monkeypatch.setattr(os, "pwrite", write_two_bytes_then_fail)
    with pytest.raises(ArtifactError, match="No space left"):
        lines.append(b"second\n")
    monkeypatch.undo()

    assert path.read_bytes() == b"one\n"
    lines.append(b"third\n")
    assert path.read_bytes() == b"one\nthird\n"
    lines.close()


def test_lines_that_may_wait_come_with_the_next_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = AppendFile(path)
    lines.append(b"one\n", may_wait=True)
    lines.append(b"two\n", may_wait=True)
    assert path.read_bytes() == b""
    assert lines.size_bytes == 8

    lines.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"

    for end, finish in enumerate((lines.flush, lines.sync, lines.close), start=4):
        lines.append(b"%d\n" % end, may_wait=True)
        finish()
        assert path.read_bytes().endswith(b"\n%d\n" % end)


def test_no_more_than_64_kib_wait(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = AppendFile(path)
    for _ in range(64):
        assert path.stat().st_size == 0
        lines.append(b"x" * 1023 + b"\n", may_wait=True)

    assert path.stat().st_size == 64 * 1024
    lines.close()


def test_lines_that_waited_for_a_failure_are_not_written_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    lines = AppendFile(path)
    lines.append(b"one\n", may_wait=True)
    really_write = os.pwrite

    def write_five_bytes_then_fail(descriptor: int, data: bytes, position: int) -> int:
        if position > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_write(descriptor, data[:5], position)

    monkeypatch.setattr(os, "pwrite", write_five_bytes_then_fail)
    with pytest.raises(ArtifactError, match="No space left"):
        lines.append(b"two\n")
    monkeypatch.undo()

    lines.close()
    assert path.read_bytes() == b""


def test_a_real_full_device_is_one_clear_message() -> None:
    with pytest.raises(ArtifactError, match="cannot write /dev/full: No space left"):
        AppendFile(Path("/dev/full")).append(b"x\n")


def test_rewrite_changes_drops_and_ignores_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\nb\nc\ntorn")

    rewrite_lines(path, lambda line: None if line == b"b\n" else line.upper())

    assert path.read_bytes() == b"A\nC\n"


def test_two_processes_may_replace_a_shared_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"

    def write(file: BinaryIO) -> None:
        file.write(b"one")
        monkeypatch.setattr(storage, "_OWN", "other")
        replace_atomically(path, lambda file: file.write(b"other"), shared=True)
        assert path.read_text() == "other"

    replace_atomically(path, write, shared=True)
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_once_it_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "a[1].mp4"
    growing, others = own_temporary_path(path), own_temporary_path(tmp_path / "b.mp4")
    left = tmp_path / ".a[1].mp4.0badcafe.tmp"
    for file in (path, growing, others, left):
        file.touch()
    for file in (path, others, left):
        os.utime(file, (0, 0))
    assert own_temporary_path(path) == growing
    assert sorted(tmp_path.iterdir()) == sorted([path, growing, others])
