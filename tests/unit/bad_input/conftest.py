"""What the tests of bad input share: how many cases they try, what limits each, and traps.

Ordinarily each property is tried on a few dozen cases, the same ones every time. With
`RETRO_ML_TESTS=nightly scripts/test tests/unit/bad_input` each is tried on a thousand new ones,
more than 10,000 in all.
"""

import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

import pytest

_LIMIT_S = 20
_LIMIT_BYTES = 4 * 1024**3


class TookTooLong(BaseException):
    """No `except Exception` on the way may take it for a fault of the input."""


@contextmanager
def _bounded() -> Iterator[None]:
    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"more than {_LIMIT_S} s")

    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + _LIMIT_BYTES, hard))
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def bounded() -> Callable[[], AbstractContextManager[None]]:
    """A limit on the time of what is done within it, and on the memory that it asks for."""
    return _bounded


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A folder that is empty again at each call; hypothesis makes many in one test."""
    folder = tmp_path_factory.mktemp("bad_input") / "here"

    def make() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return make


class _Trap:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture(scope="session")
def pickle_trap() -> Callable[[Path], bytes]:
    """A pickle that makes the folder it is given when it is loaded."""

    def build(marker: Path) -> bytes:
        return pickle.dumps(_Trap(marker))

    return build


def _read_tree(folder: Path) -> dict[str, bytes | str | None]:
    return {
        path.relative_to(folder).as_posix(): (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def read_tree() -> Callable[[Path], dict[str, bytes | str | None]]:
    """Every file below a folder, to be compared with what is there later."""
    return _read_tree
