"""Each algorithm's update equals Stable-Baselines3's, from the same weights on one frozen batch.

Compared are the parts of the loss, the gradients after clipping, and the weights after the
optimizer's steps. All is float32 on one thread; the tolerances leave room for sums in another
order: 1e-4 of a loss, 5e-5 of a layer's greatest gradient (found: under 5e-6), and for the weights
a hundredth of a step.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from retro_ml.envs.frames import OBSERVATION_SHAPE, pack_frames
from retro_ml.rllib.advantages import estimate_advantages
from retro_ml.rllib.rmsprop import TensorFlowRMSprop

pytestmark = pytest.mark.integration

BuildLearner = Callable[..., Any]
BATCH = 16
SPACES = (Box(0, 255, OBSERVATION_SHAPE, np.uint8), Discrete(4))
BODY = {
    "body.conv1": "cnn.0",
    "body.conv2": "cnn.2",
    "body.conv3": "cnn.4",
    "body.linear": "linear.0",
}
ACTOR_CRITIC = {
    **{ours: f"features_extractor.{theirs}" for ours, theirs in BODY.items()},
    "policy": "action_net",
    "value": "value_net",
}
Q_NETWORK = {
    **{ours: f"features_extractor.{theirs}" for ours, theirs in BODY.items()},
    "q": "q_net.0",
}


class Screen(gym.Env[NDArray[np.uint8], np.int64]):
    """Spaces only: no step is ever taken in it."""

    observation_space, action_space = SPACES


def build_theirs(algorithm: Any, **how: Any) -> Any:
    """A model of Stable-Baselines3 at the beginning of its schedules, without a log."""
    model = algorithm("CnnPolicy", Screen(), device="cpu", seed=0, **how)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model._current_progress_remaining = 1.0
    return model


def parameter_pairs(
    ours: nn.Module, theirs: nn.Module, names: dict[str, str]
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Our parameters and those that stand for the same in Stable-Baselines3's network."""
    known = dict(theirs.named_parameters(remove_duplicate=False))
    pairs = []
    for name, parameter in ours.named_parameters():
        layer, kind = name.rsplit(".", maxsplit=1)
        pairs.append((parameter, known[f"{names[layer]}.{kind}"]))
    assert {id(theirs) for _, theirs in pairs} == {id(p) for p in theirs.parameters()}
    return pairs


def keep_from_the_hinge(body: Any, *observations: NDArray[np.uint8]) -> None:
    """Sets each hidden unit's bias so that on these observations it is on, or (one in three) off.

    Of some 300,000 units one may sit at 0 within rounding, on for one library and off for the
    other: one gradient more or less. What ReLU does is the network's own test's matter.
    """
    x = torch.from_numpy(np.concatenate(observations)).float() / 255.0
    with torch.no_grad():
        for layer in (body.conv1, body.conv2, body.conv3, body.linear):
            layer.bias.zero_()
            if layer is body.linear:
                x = x.flatten(start_dim=1)
            z = layer(x)
            others = [dim for dim in range(z.ndim) if dim != 1]
            low, high = z.amin(others), z.amax(others)
            on = torch.arange(len(low)) % 3 > 0
            layer.bias.copy_(torch.where(on, -low, -high) + (on * 2 - 1) * 0.2 * (high - low))
            x = nn.functional.relu(layer(x))


