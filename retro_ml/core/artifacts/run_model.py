"""A run's model.zip: what `model_archive` holds together, gathered from config and checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retro_ml.core.artifacts import stable_baselines3
from retro_ml.core.artifacts.initial_weights import load_initial_weights
from retro_ml.core.artifacts.model_archive import CARD, Weights, save_model_archive
from retro_ml.core.artifacts.model_card import build_model_card
from retro_ml.core.artifacts.status import installed_versions

if TYPE_CHECKING:
    from pathlib import Path

    from retro_ml.core.experiments.config import ExperimentConfig

# Mnih et al. 2015; no fields of a config, because network and agents rely on them.
_PREPROCESSING = {
    "frame_skip": 4,
    "max_of_last_frames": 2,
    "colour": "grey",
    "height": 84,
    "width": 84,
    "stacked_frames": 4,
    "stack_order": "oldest first",
    "stack_before_start": "zeros",
    "scaling": "none: the network divides by 255",
}
_OBSERVATION = {"shape": [4, 84, 84], "dtype": "uint8"}


def save_run_model(
    config: ExperimentConfig,
    weights: Weights,
    *,
    path: Path,
    agent_steps: int,
    score: float | None,
    action_meanings: list[str],
    history: dict[str, Any],
    created_at: str,
) -> None:
    """Replaces a model.zip of the run atomically. Raises ArtifactError.

    Args:
        config: the run.
        weights: float32 arrays of its network by name.
        path: its model.zip or best_model.zip.
        agent_steps: taken so far.
        score: mean of the last 100 games; None before the first.
        action_meanings: `ale_py`'s names, in the order of the actions.
        history: `TrainingHistory.summarize()`.
        created_at: when the checkpoint was made, ISO 8601.
    """
    versions = installed_versions()
    reason = stable_baselines3.explain_absence(config, weights)
    members = {}
    if reason is None:
        members = stable_baselines3.build_members(
            config, weights, agent_steps=agent_steps, versions=versions
        )
    metadata = {
        "algorithm": config.algorithm,
        "experiment_id": config.experiment_id,
        "game": {
            "rom": config.game.rom,
            "protocol": config.game.protocol,
            "action_meanings": action_meanings,
        },
        "observation": _OBSERVATION,
        "preprocessing": _PREPROCESSING,
        "protocol": config.environment.model_dump(mode="json"),
        "agent_steps": agent_steps,
        "score": score,
        "history": history,
        "versions": versions,
        "created_at": created_at,
        "stable_baselines3": _describe_sb3(config, reason),
    }
    if config.init_from is not None:
        initial = load_initial_weights(config.paths.initial_weights_path)
        metadata["initialized_from"] = {**initial.origin, "description": initial.description}
    card = build_model_card(metadata, config.model_dump(mode="json"))
    save_model_archive(
        path,
        weights=weights,
        config_json=config.model_dump_json(),
        metadata=metadata,
        members={CARD: card.encode(), **members},
    )


def _describe_sb3(config: ExperimentConfig, reason: str | None) -> dict[str, Any]:
    if reason is not None:
        return {"loads": False, "reason": reason}
    return {
        "loads": True,
        "class": f"stable_baselines3.{config.algorithm}",
        "version": stable_baselines3.SB3_VERSION,
        "not_taken_over": stable_baselines3.describe_losses(config),
    }
