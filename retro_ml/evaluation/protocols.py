"""How an agent is evaluated: the named protocols, and what a call may choose.

- `machado`: Machado et al. 2018 (arXiv:1709.06009), sticky actions. As Dopamine (Castro et al.
  2018, arXiv:1812.06110) has it, with the game's own actions and a game cut off after 30 minutes.
- `noop`: Mnih et al. 2015 (Nature 518), a random number of no-ops at a game's start.

Both play whole games (a lost life ends nothing) and report unclipped scores. Deviations on purpose:
FIRE and the set of actions are the model's own, because it was trained with them; a fixed number of
games is played, each to its end, where Dopamine plays 125,000 agent steps and Machado et al. report
scores in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.fields import FrozenModel, Switch, Whole
from retro_ml.core.experiments.seeds import MAX_SEED

ProtocolName = Literal["machado", "noop"]

MAX_FRAMES = 108_000
"""Frames after which a game is cut off: 30 minutes (Dopamine's 27,000 agent steps; dqn_zoo)."""
DQN_EPSILON = 0.001
"""Share of random actions of an agent that has values (Dopamine, epsilon_eval)."""


class EvaluationOptions(FrozenModel):
    """What a call may choose. Raises pydantic's ValidationError with all faults at once."""

    episodes: Whole = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="whole games to play (this project's choice)",
    )
    protocol: ProtocolName | None = Field(
        default=None,
        description="machado: sticky actions of 0.25 (Machado et al. 2018); noop: 1 to 30 no-ops "
        "at the start (Mnih et al. 2015); by default machado for ALE/...-v5, otherwise noop",
    )
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED, description="the seed of all randomness")
    deterministic: Switch = Field(
        default=False,
        description="always the likeliest action, or the one of highest value; otherwise PPO and "
        f"A2C draw from their policy and {DQN_EPSILON:.1%} of DQN's actions are random (Dopamine)",
    )
    num_games: Whole = Field(
        default=16,
        ge=1,
        le=1_000,
        description="games played at a time; changes the time it takes and no score "
        "(this project's choice)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """All that decides how the games of an evaluation are played."""

    name: ProtocolName
    sticky_actions: float
    noop_max: int
    max_frames: int
    auto_fire: bool
    full_action_space: bool
    actions: Literal["sampled", "epsilon-greedy", "greedy"]
    epsilon: float
    """Share of random actions; 0 unless the actions are epsilon-greedy."""
    whole_games: bool = True
    """A lost life ends no game."""
    clipped_rewards: bool = False


def build_protocol(config: ExperimentConfig, options: EvaluationOptions) -> Protocol:
    """The protocol for the model that `config` trained."""
    name = options.protocol or ("machado" if config.game.protocol == "v5" else "noop")
    greedy_by_nature = config.algorithm == "DQN"
    actions: Literal["sampled", "epsilon-greedy", "greedy"] = (
        "greedy" if options.deterministic else "epsilon-greedy" if greedy_by_nature else "sampled"
    )
    return Protocol(
        name=name,
        sticky_actions=0.25 if name == "machado" else 0.0,
        noop_max=30 if name == "noop" else 0,
        max_frames=MAX_FRAMES,
        auto_fire=config.environment.auto_fire,
        full_action_space=config.environment.full_action_space,
        actions=actions,
        epsilon=DQN_EPSILON if actions == "epsilon-greedy" else 0.0,
    )
