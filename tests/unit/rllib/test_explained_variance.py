"""How much of the targets' spread the values explain."""

import pytest
import torch

from retro_ml.rllib.ppo import explained_variance

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("predictions", "targets", "expected"),
    [
        ([1.0, 2.0, 6.0], [1.0, 2.0, 6.0], 1.0),
        ([5.0, 6.0, 10.0], [1.0, 2.0, 6.0], 1.0),  # a constant error is no spread
        ([3.0, 3.0, 3.0], [1.0, 2.0, 6.0], 0.0),
        # errors 1 and -1: variance 1; targets 0 and 4: variance 4
        ([1.0, 3.0], [0.0, 4.0], 0.75),
        ([0.0, 1.0], [7.0, 7.0], 0.0),
        ([3.0], [1.0], 0.0),
    ],
)
def test_explained_variance(
    predictions: list[float], targets: list[float], expected: float
) -> None:
    found = explained_variance(torch.tensor(predictions), torch.tensor(targets))
    assert float(found) == pytest.approx(expected, abs=1e-6)