def share_weights(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Puts our weights into their network."""
    with torch.no_grad():
        for mine, other in parameter_pairs(ours, theirs, names):
            other.copy_(mine)


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    for mine, other in parameter_pairs(ours, theirs, names):
        assert mine.grad is not None
        assert other.grad is not None
        scale = float(other.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=5e-5 * scale, rtol=0)


def assert_same_weights(
    ours: nn.Module, theirs: nn.Module, names: dict[str, str], *, step_size: float
) -> None:
    for mine, other in parameter_pairs(ours, theirs, names):
        torch.testing.assert_close(mine, other, atol=0.01 * step_size, rtol=0)


def gradient_norm(network: nn.Module) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in network.parameters()]))


def note_statistics(small: Any) -> dict[str, list[float]]:
    """What the learner records from now on, a value for each minibatch."""
    noted: dict[str, list[float]] = {}
    record = small.learner.record

    def note(**statistics: Tensor) -> None:
        for name, value in statistics.items():
            noted.setdefault(name, []).append(value.item())
        record(**statistics)

    small.learner.record = note
    return noted


def screens(seed: int) -> NDArray[np.uint8]:
    """`[B, 4, 84, 84]`, of uneven brightness, so that rows differ."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (BATCH, *OBSERVATION_SHAPE))
    return (noise * rng.random((BATCH, 4, 1, 1))).astype(np.uint8)


def pack(observations: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([pack_frames(observations[:, i]) for i in range(4)], axis=-1)


def actor_critic_batch(network: Any) -> dict[str, Any]:
    """Ratios on both sides of the clip range, for advantages of both signs; sets biases."""
    rng = np.random.default_rng(0)
    observations = screens(1)
    keep_from_the_hinge(network.body, observations)
    actions = rng.integers(0, 4, BATCH)
    with torch.no_grad():
        logits, _ = network(torch.from_numpy(pack(observations)))
    chosen = torch.log_softmax(logits, dim=1).numpy()[np.arange(BATCH), actions]
    return {
        "obs": observations,
        "actions": actions,
        "action_logp": (chosen - np.log(rng.uniform(0.8, 1.25, BATCH))).astype(np.float32),
        "advantages": (2 * rng.normal(size=BATCH) + 0.5).astype(np.float32),
        "value_targets": (3 * rng.normal(size=BATCH)).astype(np.float32),
    }


def fill_rollout_buffer(model: Any, batch: dict[str, Any], monkeypatch: Any) -> None:
    """Puts the batch into their buffer, which from then on hands it out in its order."""
    buffer = model.rollout_buffer
    buffer.observations[:, 0] = batch["obs"]
    buffer.actions[:, 0, 0] = batch["actions"]
    buffer.log_probs[:, 0] = batch["action_logp"]
    buffer.advantages[:, 0] = batch["advantages"]
    buffer.returns[:, 0] = batch["value_targets"]
    buffer.pos, buffer.full = BATCH, True
    monkeypatch.setattr(np.random, "permutation", np.arange)


def update_ours(small: Any, batch: dict[str, Any], **how: Any) -> None:
    packed = {name: pack(column) if column.ndim == 4 else column for name, column in batch.items()}
    small.update(packed, **how)


def assert_same_losses(noted: dict[str, list[float]], logged: dict[str, Any], policy: str) -> None:
    found = {name: float(np.mean(values)) for name, values in noted.items()}
    assert found["policy_loss"] == pytest.approx(logged[f"train/{policy}"], rel=1e-4, abs=1e-6)
    assert found["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-4)
    assert found["entropy"] == pytest.approx(-logged["train/entropy_loss"], rel=1e-4)


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("normalize", [True, False])
def test_ppo(
    build_learner: BuildLearner,
    monkeypatch: pytest.MonkeyPatch,
    normalize: bool,
    minibatches: int,
) -> None:
    """One step of Adam on the whole batch; then two epochs of two minibatches, four steps."""
    epochs = minibatches
    small = build_learner("PPO", ppo={"normalize_advantages": normalize})
    theirs = build_theirs(
        PPO,
        learning_rate=2.5e-4,
        n_steps=BATCH,
        batch_size=BATCH // minibatches,
        n_epochs=epochs,
        clip_range=0.1,
        normalize_advantage=normalize,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
    )
    batch = actor_critic_batch(small.module.network)
    share_weights(small.module.network, theirs.policy, ACTOR_CRITIC)
    noted = note_statistics(small)
    update_ours(small, batch, num_epochs=epochs, minibatch_size=BATCH // minibatches)
    fill_rollout_buffer(theirs, batch, monkeypatch)
    theirs.train()

    logged = theirs.logger.name_to_value
    assert len(noted["policy_loss"]) == epochs * minibatches
    assert_same_losses(noted, logged, "policy_gradient_loss")
    assert 0 < np.mean(noted["clip_fraction"]) < 1
    assert np.mean(noted["clip_fraction"]) == pytest.approx(logged["train/clip_fraction"])
    last_epoch = noted["approx_kl"][-minibatches:]  # theirs is the mean of the last epoch's only
    assert np.mean(last_epoch) == pytest.approx(logged["train/approx_kl"], rel=1e-3)
    assert gradient_norm(theirs.policy) == pytest.approx(0.5, rel=1e-4)  # it had to be clipped
    assert_same_gradients(small.module.network, theirs.policy, ACTOR_CRITIC)
    assert_same_weights(small.module.network, theirs.policy, ACTOR_CRITIC, step_size=2.5e-4)


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        (
            {"preset": "sb3"},
            {
                "vf_coef": 0.25,
                "policy_kwargs": {
                    "optimizer_class": RMSpropTFLike,
                    "optimizer_kwargs": {"eps": 1e-5},
                },
            },
        ),
        ({}, {"vf_coef": 0.5}),  # their class's own optimizer; their Atari settings change it
    ],
    ids=["epsilon inside the root", "epsilon outside"],
)
def test_a2c(
    build_learner: BuildLearner,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    how: dict[str, Any],
) -> None:
    """Two updates: the second one has the mean square of the first in its step."""
    small = build_learner("A2C", **fields)
    theirs = build_theirs(
        A2C, learning_rate=7e-4, n_steps=BATCH, ent_coef=0.01, max_grad_norm=0.5, **how
    )
    batch = actor_critic_batch(small.module.network)
    share_weights(small.module.network, theirs.policy, ACTOR_CRITIC)
    for _ in range(2):
        noted = note_statistics(small)
        update_ours(small, batch)
        fill_rollout_buffer(theirs, batch, monkeypatch)
        theirs.rollout_buffer.generator_ready = False
        theirs.train()
        assert_same_losses(noted, theirs.logger.name_to_value, "policy_loss")
        assert gradient_norm(theirs.policy) == pytest.approx(0.5, rel=1e-4)
        assert_same_gradients(small.module.network, theirs.policy, ACTOR_CRITIC)
        assert_same_weights(small.module.network, theirs.policy, ACTOR_CRITIC, step_size=7e-4)
        theirs.rollout_buffer.reset()


def test_dqn(build_learner: BuildLearner) -> None:
    """Two updates by Huber's loss, target network unlike the network, some games over.

    Adam's epsilon is 1.5e-4: with 1e-8 a gradient of next to nothing makes a whole step, and its
    sign is rounding's.
    """
    small = build_learner("DQN", dqn={"max_grad_norm": 0.05, "adam_eps": 1.5e-4})
    theirs = build_theirs(
        DQN,
        learning_rate=1e-4,
        buffer_size=1,
        gamma=0.97,
        max_grad_norm=0.05,
        policy_kwargs={"optimizer_kwargs": {"eps": 1.5e-4}},
    )
    rng = np.random.default_rng(3)
    columns = {
        "obs": screens(1),
        "new_obs": screens(2),
        "actions": rng.integers(0, 4, BATCH),
        "rewards": np.resize(np.array([-2, -1, 0, 1, 2], np.float32), BATCH),
    }
    keep_from_the_hinge(small.module.network.body, columns["obs"])
    keep_from_the_hinge(small.module.target_network.body, columns["new_obs"])
    with torch.no_grad():
        small.module.target_network.q.weight.mul_(3.0)
    share_weights(small.module.network, theirs.q_net, Q_NETWORK)
    share_weights(small.module.target_network, theirs.q_net_target, Q_NETWORK)
    over = np.resize([False, False, True], BATCH)
    discounts = np.where(over, 0.0, 0.97).astype(np.float32)
    sample = ReplayBufferSamples(
        observations=torch.from_numpy(columns["obs"]),
        actions=torch.from_numpy(columns["actions"])[:, None],
        next_observations=torch.from_numpy(columns["new_obs"]),
        dones=torch.from_numpy(over).float()[:, None],
        rewards=torch.from_numpy(columns["rewards"])[:, None],
    )
    theirs.replay_buffer = SimpleNamespace(sample=lambda batch_size, env: sample)
    noted = note_statistics(small)
    for update in range(2):
        update_ours(small, columns | {"discounts": discounts}, minibatch_size=BATCH)
        theirs.train(gradient_steps=1, batch_size=BATCH)
        logged = theirs.logger.name_to_value["train/loss"]
        assert noted["loss"][update] == pytest.approx(logged, rel=1e-4)
        assert gradient_norm(theirs.q_net) == pytest.approx(0.05, rel=1e-4)
        assert_same_gradients(small.module.network, theirs.q_net, Q_NETWORK)
        assert_same_weights(small.module.network, theirs.q_net, Q_NETWORK, step_size=1e-4)
    pairs = parameter_pairs(small.module.target_network, theirs.q_net_target, Q_NETWORK)
    assert all(torch.equal(mine, other) for mine, other in pairs)


@pytest.mark.parametrize("gae_lambda", [0.95, 1.0])
def test_advantages_and_returns(gae_lambda: float) -> None:
    """Their buffer knows one kind of end; where the time limit cut a game, their `collect_rollouts`
    adds the discounted value of its last observation to the reward."""
    rng = np.random.default_rng(4)
    steps, games = 40, 6
    ends = rng.choice(3, (steps, games), p=[0.8, 0.1, 0.1])
    ends[-1, :3] = [0, 1, 2]
    terminated, truncated = ends == 1, ends == 2
    rewards, final_values = rng.normal(size=(2, steps, games)).astype(np.float32)
    final_values[~truncated] = 0.0
    values = rng.normal(size=(steps + 1, games)).astype(np.float32)

    buffer = RolloutBuffer(steps, *SPACES, "cpu", gae_lambda, 0.99, n_envs=games)
    buffer.rewards[:] = rewards + 0.99 * final_values
    buffer.values[:] = values[:-1]
    buffer.episode_starts[1:] = ends[:-1] > 0
    buffer.compute_returns_and_advantage(torch.from_numpy(values[-1]), ends[-1] > 0)

    advantages = estimate_advantages(
        rewards=rewards,
        values=values,
        terminated=terminated,
        truncated=truncated,
        final_values=final_values,
        gamma=0.99,
        gae_lambda=gae_lambda,
    )
    np.testing.assert_allclose(advantages, buffer.advantages, atol=1e-5)
    np.testing.assert_allclose(advantages + values[:-1], buffer.returns, atol=1e-5)


def test_tensorflows_rmsprop() -> None:
    """Fifty steps on gradients of very different sizes, a parameter without one among them."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(size, generator=generator) for size in ((3, 4), (5,), (2,))]
    ours, theirs = ([nn.Parameter(value.clone()) for value in first] for _ in range(2))
    mine = TensorFlowRMSprop(ours, lr=7e-4, alpha=0.99, eps=1e-5)
    other = RMSpropTFLike(theirs, lr=7e-4, alpha=0.99, eps=1e-5)
    for step in range(50):
        for pair in list(zip(ours, theirs, strict=True))[:2]:
            gradient = torch.randn(pair[0].shape, generator=generator) * 10.0 ** (step % 7 - 4)
            for parameter in pair:
                parameter.grad = gradient.clone()
        mine.step()
        other.step()
        for parameter, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(ours[2], first[2])
    assert not torch.equal(ours[0], first[0])
