"""What a command is given to read: a model, or folders of runs, here or in storage.

What a URI names (s3://, gs://, file://) is fetched into a folder of this call, and only as much of
it as the command needs. A run's staging place is left alone: it belongs to whoever trains.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread

from retro_ml.core.artifacts.remote_folder import ObjectMissing, RemoteFolder, StorageError
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line
from retro_ml.core.experiments.locations import hide_credentials, is_uri, normalize_uri
from retro_ml.core.experiments.run_paths import RunPaths

__all__ = [
    "STORAGE_FAILED",
    "GivenFolder",
    "GivenModel",
    "StorageError",
    "find_address",
    "open_model",
    "open_runs",
]

STORAGE_FAILED = 3
"""The exit code of a command whose storage does not answer."""
PATIENCE_S = 20.0
FETCHED_AT_ONCE = 16
"""They wait for answers, mostly (this project's choice)."""
MAX_DEPTH = 4
"""Folders below the one given: output folder, sweep, experiment, and one to spare."""
_LONGEST_PATH = 200  # characters that are shown
_SCRATCH = "retro_ml-"
# A name in storage may be anything; one that is followed is plain, and hidden nowhere.
_PART = r"[A-Za-z0-9_][A-Za-z0-9 ._=+,~-]*"
_PLAIN = re.compile(f"{_PART}(/{_PART})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A trained model that can be read here."""

    path: Path
    run: RunPaths | None
    """The run whose model it is; None where a file was given."""
    storage: RemoteFolder | None = None
    """The folder that it was fetched from; None: it is where it was."""

    @property
    def address(self) -> str:
        """Where it is in truth."""
        return self._address(self.path)

    def in_words(self, error: Exception) -> str:
        """What is wrong with it, under the name that its user knows."""
        return str(error).replace(str(self.path), self.address)

    def keep(self, made: Path) -> str:
        """Sends what was made beside the model to where that is; its address. Raises StorageError.

        What was made elsewhere stays there. What cannot be sent is kept in the current folder.
        """
        if self.storage is not None and made.is_relative_to(self.path.parent):
            with _kept_here(made), made.open("rb") as file:
                self.storage.put(made.relative_to(self.path.parent).as_posix(), file)
        return self._address(made)

    def _address(self, path: Path) -> str:
        folder = self.path.parent
        if self.storage is None or not path.is_relative_to(folder):
            return str(path)
        return f"{self.storage.uri}/{path.relative_to(folder).as_posix()}"


@dataclass(frozen=True, slots=True)
class GivenFolder:
    """A folder of runs that can be read here."""

    path: Path
    storage: RemoteFolder | None = None
    """What it was fetched from; None: it is where it was."""

    def address(self, path: Path) -> str:
        """Where something is in truth."""
        if self.storage is None or not path.is_relative_to(self.path):
            return str(path)
        return "/".join([self.storage.uri, *path.relative_to(self.path).parts])

    def keep(self, made: Sequence[Path]) -> None:
        """Sends what was made in it to where it is. Raises StorageError.

        What cannot be sent is kept in the current folder, in one that is named after this.
        """
        if self.storage is not None and made:
            with _kept_here(self.path, *made):
                for path in made:
                    self.storage.put(path.relative_to(self.path).as_posix(), path.read_bytes())


@contextmanager
def open_model(given: str) -> Iterator[GivenModel]:
    """The model that a run's folder, its URI, or a model.zip's path or URI names.

    Raises:
        UsageError: there is none.
        StorageError: storage does not answer.
    """
    if not is_uri(given):
        yield _find_model(given)
        return
    remote = _open_remote(given, word="MODEL")
    with ExitStack() as stack:
        above, _, name = remote.uri.rpartition("/")
        is_file = name.endswith(".zip") and "://" in above
        if is_file:
            remote = _open_remote(above, word="MODEL")
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix=_SCRATCH))
            paths = RunPaths(output_dir=folder, experiment_id=remote.uri.rpartition("/")[2])
            paths.experiment_dir.mkdir()
            path = paths.experiment_dir / name if is_file else paths.model_path
            remote.download(path.name, path)
        except ObjectMissing:
            raise UsageError(
                [
                    f"MODEL: {remote.uri} -> there is no {path.name}: give the URI of a run that "
                    "has saved its model, or of a model.zip"
                ]
            ) from None
        except OSError as error:
            raise _cannot_fetch("MODEL", remote, error) from None
        yield GivenModel(path, None if is_file else paths, remote)


@contextmanager
def open_runs(
    given: Sequence[str], *, word: str, needed: Callable[[str], bool]
) -> Iterator[list[GivenFolder]]:
    """Folders with runs in them, or runs' own, in the order given.

    Args:
        given: folders here, which are taken as they are, and URIs.
        word: what the command calls them.
        needed: says by its name in a run's folder, or beside the runs, whether a file is fetched.

    Raises:
        UsageError: a URI is none, or no run is in it; all faults.
        StorageError: storage does not answer.
    """
    with ExitStack() as stack:
        scratch: str | None = None  # runs that are here need none, nor room for it
        faults: list[str] = []
        folders = []
        for number, text in enumerate(given):
            if not is_uri(text):
                folders.append(GivenFolder(Path(text)))
                continue
            try:
                remote = _open_remote(text, word=word)
                if scratch is None:
                    scratch = stack.enter_context(TemporaryDirectory(prefix=_SCRATCH))
                folder = Path(scratch, str(number), remote.uri.rpartition("/")[2])
                _fetch(remote, folder, word=word, needed=needed)
                folders.append(GivenFolder(folder, remote))
            except UsageError as error:
                faults += error.faults
            except OSError as error:
                raise _cannot_fetch(word, remote, error) from None
        if faults:
            raise UsageError(faults)
        yield folders


