"""initial-weights.safetensors: what a run with `init_from` begins with, kept in its own folder.

The file that was named may change or go away; the run's copy makes every attempt begin alike, on
whatever machine. Its header says where the weights came from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.numpy

from retro_ml.core.artifacts.model_archive import Weights
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig

_ORIGIN = "origin"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """Weights of the run's own network, taken from another model."""

    weights: Weights
    """float32, by name."""
    origin: dict[str, Any]
    """Plain values: file, sha256, format, algorithm, game, agent_steps, not_taken_over."""

    @property
    def description(self) -> str:
        """One line for the user."""
        origin = self.origin
        trained = origin["agent_steps"]
        return (
            f"weights from {origin['file']} (sha256 {origin['sha256'][:12]}...): the whole network "
            f"of {origin['algorithm']} on {origin['game'] or 'a game that the file does not name'}"
            + ("" if trained is None else f", {trained:,} agent steps")
            + f"; not taken over: {', '.join(origin['not_taken_over'])}"
        )


def save_initial_weights(config: ExperimentConfig, initial: InitialWeights) -> None:
    """Puts them into the run's folder. Raises ArtifactError."""
    header = {_ORIGIN: json.dumps(initial.origin)}
    content = safetensors.numpy.save(initial.weights, metadata=header)
    replace_atomically(config.paths.initial_weights_path, lambda file: file.write(content))


def is_moved(config: ExperimentConfig, stored: ExperimentConfig) -> bool:
    """Whether `init_from` names the very file that the stored run began with, in another place."""
    if config.init_from is None or stored.init_sha256 is None:
        return False
    path = Path(config.init_from)
    try:
        if not path.is_file():  # going on needs it no more
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == stored.init_sha256
    except OSError:
        return False


def load_initial_weights(path: Path) -> InitialWeights:
    """The inverse of `save_initial_weights`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return InitialWeights(weights=weights, origin=json.loads(header[_ORIGIN]))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"cannot read {path}: {error}; it is what the run begins with: begin anew with "
            "--restart-behavior restart"
        ) from error
