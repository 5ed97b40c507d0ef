"""model.zip: a trained policy that can be read without running any code from it.

Format version 2 (docs/model-archive.md), a zip whose members are stored uncompressed with fixed
times, so that equal content gives equal bytes:

- `weights.safetensors`: the module's arrays by name;
- `config.json`: the ExperimentConfig of the run;
- `metadata.json`: format_version, what the model is and does, and sha256 of each other member;
- members for others: README.md, and those that Stable-Baselines3 reads. Version 1 had none.

Reading happens in memory, nothing is extracted, no pickle is involved: members for others are
proved against their sums and not looked into; members without a sum are ignored.
"""

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from retro_ml.core.artifacts.guarded_zip import ZipFault, open_zip, read_member
from retro_ml.core.artifacts.storage import replace_atomically
from retro_ml.core.experiments.faults import as_line

FORMAT_VERSION = 2
WEIGHTS, CONFIG, METADATA = "weights.safetensors", "config.json", "metadata.json"
CARD = "README.md"
MAX_JSON_BYTES = 1024**2
MAX_HEADER_BYTES = 64 * 1024  # of the weights; the 12 arrays of NatureCNN take 1 kB

_CHUNK_BYTES = 1024**2
_EPOCH = (1980, 1, 1, 0, 0, 0)  # The earliest time that a zip can hold.

Weights = dict[str, npt.NDArray[Any]]


class ArchiveError(Exception):
    """A file is no model.zip that can be trusted; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class ModelArchive:
    """What a model.zip holds; `weights` are writable arrays by name."""

    weights: Weights
    config: dict[str, Any]
    metadata: dict[str, Any]


def save_model_archive(
    path: Path,
    *,
    weights: Weights,
    config_json: str,
    metadata: dict[str, Any],
    members: Mapping[str, bytes] | None = None,
) -> None:
    """Replace `path` atomically; format_version and sha256 are added to the metadata.

    `members` are those for others, by name. Raises ArtifactError when the file cannot be written,
    ValueError for NaN in the metadata.
    """
    whole = {name: _contiguous(array) for name, array in weights.items()}
    contents = {WEIGHTS: safetensors.numpy.save(whole), CONFIG: config_json.encode()}
    contents |= members or {}
    described = {
        "format_version": FORMAT_VERSION,
        **metadata,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[METADATA] = json.dumps(described, indent=2, allow_nan=False).encode()

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in contents.items():
                archive.writestr(_member_info(name), data)

    replace_atomically(path, write)


def load_model_archive(path: Path) -> ModelArchive:
    """Read and verify a model.zip. Raises ArchiveError with one message for whatever is wrong."""
    limits_bytes = {METADATA: MAX_JSON_BYTES, CONFIG: MAX_JSON_BYTES}
    try:
        with open_zip(path, limits_bytes=limits_bytes) as archive:
            if METADATA not in archive.namelist() and "policy.pth" in archive.namelist():
                raise ZipFault("Stable-Baselines3 wrote it; a run can begin with it (--init-from)")
            contents = {name: read_member(archive, name) for name in (METADATA, CONFIG, WEIGHTS)}
            metadata = parse_json(METADATA, contents[METADATA])
            _check_version(metadata.get("format_version"))
            _check_hashes(metadata.get("sha256"), contents, archive)
        config = parse_json(CONFIG, contents[CONFIG])
        return ModelArchive(_parse_weights(contents[WEIGHTS]), config, metadata)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
    except ZipFault as fault:
        raise ArchiveError(f"{path} is no usable model.zip: {fault}") from fault.__cause__


def read_agent_steps(path: Path) -> int:
    """Taken when the model was made. Raises ArchiveError."""
    agent_steps = load_model_archive(path).metadata.get("agent_steps")
    if type(agent_steps) is not int:
        raise ArchiveError(f"{path} is no usable model.zip: {METADATA} has no agent_steps")
    return agent_steps


def read_last_evaluation(path: Path) -> float:
    """Mean score of the last evaluation before the model was made; a best_model.zip's own.

    Raises:
        ArchiveError: it is no usable model, or was never evaluated.
    """
    try:
        score = load_model_archive(path).metadata["history"]["evaluations"][-1]["mean_score"]
    except (LookupError, TypeError):
        score = None
    if type(score) not in (int, float):
        raise ArchiveError(f"{path} tells of no evaluation")
    return float(score)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def parse_json(
    name: str, data: bytes, *, parse_constant: Callable[[str], Any] = _refuse_constant
) -> dict[str, Any]:
    """The JSON object in the member `name`; NaN and infinity are refused. Raises ZipFault."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        raise ZipFault(f"{name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ZipFault(f"{name} is no JSON object")
    return value


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise ZipFault(f"{METADATA} has no format_version")
    if version > FORMAT_VERSION:
        raise ZipFault(
            f"its format version is {version}, this retro_ml reads up to {FORMAT_VERSION}: "
            "install a newer one"
        )


def _check_hashes(hashes: Any, contents: dict[str, bytes], archive: zipfile.ZipFile) -> None:
    """Every member that has a sum, read for it or not; CONFIG and WEIGHTS must have one."""
    if not isinstance(hashes, dict) or not {CONFIG, WEIGHTS} <= hashes.keys():
        raise ZipFault(f"{METADATA} has no sha256 of {CONFIG} and {WEIGHTS}")
    names = archive.namelist()
    for name, expected in hashes.items():
        shown = as_line(name, longest=60)
        if names.count(name) != 1:
            raise ZipFault(f"{names.count(name)} members {shown}, there must be one")
        if name in contents:
            found = hashlib.sha256(contents[name]).hexdigest()
        else:
            found = _hash_member(archive, name)
        if found != expected:
            raise ZipFault(f"{shown} is not what was written: its sha256 differs")


def _hash_member(archive: zipfile.ZipFile, name: str) -> str:
    digest, left = hashlib.sha256(), archive.getinfo(name).file_size
    with archive.open(name) as member:
        while chunk := member.read(_CHUNK_BYTES):
            digest.update(chunk)
            left -= len(chunk)
            if left < 0:
                raise ZipFault(f"member {name!r} is longer than it says")
    return digest.hexdigest()


def _parse_weights(data: bytes) -> Weights:
    header_bytes = int.from_bytes(data[:8], "little")  # safetensors would take 100 MB of JSON
    if header_bytes > MAX_HEADER_BYTES:
        fault = f"its header has more than {MAX_HEADER_BYTES:,} bytes"
        raise ZipFault(f"{WEIGHTS} is no safetensors file ({fault})")
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ZipFault(f"{WEIGHTS} is no safetensors file ({error})") from error
    return {name: array.copy() for name, array in arrays.items()}


def _contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # safetensors writes an array's memory as it lies.
    return np.asarray(array, order="C")


def _member_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, wherever it is written
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info