def find_address(path: Path, folders: Sequence[GivenFolder]) -> str:
    """Where something in one of the folders is in truth."""
    addresses = (folder.address(path) for folder in folders)
    return next((address for address in addresses if address != str(path)), str(path))


@contextmanager
def _kept_here(made: Path, *parts: Path) -> Iterator[None]:
    """Moves what was made into the current folder where the block cannot send it, and says so.

    Args:
        made: a file, or the folder of `parts`.
        parts: the files in it.
    """
    try:
        yield
    except (StorageError, KeyboardInterrupt) as error:
        try:
            kept = _free_name(made)
            for part in parts or [made]:
                target = kept / part.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(part, target)
            words = f"what was made is kept here, as {kept}"
        except OSError as fault:
            words = f"what was made cannot be kept here: {fault.strerror or fault}"
        raise type(error)("; ".join(filter(None, [str(error), words]))) from None


def _free_name(path: Path) -> Path:
    """In the current folder; the second of a name is NAME-2."""
    names = (f"{path.stem}-{number}{path.suffix}" for number in count(2))
    return next(Path(name) for name in chain([path.name], names) if not os.path.lexists(name))


def _find_model(given: str) -> GivenModel:
    """On this machine. Raises: UsageError."""
    path, given = Path(given), as_line(given, longest=_LONGEST_PATH)
    try:
        if path.is_file():
            return GivenModel(path, None)
        if not path.is_dir():
            raise UsageError([f"MODEL: {given} -> no such file or folder"])
        folder = path.resolve()
        paths = RunPaths(output_dir=str(folder.parent), experiment_id=folder.name)
        name = paths.model_path.name
        if not (path / name).is_file():
            raise UsageError(
                [
                    f"MODEL: {given} -> this folder has no {name}: give the folder of a run that "
                    "has saved its model, or a model.zip"
                ]
            )
    except OSError as error:  # a name too long, or a folder on the way that may not be entered
        raise UsageError([f"MODEL: {given} -> cannot be read: {error.strerror}"]) from None
    return GivenModel(path / name, paths)


def _open_remote(given: str, *, word: str) -> RemoteFolder:
    try:
        return RemoteFolder(normalize_uri(given), patience_s=PATIENCE_S)
    except ValueError as error:
        raise UsageError([f"{word}: {hide_credentials(given)} -> {error}"]) from None


def _cannot_fetch(word: str, remote: RemoteFolder, error: OSError) -> UsageError:
    try:
        into = f" into {gettempdir()}"
    except FileNotFoundError:  # none can be written, and the error says so
        into = ""
    return UsageError(
        [
            f"{word}: {remote.uri} -> cannot be fetched{into}: {error.strerror}; "
            "TMPDIR names another folder"
        ]
    )


def _fetch(remote: RemoteFolder, folder: Path, *, word: str, needed: Callable[[str], bool]) -> None:
    """What is needed of the runs below a URI, and of what lies beside them."""
    changed_s = {
        name: time_s for name, time_s in remote.list_times().items() if _PLAIN.fullmatch(name)
    }
    runs = _find_runs(changed_s)
    if not runs:
        raise UsageError(
            [
                f"{word}: {remote.uri} -> no run is in it: a run has a config.json and a "
                "status.json or metrics.csv"
            ]
        )
    wanted = [f"{run}{name}" for run, names in runs.items() for name in names if needed(name)]
    wanted += [name for name in changed_s if "/" not in name and needed(name)]

    def fetch(name: str) -> None:
        target = folder / name
        try:
            remote.download(name, target)
        except ObjectMissing:  # deleted meanwhile
            target.unlink(missing_ok=True)
            return
        os.utime(target, (changed_s[name], changed_s[name]))

    names = list(dict.fromkeys(wanted))
    for parent in {(folder / name).parent for name in names} | {folder / run for run in runs}:
        parent.mkdir(parents=True, exist_ok=True)
    _call_side_by_side(fetch, names)


def _call_side_by_side(action: Callable[[str], None], names: Sequence[str]) -> None:
    """Raises the first error at once, and Ctrl-C: nobody waits for an endpoint that hangs."""
    waiting = list(names)
    shared = iter(waiting)
    ends: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            for name in shared:
                action(name)
        except Exception as error:
            ends.put(error)
        else:
            ends.put(None)

    # Those of an executor would be waited for when Python ends.
    threads = [Thread(target=work, daemon=True) for _ in range(min(FETCHED_AT_ONCE, len(names)))]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            error = ends.get()
            if error is not None:
                raise error
    finally:
        waiting.clear()


def _find_runs(names: Mapping[str, float]) -> dict[str, list[str]]:
    """The files of each run, by its folder's name with a slash behind; "" is the folder itself."""
    config, told = _names_of_a_run()
    below: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split("/")
        for depth in range(min(len(parts), MAX_DEPTH + 1)):
            run = "/".join([*parts[:depth], ""])
            if f"{run}{config}" in names and any(f"{run}{one}" in names for one in told):
                below[run].append("/".join(parts[depth:]))
                break  # what is inside a run is the run's
    return dict(below)


def _names_of_a_run() -> tuple[str, tuple[str, str]]:
    """config.json, and the two of which one is there as well."""
    paths = RunPaths(output_dir="/", experiment_id="")
    return paths.config_path.name, (paths.status_path.name, paths.metrics_csv_path.name)
