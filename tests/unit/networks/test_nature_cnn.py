"""NatureCNN equals the plain formula, whatever its arithmetic is arranged for."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from retro_ml.networks.nature_cnn import (
    ActorCriticNetwork,
    NatureBody,
    QNetwork,
    pack_observations,
)

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def noise(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)


def plain_convolutions(body: NatureBody, observations: Tensor) -> Tensor:
    """`[B, 4, 84, 84] uint8` -> `[B, 3136]`, flattened channels first as everywhere else."""
    x = observations.float() / 255.0
    x = functional.relu(functional.conv2d(x, body.conv1.weight, body.conv1.bias, stride=4))
    x = functional.relu(functional.conv2d(x, body.conv2.weight, body.conv2.bias, stride=2))
    x = functional.relu(functional.conv2d(x, body.conv3.weight, body.conv3.bias, stride=1))
    return x.flatten(start_dim=1)


def plain_features(body: NatureBody, observations: Tensor) -> Tensor:
    flat = plain_convolutions(body, observations)
    return functional.relu(functional.linear(flat, body.linear.weight, body.linear.bias))


def shake_biases(network: nn.Module) -> None:
    """They start at zero, where a forgotten bias would not show."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)


def test_actor_critic_equals_the_plain_formula() -> None:
    network, observations = ActorCriticNetwork(6), noise(5)
    shake_biases(network)
    logits, values = network(pack_observations(observations))
    features = plain_features(network.body, observations)
    torch.testing.assert_close(logits, network.policy(features), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, network.value(features)[:, 0], atol=1e-5, rtol=1e-5)
    assert logits.shape == (5, 6)
    assert values.shape == (5,)


def test_gradients_equal_the_plain_formulas() -> None:
    network, observations = ActorCriticNetwork(4), noise(5)
    shake_biases(network)
    logits, values = network(pack_observations(observations))
    (logits.pow(2).sum() + values.sin().sum()).backward()
    arranged = {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }
    network.zero_grad()
    features = plain_features(network.body, observations)
    (network.policy(features).pow(2).sum() + network.value(features).sin().sum()).backward()
    assert len(arranged) == 12
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(arranged[name], parameter.grad, atol=1e-5 * scale, rtol=1e-4)


def test_arranged_weights_may_be_handed_in() -> None:
    network, packed = ActorCriticNetwork(4), pack_observations(noise(3))
    weights = network.body.arranged_weights()
    for ours, theirs in zip(network(packed, weights), network(packed), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_bf16_is_near_and_its_heads_are_fp32() -> None:
    exact, near = ActorCriticNetwork(4), ActorCriticNetwork(4, torch.bfloat16)
    near.load_state_dict(exact.state_dict())
    packed = pack_observations(noise(16))
    for precise, coarse in zip(exact(packed), near(packed), strict=True):
        assert coarse.dtype == torch.float32
        assert not torch.equal(coarse, precise), "it did not compute in bfloat16"
        torch.testing.assert_close(
            coarse, precise, atol=0.03 * float(precise.detach().abs().max()), rtol=0
        )
    assert all(parameter.dtype == torch.float32 for parameter in near.parameters())


@pytest.mark.parametrize(
    ("network", "count"),
    [
        # 32 x (4 x 8 x 8) + 32, 64 x (32 x 4 x 4) + 64, 64 x (64 x 3 x 3) + 64, 512 x 3136 + 512:
        # 8,224 + 32,832 + 36,928 + 1,606,144 = 1,684,128; 4 actions 2,052; value 513.
        (ActorCriticNetwork(4), 1_686_693),
        (ActorCriticNetwork(18), 1_693_875),
        (QNetwork(4), 1_686_180),
        # One more layer of 1,606,144, and 513.
        (QNetwork(4, dueling=True), 3_292_837),
    ],
)
def test_number_of_parameters(network: nn.Module, count: int) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def assert_orthogonal(weight: Tensor, gain: float) -> None:
    """Rows (or columns, where there are more rows) at right angles, each of length `gain`."""
    flat = weight.detach().reshape(len(weight), -1)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), atol=1e-4 * gain**2, rtol=0)


def test_actor_critics_initial_weights_are_orthogonal() -> None:
    network = ActorCriticNetwork(4)
    for layer in (network.body.conv1, network.body.conv2, network.body.conv3, network.body.linear):
        assert_orthogonal(layer.weight, math.sqrt(2.0))
    assert_orthogonal(network.policy.weight, 0.01)
    assert_orthogonal(network.value.weight, 1.0)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert len(biases) == 6
    assert all(not bias.any() for bias in biases)


def test_q_learners_initial_weights_are_pytorchs_own() -> None:
    """Uniform between plus and minus 1 / sqrt(inputs)."""
    network = QNetwork(4)
    for layer, inputs in ((network.body.conv1, 256), (network.body.linear, 3136), (network.q, 512)):
        bound = 1 / math.sqrt(inputs)
        assert float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_q_network_equals_the_plain_formula() -> None:
    network, observations = QNetwork(6), noise(4)
    expected = network.q(plain_features(network.body, observations))
    torch.testing.assert_close(
        network(pack_observations(observations)), expected, atol=1e-5, rtol=1e-5
    )


def test_dueling_is_value_plus_advantage_above_its_mean() -> None:
    """Equation 9 of Wang et al. 2016; the value's own layer sees the convolutions."""
    network, observations = QNetwork(6, dueling=True), noise(4)
    assert network.value is not None
    assert network.value_hidden is not None
    advantages = network.q(plain_features(network.body, observations))
    flat = plain_convolutions(network.body, observations).view(4, -1)
    hidden = functional.relu(network.value_hidden(flat))
    values = network.value(hidden)
    q = network(pack_observations(observations))
    torch.testing.assert_close(
        q, values + advantages - advantages.mean(dim=1, keepdim=True), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(q.mean(dim=1, keepdim=True), values, atol=1e-5, rtol=1e-5)


def test_packed_observations_are_handed_back() -> None:
    packed = pack_observations(noise(2))
    assert packed.shape == (2, 21, 21, 64)
    assert pack_observations(packed) is packed


def test_packing_in_torch_is_packing_in_numpy() -> None:
    from retro_ml.envs.frames import unpack_stacks

    observations = noise(3)
    unpacked = torch.from_numpy(unpack_stacks(pack_observations(observations).numpy()))
    assert torch.equal(unpacked, observations)
