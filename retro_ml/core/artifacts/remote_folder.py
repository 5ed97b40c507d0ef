"""A folder in storage that takes whole objects: S3 and its like, Google's, a file system.

Objects appear whole or not at all. Every error is a StorageError of one line that says what to do;
what a server answers is not repeated, since it may tell keys. Credentials come from the
environment or from the machine's role, nowhere else.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from retro_ml.core.experiments.locations import parse_uri

_T = TypeVar("_T")
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 15.0
"""Without a byte moving; long enough for a server that is only slow (this project's choice)."""
BACKGROUND_PATIENCE_S = 3.0
"""Of calls in the background, whose caller comes back anyhow: past a single 503."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
CHUNK_BYTES = 8 * 1024**2
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("STORAGE_EMULATOR_HOST",),
    "file": (),
}
_S3_ERROR = re.compile(r"AWS Error (\w+)")
_GOOGLE_ERROR = re.compile(r"google::cloud::Status\((\w+)")
_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or give this "
    "machine a role that may list, read, write and delete there"
)
_GOOGLE_KEYS = (
    "set GOOGLE_APPLICATION_CREDENTIALS, or give this machine a service account that may list, "
    "read, write and delete there"
)
_NO_ANSWER = (
    "the endpoint does not answer",
    "check the network and the endpoint in the environment (AWS_ENDPOINT_URL, AWS_REGION)",
)
# What is wrong, and what to do; an error named here will not go away by itself.
_FINAL = {
    "NO_SUCH_BUCKET": ("there is no such bucket", "make it, or choose another --output-dir"),
    "ACCESS_DENIED": ("access is denied", _KEYS),
    "INVALID_ACCESS_KEY_ID": ("the access key is not known there", _KEYS),
    "INVALID_CLIENT_TOKEN_ID": ("the access key is not known there", _KEYS),
    "MISSING_AUTHENTICATION_TOKEN": ("there are no credentials", _KEYS),
    "SIGNATURE_DOES_NOT_MATCH": ("the secret key does not fit the access key", _KEYS),
    "UNRECOGNIZED_CLIENT": ("the access key is not known there", _KEYS),
    "PERMISSION_DENIED": ("access is denied", _GOOGLE_KEYS),
    "UNAUTHENTICATED": ("there are no credentials", _GOOGLE_KEYS),
}


class StorageError(Exception):
    """Storage did not do it; the message is one line with what to do. `final`: nor will it."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class ObjectMissing(StorageError):
    """There is no such object."""


class RemoteFolder:
    """Objects below one URI, by name: `a/b` is the object `<uri>/a/b`.

    Safe to use from several threads. Nothing is asked of the storage before the first call. Every
    call raises StorageError, and OSError where this machine's own file is at fault.

    Args:
        uri: as `locations.normalize_uri` spells it.
        patience_s: for how long a call tries again what may go away by itself.
    """

    def __init__(self, uri: str, *, patience_s: float = 0.0) -> None:
        self.uri = uri
        self._location = parse_uri(uri)
        self._patience_s = patience_s

    def child(self, name: str) -> RemoteFolder:
        """A folder in this one."""
        return RemoteFolder(f"{self.uri}/{name}", patience_s=self._patience_s)

    def put(self, name: str, content: bytes | IO[bytes]) -> None:
        """Makes or replaces an object; a file is read from its start to its present end."""
        try:
            self._try(f"write {name}", lambda files: self._put(files, name, content))
        except ObjectMissing:  # as Google's storage tells it
            reason, remedy = _FINAL["NO_SUCH_BUCKET"]
            message = f"cannot write {name} in {self.uri}: {reason}; {remedy}"
            raise StorageError(message, final=True) from None

    def get(self, name: str) -> bytes:
        """An object's content. Raises ObjectMissing."""

        def read(files: Any) -> bytes:
            with files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())

        return self._try(f"read {name}", read)

    def download(self, name: str, target: Path) -> None:
        """An object's content into a new file. Raises ObjectMissing."""
        with target.open("wb") as file:

            def copy(files: Any) -> None:
                file.truncate(0)
                file.seek(0)
                with files.open_input_stream(self._path(name)) as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        file.write(chunk)

            self._try(f"read {name}", copy)

    def list(self) -> dict[str, int]:
        """Name -> bytes of every object in the folder and below; empty where there is none."""
        return {name: info.size for name, info in self._list().items()}

    def list_times(self) -> dict[str, float]:
        """Name -> when it was last written, in seconds since 1970 by the storage's clock."""
        return {name: info.mtime_ns / 1e9 for name, info in self._list().items()}

    def delete(self, name: str) -> None:
        """Removes an object; one that is not there is no fault."""
        with suppress(ObjectMissing):
            self._try(f"delete {name}", lambda files: files.delete_file(self._path(name)))

    def delete_folder(self, name: str) -> None:
        """Removes all objects below `name`."""
        with suppress(ObjectMissing):
            self._try(f"delete {name}", lambda files: files.delete_dir(self._path(name)))

    def move(self, name: str, other: RemoteFolder) -> None:
        """Moves an object to the same name in another folder of the same storage."""
        source, target = self._path(name), other._path(name)

        def move(files: Any) -> None:
            self._make_parent(files, target)
            files.move(source, target)

        self._try(f"move {name}", move)

    def _path(self, name: str) -> str:
        return f"{self._location.path}/{name}"

    def _list(self) -> dict[str, Any]:
        from pyarrow.fs import FileSelector, FileType

        root = self._path("").rstrip("/")

        def ask(files: Any) -> dict[str, Any]:
            found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
            named = ((info.path.removeprefix(root).lstrip("/"), info) for info in found)
            return {name: info for name, info in named if info.type == FileType.File}

        return self._try("list it", ask)

    def _put(self, files: Any, name: str, content: bytes | IO[bytes]) -> None:
        path = self._path(name)
        self._make_parent(files, path)
        # A file system shows files that are being written; object stores do not.
        building = f"{path}.part" if self._location.scheme == "file" else path
        with files.open_output_stream(building) as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                _copy(content, stream)
        if building != path:
            files.move(building, path)

    def _make_parent(self, files: Any, path: str) -> None:
        if self._location.scheme == "file":
            files.create_dir(path.rpartition("/")[0], recursive=True)

    def _try(self, what: str, action: Callable[[Any], _T]) -> _T:
        end_s = time.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return action(_connect(*_read_environment(self._location.scheme)))
            except FileNotFoundError as error:
                raise ObjectMissing(f"cannot {what} in {self.uri}: not there") from error
            except (OSError, ValueError) as error:
                if str(error).startswith("No such directory"):  # Google's
                    raise ObjectMissing(f"cannot {what} in {self.uri}: not there") from error
                if self._is_of_own_disk(error):
                    raise
                failed = self._explain(error, what)
            if failed.final or time.monotonic() + pause_s > end_s:
                raise failed
            time.sleep(jittered(pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _is_of_own_disk(self, error: Exception) -> bool:
        """The file that is sent or fetched cannot be read or written; storage gives no number."""
        return self._location.scheme != "file" and getattr(error, "errno", None) is not None

    def _explain(self, error: Exception, what: str) -> StorageError:
        where = f"cannot {what} in {self.uri}"
        if self._location.scheme == "file":
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error)
            return StorageError(f"{where}: {reason}; check that the folder can be written")
        match = _S3_ERROR.search(str(error)) or _GOOGLE_ERROR.search(str(error))
        code = match[1] if match else type(error).__name__
        if "OAuth2 access token" in str(error):
            code = "UNAUTHENTICATED"
        if code in _FINAL:
            reason, remedy = _FINAL[code]
            return StorageError(f"{where}: {reason}; {remedy}", final=True)
        if code in {"NETWORK_CONNECTION", "UNAVAILABLE", "DEADLINE_EXCEEDED"}:
            return StorageError(f"{where}: {_NO_ANSWER[0]}; {_NO_ANSWER[1]}")
        status = re.search(r"HTTP status (\d+)", str(error))
        shown = f"{code}, HTTP status {status[1]}" if status else code
        return StorageError(f"{where}: the endpoint answers with an error ({shown})")


def jittered(pause_s: float) -> float:
    """Between half and one and a half of it: many that failed together do not return together."""
    return pause_s * random.uniform(0.5, 1.5)


def _copy(source: IO[bytes], stream: Any) -> None:
    """All that the file has now; what is appended meanwhile comes with the next copy."""
    left = os.fstat(source.fileno()).st_size
    source.seek(0)
    while left > 0:
        chunk = source.read(min(CHUNK_BYTES, left))
        if not chunk:
            return
        stream.write(chunk)
        left -= len(chunk)


def _read_environment(scheme: str) -> tuple[str, str | None, str | None]:
    """Scheme, endpoint, region; pyarrow reads credentials itself, endpoints not in every form."""
    given = (os.environ.get(name) for name in _ENDPOINTS[scheme])
    endpoint = next((name for name in given if name), None)
    return scheme, endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=8)
def _connect(scheme: str, endpoint: str | None, region: str | None) -> Any:
    """One client for a whole process: it keeps connections open."""
    from pyarrow import fs

    if scheme == "file":
        return fs.LocalFileSystem()
    options: dict[str, Any] = {}
    if endpoint is not None:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        options = {"endpoint_override": parts.netloc + parts.path, "scheme": parts.scheme}
    if scheme == "gs":
        # An endpoint of another name is an emulator, which knows no accounts.
        options["anonymous"] = endpoint is not None
        return fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=REQUEST_TIMEOUT_S))
    if region is not None or endpoint is not None:
        # Others than Amazon take any region; without one pyarrow would ask Amazon.
        options["region"] = region or "us-east-1"
    return fs.S3FileSystem(
        **options,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        # One request for a small object, and a missing bucket is found when closing.
        allow_delayed_open=True,
        # We try again ourselves, with longer pauses and without holding a thread.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
