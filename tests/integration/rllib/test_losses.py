"""One update of each Learner equals the same written out in plain PyTorch."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.integration

BuildLearner = Callable[..., Any]
BATCH = 8


def observations(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (BATCH, 21, 21, 64), dtype=np.uint8)


def actor_critic_batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "obs": observations(1),
        "actions": np.array([0, 1, 2, 3, 3, 2, 1, 0]),
        # The policy begins almost uniform, log(1/4) = -1.386: ratios from 0.8 to 1.25 and so
        # on both sides of the clip range, for advantages of both signs.
        "action_logp": (np.log(0.25) - np.log([0.8, 0.95, 1.0, 1.05, 1.25, 0.8, 1.25, 1.0])).astype(
            np.float32
        ),
        "advantages": rng.normal(size=BATCH).astype(np.float32),
        "value_targets": (3 * rng.normal(size=BATCH)).astype(np.float32),
    }


def q_batch() -> dict[str, Any]:
    return {
        "obs": observations(1),
        "new_obs": observations(2),
        "actions": np.array([0, 1, 2, 3, 3, 2, 1, 0]),
        # The first two errors are above 1, where Huber's loss is linear.
        "rewards": np.array([4, -3, 0, 1, -1, 0.5, 0, 1], np.float32),
        "discounts": np.array([0.99, 0.99, 0, 0.99, 0.97, 0, 0.99, 0.99], np.float32),
    }


def as_tensors(columns: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(column) for name, column in columns.items()}


def clipped_gradients(network: nn.Module, loss: Tensor, max_norm: float) -> list[Tensor]:
    """Gradients, scaled down to a global norm of `max_norm`; asserts that they had to be."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]
    assert norm > max_norm, "the batch does not reach the limit: the test would not see it"
    return [g * (max_norm / norm) for g in gradients]


def adam_first_step(gradient: Tensor, *, lr: float, eps: float) -> Tensor:
    """Both moments' bias corrections cancel in the first step: g / (|g| + eps)."""
    return -lr * gradient / (gradient.abs() + eps)


def assert_moved(
    before: nn.Module, after: nn.Module, expected: list[Tensor], *, tolerance: float
) -> None:
    olds, news = list(before.parameters()), list(after.parameters())
    assert len(olds) == len(news) == len(expected)
    for old, new, change in zip(olds, news, expected, strict=True):
        torch.testing.assert_close(new - old, change, atol=tolerance, rtol=1e-2)


