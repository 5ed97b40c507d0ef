"""Files of tensors written without PyTorch are those that it reads."""

import io
import zipfile

import numpy as np
import pytest
import torch

from retro_ml.core.artifacts.torch_file import build_torch_file

pytestmark = pytest.mark.unit

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def read(content: bytes) -> object:
    return torch.load(io.BytesIO(content), weights_only=True)


def test_tensors_of_every_shape_come_back() -> None:
    shapes = {"scalar": (), "empty": (0, 3), "vector": (5,), "kernel": (2, 3, 4, 5)}
    arrays = {
        name: np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }

    state = read(build_torch_file(arrays))

    assert isinstance(state, dict)
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        assert state[name].dtype == torch.float32
        np.testing.assert_array_equal(state[name].numpy(), array)


def test_an_array_given_twice_is_stored_once() -> None:
    content = build_torch_file({"a": ARRAY, "b": ARRAY, "c": ARRAY.copy()})
    state = read(content)

    assert isinstance(state, dict)
    assert state["a"].data_ptr() == state["b"].data_ptr() != state["c"].data_ptr()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert [n for n in archive.namelist() if "/data/" in n] == [
            "archive/data/0",
            "archive/data/1",
        ]


def test_numbers_beside_tensors_and_nothing_at_all() -> None:
    group = {"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1]}

    assert read(build_torch_file({"state": {}, "param_groups": [group]})) == {
        "state": {},
        "param_groups": [group],
    }
    assert read(build_torch_file(None)) is None


def test_an_array_that_lies_otherwise_in_memory_keeps_its_values() -> None:
    state = read(build_torch_file({"a": ARRAY.transpose(2, 0, 1)}))

    assert isinstance(state, dict)
    np.testing.assert_array_equal(state["a"].numpy(), ARRAY.transpose(2, 0, 1))


def test_equal_values_give_equal_bytes() -> None:
    assert build_torch_file({"a": ARRAY}) == build_torch_file({"a": ARRAY.copy()})


def test_other_numbers_than_float32_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        build_torch_file({"a": ARRAY.astype(np.float64)})
