"""Files as `torch.save` writes them, without PyTorch; `torch.load` reads them with weights_only.

A zip of `data.pkl`, which describes the tensors, of `data/N`, their numbers, and of two small
members about the format. Stored uncompressed with fixed times; arrays that are given twice are
stored once, as tensors that share their memory are. Layout: PyTorch's `torch/serialization.py` and
`caffe2/serialize/inline_container.h`, version 3.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from retro_ml.core.artifacts.pickle_bytes import Call, Global, Persistent, write_pickle

_FOLDER = "archive"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # The earliest time that a zip can hold.
_NO_HOOKS = Call(Global("collections", "OrderedDict"))


def build_torch_file(value: Any) -> bytes:
    """What `torch.save(value)` would put into a file.

    Args:
        value: as `write_pickle` takes it, and float32 arrays, which become tensors.

    Raises:
        TypeError: an array of another dtype, or a value that is not written.
    """
    storages: dict[int, tuple[str, npt.NDArray[np.float32]]] = {}
    description = write_pickle(_describe(value, storages))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", description)
        _add(archive, "byteorder", b"little")
        for key, array in storages.values():
            _add(archive, f"data/{key}", array.astype("<f4", copy=False).tobytes())
        _add(archive, "version", b"3\n")
    return file.getvalue()


def _describe(value: Any, storages: dict[int, tuple[str, npt.NDArray[np.float32]]]) -> Any:
    """`value` with its arrays replaced by what rebuilds them; they are added to `storages`."""
    if isinstance(value, dict):
        return {name: _describe(item, storages) for name, item in value.items()}
    if isinstance(value, list):
        return [_describe(item, storages) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != np.float32:
        raise TypeError(f"an array of {value.dtype} is not written")
    key, _ = storages.setdefault(id(value), (str(len(storages)), value))
    kind = Global("torch", "FloatStorage")
    storage = Persistent(("storage", kind, key, "cpu", value.size))
    strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, 0, value.shape, strides, False, _NO_HOOKS))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}", _EPOCH), content)
