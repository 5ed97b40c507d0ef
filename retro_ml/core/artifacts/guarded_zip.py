"""Zips from anywhere, opened so that they can neither fill memory nor lead out of themselves.

Reading happens in memory and nothing is extracted. Everything that may be wrong with the file or
with what is read of it inside the `with` ends as one ZipFault.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from retro_ml.core.experiments.faults import as_line

MAX_MEMBERS = 64
MAX_MEMBER_BYTES = 512 * 1024**2
MAX_ARCHIVE_BYTES = 2 * MAX_MEMBER_BYTES
# Weights compress by a few percent, JSON tenfold; deflate's own limit is about 1,000.
MAX_COMPRESSION_RATIO = 100
# Of the table of contents: zipfile makes an object of each entry, of which 46 bytes will do, before
# any can be looked at.
MAX_ENTRY_BYTES = 1024

_ENCRYPTED_FLAG = 0x1
# The end of a zip, with the longest comment and what zip64 adds.
_END_BYTES = 2**16 + 1024

# What zipfile raises for damaged files, found by feeding it some: it promises BadZipFile only.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    ValueError,
    OverflowError,
)


class ZipFault(Exception):
    """What is wrong with a zip, in words that follow its name."""


@contextmanager
def open_zip(path: Path, *, limits_bytes: Mapping[str, int]) -> Iterator[zipfile.ZipFile]:
    """A zip file whose members have been looked at: their names, kinds and sizes.

    Args:
        path: of a regular file; a named pipe is not waited for.
        limits_bytes: of single members, by name, below MAX_MEMBER_BYTES.

    Raises:
        OSError: the file cannot be read.
        ZipFault: it is no zip, or none that can be trusted.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ZipFault("it is no regular file")
        if found.st_size > MAX_ARCHIVE_BYTES:
            raise ZipFault(f"more than {MAX_ARCHIVE_BYTES:,} bytes")
        with guard_zip(file, limits_bytes=limits_bytes) as archive:
            yield archive


@contextmanager
def guard_zip(
    file: BinaryIO,
    *,
    limits_bytes: Mapping[str, int],
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_ARCHIVE_BYTES,
) -> Iterator[zipfile.ZipFile]:
    """As `open_zip`, of a file that is open or in memory; `max_bytes` of all members together."""
    metered = _MeteredFile(file, allowance_bytes=_END_BYTES + max_members * MAX_ENTRY_BYTES)
    try:
        with zipfile.ZipFile(metered) as archive:
            metered.allowance_bytes = None
            members = archive.infolist()
            if len(members) > max_members:
                raise ZipFault(f"{len(members)} members, at most {max_members} are allowed")
            for member in members:
                _check_member(member, limits_bytes.get(member.filename, MAX_MEMBER_BYTES))
            if sum(member.file_size for member in members) > max_bytes:
                raise ZipFault(f"its members have more than {max_bytes:,} bytes together")
            yield archive
    except _ZIP_ERRORS as error:
        raise ZipFault(f"the zip is damaged ({error or type(error).__name__})") from error


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The member's content, its CRC checked. Raises ZipFault unless there is exactly one."""
    count = archive.namelist().count(name)
    if count != 1:
        raise ZipFault(f"{count} members {as_line(name, longest=60)}, there must be one")
    with archive.open(name) as member:
        # One more than declared: reading to the end is what makes zipfile check the CRC.
        data = member.read(archive.getinfo(name).file_size + 1)
    if len(data) != archive.getinfo(name).file_size:
        raise ZipFault(f"member {name!r} is cut short")
    return data


class _MeteredFile:
    """A file to read from, no more than `allowance_bytes` until that is set to None.

    zipfile and this module need not agree where the table of contents lies and how long it is,
    which a file made on purpose may tell in two ways.
    """

    def __init__(self, file: BinaryIO, *, allowance_bytes: int) -> None:
        self.allowance_bytes: int | None = allowance_bytes
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Raises ZipFault where more is asked for than is allowed, and there."""
        left = self.allowance_bytes
        if left is None:
            return self._file.read(size)
        content = self._file.read(min(size, left + 1) if size >= 0 else left + 1)
        if len(content) > left:
            raise ZipFault("its table of contents is too long for so few members")
        self.allowance_bytes = left - len(content)
        return content


def _open_at_once(path: str, flags: int) -> int:
    # A named pipe would otherwise be waited for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_member(member: zipfile.ZipInfo, limit_bytes: int) -> None:
    name = member.orig_filename
    # Names are never used as paths here; an archive that has such a name means harm.
    if name.startswith("/") or re.search(r"\\|\0|^[A-Za-z]:|(^|/)\.\.(/|$)", name):
        raise ZipFault(f"member {name!r} has a name that leads out of the archive")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ZipFault(f"member {member.filename!r} is a link or a device")
    if member.flag_bits & _ENCRYPTED_FLAG:
        raise ZipFault(f"member {member.filename!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ZipFault(f"member {member.filename!r} is compressed in an unknown way")
    if member.file_size > limit_bytes:
        raise ZipFault(f"member {member.filename!r} has more than {limit_bytes:,} bytes")
    if member.file_size > MAX_COMPRESSION_RATIO * max(1, member.compress_size):
        raise ZipFault(f"member {member.filename!r} is compressed too far to be genuine")
