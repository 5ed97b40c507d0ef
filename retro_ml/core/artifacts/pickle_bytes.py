"""Pickles for other programs to read, written opcode by opcode: nothing here ever reads one.

Stable-Baselines3 and PyTorch keep classes and tensors as pickles. Python's own pickler would have
to import whatever it names; here a class is a `Global`, two words, and so neither library is needed
to write what it will read. Equal values give equal bytes. Protocol 2, opcodes as in `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Global:
    """What a module holds under a name, e.g. a class."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """What a `Global` gives when it is called with these arguments."""

    function: Global
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Persistent:
    """Something that lies outside of the pickle, by the name that its reader knows it by."""

    name: tuple[Any, ...]


def write_pickle(value: Any) -> bytes:
    """`value` as a pickle of protocol 2.

    Args:
        value: None, bool, int of up to 32 bits, float, str, tuples, lists and dicts of such, and
            `Global`, `Call`, `Persistent`.

    Raises:
        TypeError: it is of another kind.
        struct.error: a whole number needs more than 32 bits.
    """
    return b"\x80\x02" + _write(value) + b"."


def _write(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + _join(value) + b"t"
        case list():
            return b"](" + _join(value) + b"e"
        case dict():
            return b"}(" + _join(part for item in value.items() for part in item) + b"u"
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return _write(function) + _write(arguments) + b"R"
        case Persistent(name):
            return _write(name) + b"Q"
    raise TypeError(f"a {type(value).__name__} is not written")


def _join(values: Iterable[Any]) -> bytes:
    return b"".join(_write(value) for value in values)
