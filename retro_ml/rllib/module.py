"""NatureCNN as RLlib RLModules: an actor-critic and a Q-learner with its target network.

They take observations as RLlib hands them, `[B, 4, 84, 84] uint8`, or packed, `[B, 21, 21, 64]
uint8`, as our own EnvRunner does. `build_actor` gives the EnvRunner a forward pass with the weights
arranged once: they do not change between two updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.inference_only_api import InferenceOnlyAPI
from ray.rllib.core.rl_module.apis.target_network_api import (
    TARGET_NETWORK_ACTION_DIST_INPUTS,
    TargetNetworkAPI,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork, pack_observations
from retro_ml.rllib.machine import resolve_precision

Actor = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Packed observations `[N, 21, 21, 64] uint8` -> action scores `[N, A]` (logits or action values)
and state values `[N]`, None where the module has none."""


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_dtype(module: TorchRLModule) -> torch.dtype:
    """What the body of a module's network computes in, decided in the process that computes.

    A learner does as `model_config` says: `precision` (fp32, bf16 or auto) on its `device`. An env
    runner of its own, on a CPU, leaves bf16 to hardware that has it: emulated, it would play at
    half the speed, and the learner works out anew whatever it learns from.
    """
    precision, device = module.model_config["precision"], module.model_config["device"]
    if module.inference_only:
        known = resolve_precision("auto", torch.device("cpu"))
        return _DTYPES["fp32" if "fp32" in (precision, known) else "bf16"]
    return _DTYPES[resolve_precision(precision, torch.device(device))]


def precision_of(network: ActorCriticNetwork | QNetwork) -> str:
    """fp32 or bf16."""
    return next(name for name, dtype in _DTYPES.items() if dtype == network.body.dtype)


class ActorCriticModule(TorchRLModule, ValueFunctionAPI):
    """Policy and value on one body. `model_config`: `precision`, `device`."""

    def setup(self) -> None:
        self.network = ActorCriticNetwork(int(self.action_space.n), dtype=choose_dtype(self))

    def build_actor(self) -> Actor:
        """The forward pass of a rollout: no gradients, the weights of this moment."""
        with torch.inference_mode():
            weights = self.network.arranged_weights()

        def act(packed: Tensor) -> tuple[Tensor, Tensor | None]:
            with torch.inference_mode():
                logits, values = self.network(packed.to(weights[0].device), weights)
                return logits.cpu(), values.cpu()

        return act

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        features = self.network.body(pack_observations(batch[Columns.OBS]))
        return {
            Columns.ACTION_DIST_INPUTS: self.network.policy(features),
            Columns.EMBEDDINGS: features,
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values `[B] float32`."""
        if embeddings is None:
            embeddings = self.network.body(pack_observations(batch[Columns.OBS]))
        return self.network.value(embeddings).squeeze(-1)


class QModule(TorchRLModule, TargetNetworkAPI, InferenceOnlyAPI):
    """Action values and a target network. `model_config`: `precision`, `device`, `dueling`."""

    def setup(self) -> None:
        self.network = self._build_network()
        self.make_target_networks()

    def make_target_networks(self) -> None:
        """A copy that no gradient reaches; it is part of the module's state."""
        self.target_network = self._build_network()
        self.target_network.load_state_dict(self.network.state_dict())
        self.target_network.requires_grad_(False)

    def get_target_network_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        """`(network, target_network)`."""
        return [(self.network, self.target_network)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The target network's action values `[B, A]`."""
        q = self.target_network(pack_observations(batch[Columns.OBS]))
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: q}

    def get_non_inference_attributes(self) -> list[str]:
        """What an EnvRunner's copy can do without."""
        return ["target_network"]

    def build_actor(self) -> Actor:
        """The forward pass of a rollout: no gradients, the weights of this moment."""
        with torch.inference_mode():
            weights = self.network.arranged_weights()

        def act(packed: Tensor) -> tuple[Tensor, Tensor | None]:
            with torch.inference_mode():
                return self.network(packed.to(weights[0].device), weights).cpu(), None

        return act

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.network(pack_observations(batch[Columns.OBS]))}

    def _build_network(self) -> QNetwork:
        return QNetwork(
            int(self.action_space.n),
            dueling=self.model_config["dueling"],
            dtype=choose_dtype(self),
        )
