"""The same network in textbook operations, for other runtimes: no packed frames, no folded weights.

`[B, 4, 84, 84] uint8` is divided by 255 and goes through three convolutions, one fully connected
layer and the heads, as in Mnih et al. 2015. Parameters are shared with the network it is made from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retro_ml.networks.nature_cnn import ActorCriticNetwork, NatureBody, QNetwork


class StandardActorCritic(nn.Module):
    """`[B, 4, 84, 84] uint8` -> logits `[B, A]`, values `[B]`, both float32."""

    outputs = ("logits", "value")

    def __init__(self, network: ActorCriticNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.network.body.linear(_convolve(self.network.body, observations)).relu()
        return self.network.policy(features), self.network.value(features).squeeze(-1)


class StandardQNetwork(nn.Module):
    """`[B, 4, 84, 84] uint8` -> action values `[B, A] float32`."""

    outputs = ("q_values",)

    def __init__(self, network: QNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> tuple[Tensor]:
        """See the class; a tuple of one."""
        x = _convolve(self.network.body, observations)
        q: Tensor = self.network.q(self.network.body.linear(x).relu())
        if self.network.value is None or self.network.value_hidden is None:
            return (q,)
        value: Tensor = self.network.value(self.network.value_hidden(x).relu())
        return (value + q - q.mean(dim=1, keepdim=True),)


def build_standard_form(
    network: ActorCriticNetwork | QNetwork,
) -> StandardActorCritic | StandardQNetwork:
    """The standard form of a network, in evaluation mode."""
    if isinstance(network, QNetwork):
        return StandardQNetwork(network).eval()
    return StandardActorCritic(network).eval()


def _convolve(body: NatureBody, observations: Tensor) -> Tensor:
    x = observations.to(torch.float32) / 255.0
    for layer in (body.conv1, body.conv2, body.conv3):
        x = layer(x).relu()
    return x.flatten(start_dim=1)
