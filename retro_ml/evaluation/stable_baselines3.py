"""Weights out of a Stable-Baselines3 zip (CnnPolicy of PPO, A2C, DQN), its pickles left alone.

`data` is read as JSON, in which pickles are just text. The pickle in `policy.pth`, which describes
its tensors, is interpreted by `core.artifacts.state_dict`, which knows nothing but tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retro_ml.core.artifacts.guarded_zip import ZipFault, open_zip, read_member
from retro_ml.core.artifacts.model_archive import ArchiveError, Weights, parse_json
from retro_ml.core.artifacts.stable_baselines3 import ACTOR_CRITIC, BODY, Q_NETWORK
from retro_ml.core.artifacts.state_dict import Values, read_state_dict
from retro_ml.core.experiments.faults import as_line

POLICY, DATA = "policy.pth", "data"
MAX_DATA_BYTES = 64 * 1024**2  # with the last observations of many games, as text
MAX_POLICY_BYTES = 32 * 1024**2  # DQN's has 14 MB, its target network included

_LONGEST = 200  # characters of what is wrong with a file


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """What could be learned of it without running anything."""

    kind: Literal["PPO or A2C", "DQN"]
    weights: Weights
    """By our names, float32; shapes are not checked."""
    num_timesteps: int | None


def read_model(path: Path) -> ForeignModel:
    """Raises ArchiveError: it is damaged, hostile, or of another network."""
    limits_bytes = {DATA: MAX_DATA_BYTES, POLICY: MAX_POLICY_BYTES}
    try:
        with open_zip(path, limits_bytes=limits_bytes) as archive:
            policy, data = read_member(archive, POLICY), read_member(archive, DATA)
        described = parse_json(DATA, data, parse_constant=float)
        _check_scaling(described.get("policy_kwargs"))
        state = _load_tensors(policy)
        has_values = "q_net.q_net.0.bias" in state
        weights = _rename(state, Q_NETWORK if has_values else ACTOR_CRITIC)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
    except ZipFault as fault:
        raise ArchiveError(
            f"{path} is no usable zip of Stable-Baselines3: {fault}"
        ) from fault.__cause__
    steps = described.get("num_timesteps")
    known = type(steps) is int and 0 <= steps < 2**63
    return ForeignModel(
        kind="DQN" if has_values else "PPO or A2C",
        weights=weights,
        num_timesteps=steps if known else None,
    )


def _load_tensors(content: bytes) -> dict[str, Values]:
    try:
        return read_state_dict(content)
    except ZipFault as fault:
        raise ZipFault(as_line(f"{POLICY}: {fault}", longest=_LONGEST)) from fault.__cause__


def _rename(state: dict[str, Values], layers: dict[str, str]) -> Weights:
    """Our names for theirs. Raises ZipFault where a layer is missing or one is too many."""
    weights, copies = {}, set()
    for layer, theirs in layers.items():
        for kind in ("weight", "bias"):
            name = f"{theirs}.{kind}"
            if name not in state:
                raise ZipFault(f"no layer {name}: it is not the CnnPolicy of PPO, A2C or DQN")
            weights[f"{layer}.{kind}"] = np.array(state[name])
            copies.add(name)
            if layers is Q_NETWORK:
                copies.add(name.replace("q_net.", "q_net_target.", 1))
            elif layer in BODY:
                for other in (f"pi_{name}", f"vf_{name}"):
                    copies.add(other)
                    if other in state and not np.array_equal(state[other], state[name]):
                        raise ZipFault("policy and value have networks of their own")
    unknown = sorted(state.keys() - copies)
    if unknown:
        raise ZipFault(f"layer {as_line(unknown[0], longest=60)} is none of a plain CnnPolicy")
    return weights


def _check_scaling(policy_kwargs: Any) -> None:
    if isinstance(policy_kwargs, dict) and policy_kwargs.get("normalize_images") is False:
        raise ZipFault("its network does not divide by 255 (normalize_images)")
