"""Nested state <-> one safetensors file for the arrays and one JSON file for the rest. No pickle.

A state is made of dicts (str or int keys), lists, tuples, numbers, strings, None, numpy arrays and
torch tensors (which come back as numpy arrays).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from retro_ml.core.artifacts.checkpoint_files import CheckpointError
from retro_ml.core.experiments.faults import as_line

# What files of another making come to: no file or no safetensors, no JSON or too deep; an array
# that is not there, something else where a list or a key belongs.
_UNREADABLE = (OSError, SafetensorError, ValueError, OverflowError, RecursionError, LookupError,
               TypeError)  # fmt: skip
_ARRAY, _TUPLE, _ITEMS = "__array__", "__tuple__", "__items__"


def save_state(state: Any, folder: Path, name: str) -> None:
    """Writes `name.safetensors` and `name.json`.

    Raises:
        TypeError: the state holds something else than the kinds above.
        ValueError: keys with slashes, or a number beside its own text, make two names one.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    plain = _take_arrays(state, "", arrays)
    # Through bytes: a full disk is an OSError then, not one of safetensors' own.
    (folder / f"{name}.safetensors").write_bytes(save(arrays))
    (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """The inverse of `save_state`.

    Raises:
        CheckpointError: a file is missing, or not what `save_state` writes.
    """
    try:
        arrays = load_file(folder / f"{name}.safetensors")
        text = (folder / f"{name}.json").read_text(encoding="utf-8")
        return _put_arrays(json.loads(text), arrays)
    except _UNREADABLE as error:
        reason = as_line(f"{type(error).__name__}: {error}", longest=300)
        raise CheckpointError(f"{folder}: the state {name} cannot be read ({reason})") from error


def _take_arrays(value: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if path in arrays:
            raise ValueError(f"two arrays of the state are named {path}")
        arrays[path] = np.ascontiguousarray(value).reshape(value.shape)
        return {_ARRAY: path}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _take_arrays(item, f"{path}/{key}", arrays) for key, item in value.items()}
        items = [[key, _take_arrays(item, f"{path}/{key}", arrays)] for key, item in value.items()]
        return {_ITEMS: items}
    if isinstance(value, list | tuple):
        parts = [_take_arrays(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
        return {_TUPLE: parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state at {path or '/'} is a {type(value).__name__}, which is not saved")


def _put_arrays(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_put_arrays(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    if _TUPLE in value:
        return tuple(_put_arrays(item, arrays) for item in value[_TUPLE])
    if _ITEMS in value:
        return {key: _put_arrays(item, arrays) for key, item in value[_ITEMS]}
    return {key: _put_arrays(item, arrays) for key, item in value.items()}
