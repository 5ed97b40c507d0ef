"""Published settings by name. A preset sets what the user has not set himself.

Only what differs from the defaults in sections.py is listed, or what the preset wants to hold
whatever the defaults become. A preset sets the algorithm's section and nothing else: the network is
NatureCNN with its own initial weights, and how the game is played follows from its id. Where that
is not what the figures of a source were made with, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Values for one algorithm's section."""

    algorithm: str
    source: str
    values: dict[str, Any]


PRESETS: dict[str, Preset] = {
    # On Breakout this one is at a score of 2 after 1,000,000 agent steps, nnabla's own at 29 to 45.
    "sb3": Preset(
        algorithm="A2C",
        source="rl-baselines3-zoo, hyperparams/a2c.yml, atari",
        values={
            "rmsprop_eps_inside_root": True,  # RMSpropTFLike
            "value_loss_coefficient": 0.25,
            "anneal_learning_rate": False,  # Stable-Baselines3's constant 7e-4
        },
    ),
    # nnabla-rl's own figures are those of a smaller network (two convolutions, 256 hidden units:
    # Mnih et al. 2016) with 16 games, whose policy and value are each stepped by an optimizer of
    # their own, with a limit of the gradient's norm of their own.
    "nnabla": Preset(
        algorithm="A2C",
        source="nnabla-rl, algorithms/a2c.py, A2CConfig",
        values={
            "rmsprop_eps_inside_root": False,
            "value_loss_coefficient": 0.5,
            "anneal_learning_rate": True,
            "schedule_agent_steps": 50_000_000,  # learning_rate_decay_iterations
        },
    ),
    # Dopamine's own figures are those of one game at a time, in which no FIRE is pressed for the
    # agent (environment.auto_fire), and of weights drawn uniformly after Glorot and Bengio (2010).
    "dopamine": Preset(
        algorithm="DQN",
        source="Dopamine, jax/agents/dqn/configs/dqn.gin and dqn_agent.py",
        values={
            "learning_rate": 6.25e-5,
            "adam_eps": 1.5e-4,
            "loss": "mse",
            "max_grad_norm": None,  # its optimiser clips nothing
            "target_update_agent_steps": 8_000,
            "warmup_agent_steps": 20_000,
            "epsilon_agent_steps": 250_000,
            "epsilon_hold_agent_steps": 20_000,  # epsilon falls once min_replay_history is there
        },
    ),
}


def find_preset(name: str, *, algorithm: str) -> Preset:
    """The preset `name` for `algorithm`. Raises: ValueError naming those there are."""
    preset = PRESETS.get(name.lower())
    if preset is not None and preset.algorithm == algorithm:
        return preset
    known = [key for key, value in PRESETS.items() if value.algorithm == algorithm]
    allowed = f"{algorithm} has {' and '.join(known)}" if known else f"{algorithm} has no presets"
    if preset is not None:
        raise ValueError(f"{allowed}; this one is for {preset.algorithm}")
    others = ", ".join(f"{key} ({value.algorithm})" for key, value in PRESETS.items())
    raise ValueError(f"no such preset; {allowed}; all presets: {others}")
