"""The files of a folder, sent to storage as they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from retro_ml.core.artifacts.mirror import INTERVAL_S, Mirror
from retro_ml.core.artifacts.remote_folder import RemoteFolder

Signature = tuple[int, int, int]
"""Inode, size and time of a file: a file with the same ones was not written to."""


class FolderMirror(Mirror):
    """Sends named files of a folder, in this order, whole and only when they have changed.

    A file that is appended to is sent up to where it was when the pass began. The last name is the
    one that tells of the others (a status): it is read first and sent last, so that in storage it
    never tells of more than is there.

    Args:
        folder: where the files are, or will be.
        remote: the same folder in storage.
        names: gives those of the files, as they are now.
        before_sending: called at the beginning of each pass.
    """

    def __init__(
        self,
        folder: Path,
        remote: RemoteFolder,
        names: Callable[[], Sequence[str]],
        *,
        interval_s: float = INTERVAL_S,
        before_sending: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(remote, interval_s=interval_s)
        self._folder = folder
        self._names = names
        self._before_sending = before_sending
        self._sent: dict[str, Signature] = {}
        self.sent_at: str | None = None
        """When the last pass that sent everything ended, ISO 8601."""

    def list_missing(self) -> list[str]:
        """Files that are not in storage as they are here."""
        return [name for name in self._names() if self._is_new(name)]

    def _send(self) -> None:
        with ExitStack() as opened:
            if self._before_sending is not None:
                self._before_sending()
            files: dict[str, IO[bytes]] = {}
            for name in reversed(self._names()):
                if self._is_new(name):
                    files[name] = opened.enter_context((self._folder / name).open("rb"))
            for name, file in reversed(files.items()):
                signature = _sign(file)
                self.remote.put(name, file)
                self._sent[name] = signature
                self._note_progress()
        self.sent_at = datetime.now(UTC).isoformat(timespec="seconds")

    def _is_new(self, name: str) -> bool:
        try:
            status = (self._folder / name).stat()
        except FileNotFoundError:
            return False
        return _signature(status) != self._sent.get(name)


def _sign(file: IO[bytes]) -> Signature:
    return _signature(os.fstat(file.fileno()))


def _signature(status: Any) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns
