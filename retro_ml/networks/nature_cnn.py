"""NatureCNN (Mnih et al. 2015, Extended Data Table 1) with an actor-critic's or a Q-learner's head.

Three convolutions (32 filters of 8x8 stride 4, 64 of 4x4 stride 2, 64 of 3x3 stride 1), one fully
connected layer of 512, ReLU throughout; input is uint8, divided by 255. Parameters have their usual
shapes, so they can be carried to and from other libraries; only the arithmetic is arranged for
speed: the first convolution runs on packed frames (`envs.frames`) with the division folded into its
weight, activations lie channels last, and the body may run in bfloat16 while the heads and all
parameters stay in float32.

Initial weights: orthogonal with gain sqrt(2), biases 0, policy head 0.01, value head 1 (OpenAI
Baselines; Engstrom et al. 2020; "The 37 Implementation Details of PPO", Huang et al. 2022, detail
2). The Q-learner keeps PyTorch's own (Kaiming uniform), as Stable-Baselines3's does.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from retro_ml.envs.frames import (
    GRID,
    OBSERVATION_SHAPE,
    STACK_CHANNELS,
    STACK_SIZE,
    TILE,
)

FEATURES = 512
CONV_FEATURES = 64 * 7 * 7


def pack_observations(observations: Tensor) -> Tensor:
    """`[B, 4, 84, 84] uint8` -> `[B, 21, 21, 64] uint8`; packed ones are handed back."""
    if observations.shape[1:] != OBSERVATION_SHAPE:
        return observations
    tiles = observations.reshape(-1, STACK_SIZE, GRID, TILE, GRID, TILE)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, GRID, GRID, STACK_CHANNELS)


def compute_features(packed: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """The body's arithmetic, row by row.

    Args:
        packed: `[B, 21, 21, 64] uint8`.
        weights: `NatureBody.arranged_weights()`; may be followed by weight and bias of further
            fully connected layers of 512 on the convolutions.

    Returns:
        `[B, 512] float32`, or `[B, 1024]` with one further layer.
    """
    x = packed.to(weights[0].dtype).permute(0, 3, 1, 2)
    x = functional.conv2d(x, weights[0], weights[1]).relu_()
    x = functional.conv2d(x, weights[2], weights[3], stride=2).relu_()
    # The features are put in the order of the weights: there are fewer of them than weights. ReLU
    # comes after that, so that its gradient is computed on what lies in one order.
    x = functional.conv2d(x, weights[4], weights[5]).reshape(-1, CONV_FEATURES).relu_()
    layers = zip(weights[6::2], weights[7::2], strict=True)
    features = [functional.linear(x, *layer).relu_().float() for layer in layers]
    return features[0] if len(features) == 1 else torch.cat(features, dim=1)


class NatureBody(nn.Module):
    """The shared layers: packed observations `[B, 21, 21, 64] uint8` -> features `[B, 512]`.

    Args:
        dtype: what the layers compute in; float32 or bfloat16.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(STACK_SIZE, 32, 8, 4)
        self.conv2 = nn.Conv2d(32, 64, 4, 2)
        self.conv3 = nn.Conv2d(64, 64, 3, 1)
        self.linear = nn.Linear(CONV_FEATURES, FEATURES)
        self.dtype = dtype

    def arranged_weights(self) -> tuple[Tensor, ...]:
        """The parameters as the arithmetic wants them; gradients flow back through it."""
        conv1 = (self.conv1.weight * (1.0 / 255.0)).view(32, STACK_SIZE, 2, TILE, 2, TILE)
        conv1 = conv1.permute(0, 1, 3, 5, 2, 4).reshape(32, STACK_CHANNELS, 2, 2)
        last = torch.channels_last
        return (
            conv1.to(self.dtype, memory_format=last),
            cast(Tensor, self.conv1.bias).to(self.dtype),
            self.conv2.weight.to(self.dtype, memory_format=last),
            cast(Tensor, self.conv2.bias).to(self.dtype),
            self.conv3.weight.to(self.dtype, memory_format=last),
            cast(Tensor, self.conv3.bias).to(self.dtype),
            self.linear.weight.to(self.dtype),
            self.linear.bias.to(self.dtype),
        )

    def forward(self, packed: Tensor, weights: tuple[Tensor, ...] | None = None) -> Tensor:
        """Features `[B, 512] float32`; `weights` spares the arranging if they are unchanged."""
        w = self.arranged_weights() if weights is None else weights
        return compute_features(packed, w)


class ActorCriticNetwork(nn.Module):
    """A policy and a value on one body.

    Args:
        num_actions: A.
        dtype: see `NatureBody`.
    """

    def __init__(self, num_actions: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = NatureBody(dtype)
        self.policy = nn.Linear(FEATURES, num_actions)
        self.value = nn.Linear(FEATURES, 1)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _init_orthogonal(module, gain=math.sqrt(2.0))
        _init_orthogonal(self.policy, gain=0.01)
        _init_orthogonal(self.value, gain=1.0)

    def arranged_weights(self) -> tuple[Tensor, ...]:
        """The weights that `forward` takes, as the arithmetic wants them."""
        return self.body.arranged_weights()

    def forward(
        self, packed: Tensor, weights: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`[B, 21, 21, 64] uint8` -> logits `[B, A]`, values `[B]`, both float32."""
        features = self.body(packed, weights)
        return self.policy(features), self.value(features).squeeze(-1)


class QNetwork(nn.Module):
    """Action values, optionally dueling (Wang et al. 2016, section 3 and equation 9).

    Args:
        num_actions: A.
        dueling: a second fully connected layer of 512 on the convolutions gives the state's value,
            the first one the actions' advantages.
        dtype: see `NatureBody`.
    """

    def __init__(
        self, num_actions: int, *, dueling: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.body = NatureBody(dtype)
        self.q = nn.Linear(FEATURES, num_actions)
        self.value_hidden = nn.Linear(CONV_FEATURES, FEATURES) if dueling else None
        self.value = nn.Linear(FEATURES, 1) if dueling else None

    def arranged_weights(self) -> tuple[Tensor, ...]:
        """The weights that `forward` takes, as the arithmetic wants them."""
        weights = self.body.arranged_weights()
        if self.value_hidden is None:
            return weights
        dtype = self.body.dtype
        return (*weights, self.value_hidden.weight.to(dtype), self.value_hidden.bias.to(dtype))

    def forward(self, packed: Tensor, weights: tuple[Tensor, ...] | None = None) -> Tensor:
        """`[B, 21, 21, 64] uint8` -> action values `[B, A] float32`."""
        features = self.body(packed, self.arranged_weights() if weights is None else weights)
        q: Tensor = self.q(features[:, :FEATURES])
        if self.value is None:
            return q
        value: Tensor = self.value(features[:, FEATURES:])
        return value + q - q.mean(dim=1, keepdim=True)


def _init_orthogonal(layer: nn.Conv2d | nn.Linear, *, gain: float) -> None:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
