"""States come back exactly, without pickle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retro_ml.rllib.state_files import load_state, save_state

pytestmark = pytest.mark.unit


def round_trip(state: Any, folder: Path) -> Any:
    save_state(state, folder, "state")
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    return load_state(folder, "state")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.zeros(0, np.uint8),
        np.frombuffer(b"", np.uint8),
        np.array(2.5),
        np.array([True, False]),
        np.array([2**62, -1]),
        np.array([np.nan, np.inf, 1e-45], np.float32),
    ],
)
def test_an_array_comes_back(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    (found,) = round_trip([array], tmp_path)
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        True,
        1.5,
        "text",
        2**127 + 1,
        [1, [2, []]],
        (1, (2,)),
        {},
        {"a": {"b": (None,)}},
        {0: "x"},
    ],
)
def test_plain_values_come_back(plain: Any, tmp_path: Path) -> None:
    found = round_trip({"value": plain}, tmp_path)["value"]
    assert found == plain
    assert type(found) is type(plain)


def test_an_optimizers_state_comes_back(tmp_path: Path) -> None:
    """Parameters are numbered there: keys that are no strings."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    found = round_trip(optimizer.state_dict(), tmp_path)
    assert list(found["state"]) == [0]
    np.testing.assert_array_equal(
        found["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"].numpy()
    )
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_generators_state_comes_back(tmp_path: Path) -> None:
    rng, again = np.random.default_rng(1), np.random.default_rng(2)
    again.bit_generator.state = round_trip(rng.bit_generator.state, tmp_path)
    assert rng.random() == again.random()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_anything_else_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="state at /inner/0 is a"):
        save_state({"inner": [value]}, tmp_path, "state")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    array = np.zeros(1)
    with pytest.raises(ValueError, match="two arrays"):
        save_state({"a/b": array, "a": {"b": array}}, tmp_path, "state")