def plain_actor_critic(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the actions `[B]`, values `[B]`, the mean entropy."""
    logits, values = network(batch["obs"])
    policy = torch.distributions.Categorical(logits=logits)
    return policy.log_prob(batch["actions"]), values, policy.entropy().mean()


def plain_ppo_loss(network: Any, batch: dict[str, Tensor], *, normalize: bool = True) -> Tensor:
    """Equation 9 of Schulman et al. 2017, example by example."""
    chosen, values, entropy = plain_actor_critic(network, batch)
    advantages = batch["advantages"]
    if normalize:
        deviation = (advantages - advantages.mean()).pow(2).sum().div(BATCH - 1).sqrt()
        advantages = (advantages - advantages.mean()) / (deviation + 1e-8)
    surrogate = []
    for logp, old, advantage in zip(chosen, batch["action_logp"], advantages, strict=True):
        ratio = torch.exp(logp - old)
        bound = 1.1 if advantage > 0 else 0.9
        better = ratio > bound if advantage > 0 else ratio < bound
        surrogate.append(advantage * (torch.tensor(bound) if better else ratio))
    value_loss = ((values - batch["value_targets"]) ** 2).mean()
    return -torch.stack(surrogate).mean() + 0.5 * value_loss - 0.01 * entropy


@pytest.mark.parametrize("normalize", [True, False])
def test_ppo(build_learner: BuildLearner, normalize: bool) -> None:
    small = build_learner("PPO", ppo={"normalize_advantages": normalize})
    before = copy.deepcopy(small.module.network)
    batch = as_tensors(actor_critic_batch())
    loss = plain_ppo_loss(before, batch, normalize=normalize)
    changes = [
        adam_first_step(g, lr=2.5e-4, eps=1e-5) for g in clipped_gradients(before, loss, 0.5)
    ]
    small.update(actor_critic_batch(), num_epochs=1, minibatch_size=BATCH)
    assert_moved(before, small.module.network, changes, tolerance=2e-6)


def test_ppos_gradient_is_the_plain_losses(build_learner: BuildLearner) -> None:
    """Adam hides a factor in front of the loss: here the loss itself."""
    small = build_learner("PPO")
    batch = as_tensors(actor_critic_batch())
    loss = small.learner.compute_loss_for_module(
        module_id="default_policy",
        config=small.config,
        batch=batch,
        fwd_out=small.module.forward_train(batch),
    )
    torch.testing.assert_close(loss, plain_ppo_loss(small.module.network, batch))


def test_ppos_first_update_on_its_own_data_is_the_policy_gradient(
    build_learner: BuildLearner,
) -> None:
    """All ratios are 1: more of the actions with positive advantage, less of the others."""
    small = build_learner("PPO", ppo={"entropy_coefficient": 0.0, "value_loss_coefficient": 0.0})
    batch = as_tensors(actor_critic_batch())
    with torch.no_grad():
        chosen, _, _ = plain_actor_critic(small.module.network, batch)
    advantages = np.array([1, -1, 1, -1, 1, -1, 1, -1], np.float32)
    small.update(
        {**actor_critic_batch(), "action_logp": chosen.numpy(), "advantages": advantages},
        num_epochs=1,
        minibatch_size=BATCH,
    )
    with torch.no_grad():
        now, _, _ = plain_actor_critic(small.module.network, batch)
    assert float(((now - chosen) * torch.from_numpy(advantages)).sum()) > 0


def test_ppos_minibatches_go_through_all_rows_anew_in_each_epoch(
    build_learner: BuildLearner,
) -> None:
    learner = build_learner("PPO").learner
    rows = torch.arange(12)
    parts = list(learner._minibatches({"row": rows}, 12, 4, 3, True))
    orders = [
        torch.cat([part["default_policy"]["row"] for part in parts[i : i + 3]]) for i in (0, 3, 6)
    ]
    for order in orders:
        assert sorted(order.tolist()) == rows.tolist()
        assert order.tolist() != rows.tolist()
    assert orders[0].tolist() != orders[1].tolist()


def test_a_ragged_batch_is_refused(build_learner: BuildLearner) -> None:
    small = build_learner("PPO")
    with pytest.raises(ValueError, match="cannot be split into minibatches of 3"):
        small.update(actor_critic_batch(), num_epochs=1, minibatch_size=3)


@pytest.mark.parametrize(
    ("agent_steps", "expected"), [(0, 2.5e-4), (5_000, 1.25e-4), (9_000, 2.5e-5), (10_000, 0.0)]
)
def test_ppos_learning_rate_falls_to_0(
    build_learner: BuildLearner, agent_steps: int, expected: float
) -> None:
    small = build_learner("PPO")
    small.update(actor_critic_batch(), agent_steps=agent_steps, minibatch_size=BATCH)
    assert small.learning_rate() == pytest.approx(expected, abs=1e-12)


def plain_a2c_loss(network: Any, batch: dict[str, Tensor], value_coefficient: float) -> Tensor:
    chosen, values, entropy = plain_actor_critic(network, batch)
    policy_loss = -(batch["advantages"] * chosen).mean()
    value_loss = ((values - batch["value_targets"]) ** 2).mean()
    return policy_loss + value_coefficient * value_loss - 0.01 * entropy


def test_a2c(build_learner: BuildLearner) -> None:
    """RMSprop's first step: s = 0.01 g^2, so -lr g / (0.1 |g| + eps)."""
    small = build_learner("A2C")
    before = copy.deepcopy(small.module.network)
    loss = plain_a2c_loss(before, as_tensors(actor_critic_batch()), 0.5)
    gradients = clipped_gradients(before, loss, 0.5)
    changes = [-7e-4 * g / (0.1 * g.abs() + 1e-5) for g in gradients]
    small.update(actor_critic_batch())
    assert_moved(before, small.module.network, changes, tolerance=2e-5)


def test_a2c_as_stable_baselines3_has_it(build_learner: BuildLearner) -> None:
    """TensorFlow's RMSprop begins at s = 1: -lr g / sqrt(0.99 + 0.01 g^2 + eps)."""
    small = build_learner("A2C", preset="sb3")
    before = copy.deepcopy(small.module.network)
    loss = plain_a2c_loss(before, as_tensors(actor_critic_batch()), 0.25)
    gradients = clipped_gradients(before, loss, 0.5)
    changes = [-7e-4 * g / torch.sqrt(0.99 + 0.01 * g**2 + 1e-5) for g in gradients]
    small.update(actor_critic_batch(), agent_steps=5_000)  # its step size does not fall
    assert_moved(before, small.module.network, changes, tolerance=1e-7)


def plain_dqn_loss(small: Any, batch: dict[str, Tensor], *, huber: bool, double: bool) -> Tensor:
    """Equation 1 of Mnih et al. 2015 (van Hasselt et al. 2016, equation 4), row by row."""
    q = small.module.network(batch["obs"])
    with torch.no_grad():
        next_q, target_q = (
            small.module.network(batch["new_obs"]),
            small.module.target_network(batch["new_obs"]),
        )
    losses = []
    for row in range(BATCH):
        best = int((next_q if double else target_q)[row].argmax())
        target = batch["rewards"][row] + batch["discounts"][row] * target_q[row, best]
        error = q[row, batch["actions"][row]] - target
        small_error = error.abs() < 1 or not huber
        factor = 0.5 if huber else 1.0
        losses.append(factor * error**2 if small_error else error.abs() - 0.5)
    return torch.stack(losses).mean()


def dqn_loss(small: Any, batch: dict[str, Tensor]) -> Tensor:
    """The learner's own loss of a batch in one piece."""
    (minibatch,) = small.learner._minibatches(batch, BATCH, BATCH, 1, False)
    columns = dict(minibatch.policy_batches["default_policy"])
    loss: Tensor = small.learner.compute_loss_for_module(
        module_id="default_policy",
        config=small.config,
        batch=columns,
        fwd_out=small.module.forward_train(columns),
    )
    return loss


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_dqn_loss(build_learner: BuildLearner, double: bool, dueling: bool, loss: str) -> None:
    small = build_learner("DQN", dqn={"double": double, "dueling": dueling, "loss": loss})
    batch = as_tensors(q_batch())
    with torch.no_grad():  # the target's best action is the one that the network likes least
        worst = small.module.network(batch["new_obs"]).mean(dim=0).argmin()
        small.module.target_network.q.bias[worst] += 1.0
    expected = plain_dqn_loss(small, batch, huber=loss == "huber", double=double)
    other = plain_dqn_loss(small, batch, huber=loss == "huber", double=not double)
    assert not torch.isclose(expected, other), "double makes no difference on this batch"
    found = dqn_loss(small, batch)
    torch.testing.assert_close(found, expected)


def test_dqn_update(build_learner: BuildLearner) -> None:
    small = build_learner("DQN", dqn={"max_grad_norm": 0.1})
    before, target = copy.deepcopy(small.module.network), copy.deepcopy(small.module.target_network)
    loss = plain_dqn_loss(small, as_tensors(q_batch()), huber=True, double=False)
    gradients = clipped_gradients(small.module.network, loss, 0.1)
    changes = [adam_first_step(g, lr=1e-4, eps=1e-8) for g in gradients]
    small.update(q_batch(), agent_steps=500)
    # Adam's first step has nearly the same size for every gradient: tiny ones may turn round.
    agree = [
        ((new - old) - change).abs() < 1e-6
        for old, new, change in zip(
            before.parameters(), small.module.network.parameters(), changes, strict=True
        )
    ]
    assert torch.cat([part.flatten() for part in agree]).float().mean() > 0.999
    for old, new in zip(target.parameters(), small.module.target_network.parameters(), strict=True):
        assert torch.equal(old, new)


def test_the_target_follows_every_thousand_agent_steps(build_learner: BuildLearner) -> None:
    small = build_learner("DQN")

    def target_is_the_network() -> bool:
        pairs = zip(
            small.module.network.parameters(), small.module.target_network.parameters(), strict=True
        )
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)

    copied = []
    for agent_steps in (0, 500, 992, 1_008, 1_992, 2_000, 2_992, 3_008):
        small.update(q_batch(), agent_steps=agent_steps)
        copied.append(target_is_the_network())
    assert copied == [False, False, False, True, False, True, False, True]


