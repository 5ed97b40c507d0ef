"""A model.zip as a file for another runtime, proved on what the agent really sees.

- `onnx`: ONNX, input `observations` `[B, 4, 84, 84] uint8` with any B, outputs `logits [B, A]` and
  `value [B]`, or `q_values [B, A]`, float32;
- `torch-export`: the same as a program of `torch.export`;
- `safetensors`: the weights alone, named as the layers of NatureCNN.

A file is written only after it has chosen the agent's own actions on 1,000 observations of games
that the agent played. Where the agent's scores of two actions lie within rounding (1e-5), either is
the agent's own.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.envs.frames import OBSERVATION_SHAPE
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.observations import collect_observations
from retro_ml.networks.standard_form import build_standard_form

ExportFormat = Literal["onnx", "torch-export", "safetensors"]
NUM_OBSERVATIONS = 1_000
"""On which an export is compared with its agent (this project's choice)."""
TOLERANCE = 1e-5
"""Difference of scores that rounding explains: sums of 3,136 products in another order."""

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Observations `[B, 4, 84, 84]` -> logits or action values `[B, A]`."""


class ExportUnavailable(Exception):
    """A library that the format needs is not installed; the message says how to get it."""


class ExportDiffers(Exception):
    """The exported file does not act as the agent does; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written and how well it agrees."""

    path: Path
    num_observations: int
    largest_difference: float
    """Of a logit or an action value."""
    signature: str | None
    """Inputs and outputs; None where only weights were written."""


def export_agent(agent: Agent, *, to: ExportFormat, output: Path) -> Export:
    """Writes `output` in the format `to`, atomically, once it has been proved.

    Raises:
        ExportUnavailable: a library is missing.
        ArchiveError: it has another number of actions than its game.
        ExportDiffers: it chooses other actions.
        ArtifactError: the file cannot be written, or PyTorch has no folder for temporary files.
    """
    build = {"onnx": _build_onnx, "torch-export": _build_torch, "safetensors": _build_weights}[to]
    observations = collect_observations(agent, count=NUM_OBSERVATIONS)
    content, forward = build(agent)
    scores = np.concatenate([forward(part) for part in np.array_split(observations, 10)])
    difference = _compare(agent, observations, scores)
    replace_atomically(output, lambda target: target.write(content), shared=True)
    outputs = ", ".join(build_standard_form(agent.network).outputs)
    signature = f"observations [B, 4, 84, 84] uint8 -> {outputs} float32"
    return Export(
        path=output,
        num_observations=len(observations),
        largest_difference=difference,
        signature=None if to == "safetensors" else signature,
    )


def _compare(agent: Agent, observations: NDArray[np.uint8], scores: NDArray[np.float32]) -> float:
    """The largest difference of a score. Raises ExportDiffers."""
    own = agent.scores(observations)
    chosen = np.take_along_axis(own, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    others = int((own.max(axis=1) - chosen > TOLERANCE).sum())
    if others or not np.isfinite(scores).all():
        raise ExportDiffers(f"it chose other actions on {others} of {len(own):,} observations")
    return float(np.abs(own - scores).max())


# Each gives the file's content, and what plays by that content. They are a few MB, and made in
# memory because a folder for temporary files may be full.
def _build_onnx(agent: Agent) -> tuple[bytes, Forward]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx says so in a traceback only)
    except ImportError as error:
        raise ExportUnavailable(
            f"{error.name} is not installed; pip install 'retro_ml[export]'"
        ) from None
    _require_temporary_folder()
    module = build_standard_form(agent.network)
    with _quiet():
        program = torch.onnx.export(
            module,
            (_example(),),
            input_names=["observations"],
            output_names=list(module.outputs),
            dynamic_shapes={"observations": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_describe(agent))
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def forward(observations: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = session.run(
            [module.outputs[0]], {"observations": observations}
        )[0]
        return scores

    return content, forward


def _build_torch(agent: Agent) -> tuple[bytes, Forward]:
    _require_temporary_folder()
    module = build_standard_form(agent.network)
    program = torch.export.export(
        module,
        (_example(),),
        dynamic_shapes={"observations": {0: torch.export.Dim("batch")}},
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=_describe(agent))
    content = file.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    return content, lambda observations: _first_output(loaded, observations)


def _build_weights(agent: Agent) -> tuple[bytes, Forward]:
    weights = {name: tensor.contiguous() for name, tensor in agent.network.state_dict().items()}
    content = safetensors.torch.save(weights, metadata={"format": "pt", **_describe(agent)})
    arrays: dict[str, NDArray[Any]] = {
        name: tensor.numpy() for name, tensor in safetensors.torch.load(content).items()
    }
    module = build_standard_form(Agent.from_weights(arrays, config=agent.config).network)
    return content, lambda observations: _first_output(module, observations)


def _require_temporary_folder() -> None:
    """PyTorch's exporters ask for it while they are imported. Raises ArtifactError."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"cannot export: PyTorch needs a folder for temporary files: {error.strerror}; "
            "make room in one of them, or TMPDIR names another"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch 2.13 says of its own deprecations and of a missing torchvision."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        registry.setLevel(level)


def _first_output(module: Any, observations: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        scores: NDArray[np.float32] = module(torch.from_numpy(observations))[0].numpy()
    return scores


def _example() -> torch.Tensor:
    # Two, because a size of one is taken for a constant.
    return torch.zeros((2, *OBSERVATION_SHAPE), dtype=torch.uint8)


def _describe(agent: Agent) -> dict[str, str]:
    """What the file says of itself, as text."""
    return {
        "algorithm": agent.config.algorithm,
        "game": agent.config.game_id,
        "action_meanings": json.dumps(agent.action_meanings),
        "agent_steps": str(agent.metadata.get("agent_steps")),
    }
