"""State dicts as `torch.save` writes them, read without PyTorch and without unpickling.

The file is a zip, laid out as in `torch_file`. Its pickle is interpreted here, opcode by opcode:
only those opcodes are known that float32 tensors by name take; nothing is imported and nothing is
called. `torch.load(weights_only=True)` will not do for files from anywhere: before PyTorch 2.10 a
pickle made on purpose corrupts memory there (CVE-2026-24747).
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.core.artifacts.guarded_zip import ZipFault, guard_zip, read_member
from retro_ml.core.artifacts.pickle_bytes import Global
from retro_ml.core.experiments.faults import as_line

MAX_PICKLE_BYTES = 1024**2  # of the description of some 40 tensors
MAX_MEMBERS = 1_000
MAX_AXES = 8

_PROTOCOL = 2  # torch.save's
_ORDERED_DICT = Global("collections", "OrderedDict")
_STORAGE = Global("torch", "FloatStorage")
_REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_MARK = object()

Values = NDArray[np.float32]


def read_state_dict(content: bytes) -> dict[str, Values]:
    """Tensors by name, as arrays that may share memory and cannot be written to.

    Raises:
        ZipFault: it is no file of `torch.save`, is damaged, or holds anything but float32 tensors.
    """
    with guard_zip(
        io.BytesIO(content),
        limits_bytes={},
        max_members=MAX_MEMBERS,
        max_bytes=len(content),  # torch.save compresses nothing
    ) as archive:
        descriptions = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(descriptions) != 1:
            raise ZipFault("it is no file of torch.save")
        if archive.getinfo(descriptions[0]).file_size > MAX_PICKLE_BYTES:
            raise ZipFault(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        pickle = read_member(archive, descriptions[0])
        folder = descriptions[0].removesuffix("/data.pkl")
        order = f"{folder}/byteorder"
        if order in archive.namelist() and read_member(archive, order) != b"little":
            raise ZipFault("its numbers are not little-endian")
        reader = _PickleReader(lambda key: read_member(archive, f"{folder}/data/{key}"))
        try:
            state = reader.read(pickle)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise ZipFault(f"its pickle is damaged ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(v, np.ndarray) for v in state.values()):
        raise ZipFault("it holds something else than tensors by name")
    return state


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """The values that tensors are parts of."""

    values: Values


class _PickleReader:
    """A pickle's machine, a stack and a memo, that knows two calls and imports nothing.

    Nothing but strings, whole numbers and `Global`s is compared or hashed, since a file may nest
    whatever else it has as deep as it likes.

    Args:
        read_record: the bytes of a storage by its key.
    """

    def __init__(self, read_record: Callable[[str], bytes]) -> None:
        self._read_record = read_record
        self._storages: dict[str, _Storage] = {}
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        push = self._stack.append
        self._opcodes: dict[str, Callable[[Any], None]] = {
            "PROTO": _check_protocol,
            "MARK": lambda _: push(_MARK),
            "BINUNICODE": push,
            "BININT": push,
            "BININT1": push,
            "BININT2": push,
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_TUPLE": lambda _: push(()),
            "TUPLE1": lambda _: push(self._pop_tuple(1)),
            "TUPLE2": lambda _: push(self._pop_tuple(2)),
            "TUPLE3": lambda _: push(self._pop_tuple(3)),
            "TUPLE": lambda _: push(self._pop_marked()),
            "BINPUT": self._note,
            "LONG_BINPUT": self._note,
            "BINGET": lambda number: push(self._memo[number]),
            "LONG_BINGET": lambda number: push(self._memo[number]),
            "SETITEM": lambda _: self._set_items(self._pop_tuple(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_marked()),
            "GLOBAL": lambda words: push(_find_global(words)),
            "BINPERSID": lambda _: push(self._open_storage(*self._pop_tuple(1))),
            "REDUCE": lambda _: push(_call(*self._pop_tuple(2))),
            "BUILD": lambda _: self._drop_attributes(*self._pop_tuple(1)),
        }

    def read(self, pickle: bytes) -> Any:
        """What it describes. Raises ZipFault, ValueError, TypeError, LookupError, OverflowError."""
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                break
            if opcode.name not in self._opcodes:
                raise ZipFault(f"it holds something else than tensors by name ({opcode.name})")
            self._opcodes[opcode.name](argument)
        return self._stack.pop()

    def _pop_tuple(self, length: int) -> tuple[Any, ...]:
        return tuple(reversed([self._stack.pop() for _ in range(length)]))

    def _pop_marked(self) -> tuple[Any, ...]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return tuple(reversed(values))

    def _note(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _set_items(self, items: tuple[Any, ...]) -> None:
        target, names = self._stack[-1], items[::2]
        if not isinstance(target, dict) or not all(isinstance(name, str) for name in names):
            raise ValueError("items of something else than a dict by name")
        target.update(zip(names, items[1::2], strict=True))

    def _drop_attributes(self, attributes: Any) -> None:
        """Those of an OrderedDict: the versions of the modules that the tensors are of."""
        if not isinstance(attributes, dict) or not isinstance(self._stack[-1], dict):
            raise ValueError("attributes of something else than a dict")

    def _open_storage(self, described: Any) -> _Storage:
        match described:
            case ("storage", Global() as kind, str(key), str(), int(count)) if kind == _STORAGE:
                pass
            case _:
                raise ValueError("something else than a storage of float32")
        if key not in self._storages:
            self._storages[key] = _Storage(np.frombuffer(self._read_record(key), "<f4"))
        storage = self._storages[key]
        if len(storage.values) != count:
            raise ValueError(f"a storage of {count} values has {len(storage.values)}")
        return storage


def _check_protocol(version: int) -> None:
    if version != _PROTOCOL:
        raise ZipFault(f"its pickle is of protocol {version}")


def _find_global(words: str) -> Global:
    module, _, name = words.partition(" ")
    found = Global(module, name)
    if found not in {_ORDERED_DICT, _STORAGE, _REBUILD_TENSOR}:
        named = as_line(f"{module}.{name}", longest=100)
        raise ZipFault(f"its pickle names {named}, which is no tensor")
    return found


def _call(function: Any, arguments: Any) -> Any:
    match arguments:
        case () if function == _ORDERED_DICT:
            return {}
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict()):
            if function == _REBUILD_TENSOR:
                return _view(storage.values, offset=offset, shape=shape, strides=strides)
    raise ValueError("a call that is no tensor's")


def _view(
    values: Values, *, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> Values:
    """The tensor that lies in `values` from `offset` on, without gaps. Raises ValueError."""
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise ValueError("a tensor of no shape")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("a tensor of no shape")
    count = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != count:
            raise ValueError("a tensor that is not contiguous")
        count *= length
    if offset + count > len(values):
        raise ValueError("a tensor larger than its values")
    return values[offset : offset + count].reshape(shape)
