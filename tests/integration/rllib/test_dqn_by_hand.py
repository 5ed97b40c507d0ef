"""DQN's switches against numbers worked out by hand.

The heads' weights are zero, so the action values are their biases, whatever is on the screen:
1, 2, 3, 0 in the network and 4, -1, 2, 8 in its target. Three transitions:

    action   reward   discount
       0       1         0.5
       3      -1         0       (nothing follows)
       1       0.5       0.25    (two steps of a discount of 0.5)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.integration

BuildLearner = Callable[..., Any]
ONLINE, TARGET = [1.0, 2.0, 3.0, 0.0], [4.0, -1.0, 2.0, 8.0]


def set_biases(small: Any) -> None:
    pairs = ((small.module.network, ONLINE, 10.0), (small.module.target_network, TARGET, -1.0))
    with torch.no_grad():
        for network, biases, value in pairs:
            network.q.weight.zero_()
            network.q.bias.copy_(torch.tensor(biases))
            if network.value is not None:
                network.value.weight.zero_()
                network.value.bias.fill_(value)


def loss_of_three(small: Any, **columns: Any) -> float:
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 21, 21, 64), dtype=np.uint8)
    batch = {
        "obs": noise[0],
        "new_obs": noise[1],
        "actions": np.array([0, 3, 1]),
        "rewards": np.array([1, -1, 0.5], np.float32),
        "discounts": np.array([0.5, 0, 0.25], np.float32),
        **columns,
    }
    tensors = {name: torch.as_tensor(column) for name, column in batch.items()}
    (minibatch,) = small.learner._minibatches(tensors, 3, 3, 1, False)
    given = dict(minibatch.policy_batches["default_policy"])
    loss = small.learner.compute_loss_for_module(
        module_id="default_policy",
        config=small.config,
        batch=given,
        fwd_out=small.module.forward_train(given),
    )
    return float(loss.detach())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # targets: 1 + 8/2 = 5; -1; 0.5 + 8/4 = 2.5; errors: 1 - 5 = -4; 0 + 1 = 1; 2 - 2.5 = -0.5
        ({}, (3.5 + 0.5 + 0.125) / 3),
        ({"loss": "mse"}, (16 + 1 + 0.25) / 3),
        # the network's best action is 2, worth 2 to the target: 1 + 2/2 = 2; -1; 0.5 + 2/4 = 1
        # errors: 1 - 2 = -1; 1; 2 - 1 = 1
        ({"double": True}, (0.5 + 0.5 + 0.5) / 3),
        ({"double": True, "loss": "mse"}, 1.0),
        # dueling, values 10 and -1. Advantages 1 2 3 0, mean 1.5: 9.5 10.5 11.5 8.5; 4 -1 2 8,
        # mean 3.25: -0.25 -5.25 -2.25 3.75. Targets: 1 + 3.75/2 = 2.875; -1; 0.5 + 3.75/4 = 1.4375;
        # errors: 6.625; 9.5; 9.0625
        ({"dueling": True}, (6.125 + 9.0 + 8.5625) / 3),
        # double beside it: -2.25. Targets: -0.125; -1; -0.0625; errors: 9.625; 9.5; 10.5625
        ({"dueling": True, "double": True}, (9.125 + 9.0 + 10.0625) / 3),
    ],
    ids=str,
)
def test_loss(build_learner: BuildLearner, settings: dict[str, Any], expected: float) -> None:
    small = build_learner("DQN", dqn=settings)
    set_biases(small)
    assert loss_of_three(small) == pytest.approx(expected, rel=1e-5)


def test_prioritised(build_learner: BuildLearner) -> None:
    """Weights 1, 1/2 and 1/4 of the losses 3.5, 0.5 and 0.125; the errors stay unweighted."""
    small = build_learner("DQN", dqn={"prioritized": True})
    set_biases(small)
    loss = loss_of_three(small, weights=np.array([1, 0.5, 0.25], np.float32))
    assert loss == pytest.approx((3.5 + 0.25 + 0.03125) / 3, rel=1e-5)
    np.testing.assert_allclose(small.learner.take_errors(), [-4, 1, -0.5], rtol=1e-5)


def test_the_targets_copy_is_remembered(build_learner: BuildLearner) -> None:
    """Copies are due each 1,000 agent steps; a learner that goes on at 1,500 owes none."""
    first, second = build_learner("DQN"), build_learner("DQN")
    batch = {
        "obs": np.zeros((2, 21, 21, 64), np.uint8),
        "new_obs": np.zeros((2, 21, 21, 64), np.uint8),
        "actions": np.array([0, 1]),
        "rewards": np.array([1, -1], np.float32),
        "discounts": np.array([0.5, 0], np.float32),
    }
    first.update(batch, agent_steps=1_008)
    second.learner.set_state(first.learner.get_state())
    for agent_steps, copied in ((1_500, False), (2_000, True)):
        second.update(batch, agent_steps=agent_steps)
        pairs = zip(
            second.module.network.parameters(),
            second.module.target_network.parameters(),
            strict=True,
        )
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs) is copied
