"""Weights out of a Stable-Baselines3 zip (CnnPolicy of PPO, A2C, DQN), its pickles left alone.

`data` is read as JSON, in which pickles are just text. `policy.pth` is a zip in the zip, with a
pickle that describes its tensors; it is handed to `torch.load(..., weights_only=True)` once its
size is bounded and that pickle has been seen to name nothing but tensors.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from retro_ml.core.artifacts.guarded_zip import ZipFault, guard_zip, open_zip, read_member
from retro_ml.core.artifacts.model_archive import ArchiveError, Weights, parse_json
from retro_ml.core.artifacts.stable_baselines3 import ACTOR_CRITIC, BODY, Q_NETWORK
from retro_ml.core.experiments.faults import as_line

POLICY, DATA = "policy.pth", "data"
MAX_DATA_BYTES = 64 * 1024**2  # with the last observations of many games, as text
MAX_PICKLE_BYTES = 1024**2  # of the description of some 40 tensors
MAX_TENSORS = 1_000

_PROTOCOL = 2  # torch.save's
_HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch", "FloatStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """What could be learned of it without running anything."""

    kind: Literal["PPO or A2C", "DQN"]
    weights: Weights
    """By our names, float32; shapes are not checked."""
    num_timesteps: int | None


def read_model(path: Path) -> ForeignModel:
    """Raises ArchiveError: it is damaged, hostile, or of another network."""
    limits_bytes = {DATA: MAX_DATA_BYTES}
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


def _load_tensors(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The state dict in a file of `torch.save`'s. Raises ZipFault."""
    with guard_zip(io.BytesIO(content), limits_bytes={}, max_members=MAX_TENSORS) as archive:
        descriptions = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(descriptions) != 1:
            raise ZipFault(f"{POLICY} is no file of torch.save")
        if archive.getinfo(descriptions[0]).file_size > MAX_PICKLE_BYTES:
            raise ZipFault(f"the pickle in {POLICY} has more than {MAX_PICKLE_BYTES:,} bytes")
        _check_pickle(read_member(archive, descriptions[0]))
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file made on purpose leads it to
        # PyTorch's own message advises to load it as a pickle.
        raise ZipFault(f"{POLICY} is damaged, or holds more than tensors") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ZipFault(f"{POLICY} holds something else than tensors by name")
    return {name: tensor.numpy() for name, tensor in state.items()}


def _check_pickle(pickle: bytes) -> None:
    """Raises ZipFault if it names anything but float32 tensors. Nothing of it is run."""
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ"}:
                raise ZipFault(f"the pickle in {POLICY} builds objects")
            if opcode.name == "PROTO" and argument != _PROTOCOL:
                raise ZipFault(f"the pickle in {POLICY} is of protocol {argument}")
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                if (module, name) not in _HARMLESS:
                    named = as_line(f"{module}.{name}", longest=100)
                    raise ZipFault(f"the pickle in {POLICY} names {named}, which is no tensor")
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ZipFault(f"the pickle in {POLICY} is damaged ({error})") from error


def _rename(state: dict[str, np.ndarray[Any, Any]], layers: dict[str, str]) -> Weights:
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
