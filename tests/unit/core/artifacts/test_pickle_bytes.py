"""Pickles written by hand are what Python's own unpickler understands."""

import io
import pickle
import pickletools
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from retro_ml.core.artifacts.pickle_bytes import Call, Global, Persistent, write_pickle

pytestmark = pytest.mark.unit

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**31 - 1,
    -(2**31),
    0.1,
    1e-300,
    "",
    "ü\n",
    (),
    (1,),
    (1, "a", None, 2.5),
    [],
    [1, [2, (3,)]],
    {},
    {"a": 1, "b": {"c": (1, 2)}},
]


@pytest.mark.parametrize("value", VALUES)
def test_plain_values_come_back(value: Any) -> None:
    read = pickle.loads(write_pickle(value))

    assert read == value
    assert type(read) is type(value)


def test_a_class_is_named_and_called_by_whoever_reads() -> None:
    assert pickle.loads(write_pickle(Global("collections", "OrderedDict"))) is OrderedDict
    dtype = pickle.loads(write_pickle(Call(Global("numpy", "dtype"), ("float32",))))

    assert dtype == np.float32


def test_what_lies_outside_is_asked_for_by_its_name() -> None:
    class Reader(pickle.Unpickler):
        def persistent_load(self, name: Any) -> Any:
            return ("outside", name)

    assert Reader(io.BytesIO(write_pickle([Persistent(("a", 1))]))).load() == [
        ("outside", ("a", 1))
    ]


def test_the_bytes_are_well_formed_and_always_the_same() -> None:
    value = {"a": [1, 2.5], "b": Call(Global("collections", "OrderedDict"))}
    pickletools.dis(write_pickle(value), out=io.StringIO())

    assert write_pickle(value) == write_pickle(dict(value))


def test_what_cannot_be_written_is_an_error() -> None:
    with pytest.raises(TypeError, match="a set is not written"):
        write_pickle({"a": {1}})
    with pytest.raises(struct.error):
        write_pickle(2**31)