def test_importance_weights_scale_each_rows_loss(build_learner: BuildLearner) -> None:
    small = build_learner("DQN")
    batch = as_tensors(q_batch())
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    found = dqn_loss(small, {**batch, "weights": weights})
    errors = small.learner.take_errors()
    assert errors.shape == (BATCH,)
    assert float(found.detach()) == pytest.approx((abs(errors[0]) - 0.5) / BATCH, rel=1e-5)


def test_statistics_are_means_over_the_minibatches(build_learner: BuildLearner) -> None:
    learner = build_learner("PPO").learner
    for entropy in (1.0, 2.0, 6.0):
        learner.record(entropy=torch.tensor(entropy))
    learner.after_gradient_based_update(timesteps={})
    assert float(learner.metrics.peek(("default_policy", "entropy"))) == 3.0


def test_a_gradient_that_is_not_finite_ends_the_trial(build_learner: BuildLearner) -> None:
    small = build_learner("PPO")
    batch = actor_critic_batch()
    batch["value_targets"][0] = np.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        small.update(batch, num_epochs=1, minibatch_size=BATCH)


def test_a_learners_state_brings_back_optimizer_and_shuffles(build_learner: BuildLearner) -> None:
    first, second = build_learner("PPO"), build_learner("PPO")
    first.update(actor_critic_batch(), num_epochs=2, minibatch_size=4, shuffle_batch_per_epoch=True)
    second.learner.set_state(copy.deepcopy(first.learner.get_state()))
    for small in (first, second):
        small.update(
            actor_critic_batch(), num_epochs=2, minibatch_size=4, shuffle_batch_per_epoch=True
        )
    for ours, theirs in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_tensorflows_rmsprop_over_two_steps() -> None:
    """alpha 0.5, eps 1, lr 1: s = 0.5 + 0.5 x 9 = 5, x = 0 - 3 / sqrt(6); then g = 1, s = 3."""
    from retro_ml.rllib.rmsprop import TensorFlowRMSprop

    x = nn.Parameter(torch.zeros(1))
    optimizer = TensorFlowRMSprop([x], lr=1.0, alpha=0.5, eps=1.0)
    expected = 0.0
    for gradient, root in ((3.0, 6.0**0.5), (1.0, 4.0**0.5)):
        x.grad = torch.tensor([gradient])
        optimizer.step()
        expected -= gradient / root
        assert float(x.detach()) == pytest.approx(expected, rel=1e-6)
