"""What a section leaves open is filled in here, and what must fit together is checked.

A check gives `(field, value, what is allowed)` for each fault; the field is inside the section.
"""

from __future__ import annotations

import secrets
import string
from datetime import datetime
from typing import Any

from retro_ml.core.experiments.games import GameSpec
from retro_ml.core.experiments.sections import (
    A2CSettings,
    DQNSettings,
    EnvironmentConfig,
    PPOSettings,
    ResourcesConfig,
)

Faults = list[tuple[str, Any, str]]
Settings = PPOSettings | A2CSettings | DQNSettings

# PPO: Schulman et al. 2017, table 5. A2C: OpenAI Baselines. DQN: this project's choice.
DEFAULT_NUM_GAMES = {"PPO": 8, "A2C": 16, "DQN": 4}

# Mnih et al. 2015, Extended Data Table 1. In Machado et al. 2018, section 5, sticky actions take
# the place of no-ops.
_NOOP_MAX = 30

# A replay smaller than an iteration of a very short run would only forget.
_MIN_REPLAY_SIZE = 1_000


def check_environment(environment: EnvironmentConfig) -> Faults:
    """The no-ops must leave something of the game."""
    if (environment.noop_max or 0) < environment.max_frames:
        return []
    allowed = f"fewer frames than environment.max_frames, {environment.max_frames:,}"
    return [("noop_max", environment.noop_max, allowed)]


def fill_environment(environment: EnvironmentConfig, game: GameSpec) -> EnvironmentConfig:
    """The protocol of the game's id, where the user did not decide."""
    values: dict[str, Any] = {}
    if environment.sticky_actions is None:
        values["sticky_actions"] = game.sticky_actions
    if environment.noop_max is None:
        noop_max = _NOOP_MAX if game.protocol == "noframeskip-v4" else 0
        values["noop_max"] = min(noop_max, environment.max_frames - 1)
    if environment.terminal_on_life_loss is None:
        values["terminal_on_life_loss"] = game.protocol == "noframeskip-v4"
    return environment.model_copy(update=values)


def check_resources(
    resources: ResourcesConfig, *, algorithm: str | None, use_gpu: bool | None
) -> Faults:
    """The default games must split evenly, and the GPUs agree with use_gpu."""
    faults: Faults = []
    runners, games = max(1, resources.num_env_runners), DEFAULT_NUM_GAMES.get(algorithm or "")
    if resources.games_per_env_runner is None and games is not None and games % runners:
        even = ", ".join(str(number) for number in range(1, games + 1) if games % number == 0)
        allowed = (
            f"{algorithm}'s {games} games split evenly over {even} runners; "
            "for another number set resources.games_per_env_runner too"
        )
        faults.append(("num_env_runners", resources.num_env_runners, allowed))
    if resources.num_gpus is not None:
        learners = max(1, resources.num_learners)
        share = resources.num_gpus / learners
        # NCCL, by which learners add up their gradients, takes no two of them on one GPU.
        if share != int(share) and (share > 1 or learners > 1):
            only = f"whole GPUs for each of {learners} learners"
            allowed = only if learners > 1 else "above 1 only whole GPUs"
            faults.append(("num_gpus", resources.num_gpus, allowed))
        if resources.num_gpus > 0 and use_gpu is False:
            allowed = "0, because use_gpu is false; leave out one of the two"
            faults.append(("num_gpus", resources.num_gpus, allowed))
    return faults


def fill_resources(resources: ResourcesConfig, *, algorithm: str) -> ResourcesConfig:
    """The algorithm's games, split over the env runners."""
    if resources.games_per_env_runner is not None:
        return resources
    games = DEFAULT_NUM_GAMES[algorithm] // max(1, resources.num_env_runners)
    return resources.model_copy(update={"games_per_env_runner": games})


def fill_settings(settings: Settings, *, total_timesteps: int) -> Settings:
    """The schedule, and for DQN what is reckoned from it."""
    schedule = settings.schedule_agent_steps or total_timesteps
    defaults: dict[str, Any] = {"schedule_agent_steps": schedule}
    if isinstance(settings, DQNSettings):
        defaults["replay_size"] = max(_MIN_REPLAY_SIZE, min(1_000_000, schedule))
        defaults["warmup_agent_steps"] = min(80_000, schedule // 20)
        defaults["epsilon_agent_steps"] = max(1, schedule // 10)
    missing = {name: value for name, value in defaults.items() if getattr(settings, name) is None}
    return settings.model_copy(update=missing)


def check_settings(settings: Settings, resources: ResourcesConfig) -> Faults:
    """Rollouts, minibatches, updates and replay must fit together."""
    games = max(1, resources.num_env_runners) * (resources.games_per_env_runner or 1)
    rollout_agent_steps = games * settings.rollout_length
    rollout = f"a rollout's {rollout_agent_steps:,} agent steps"
    origin = f"{games:,} games x rollout_length {settings.rollout_length:,}"
    divides = f"a number that divides {rollout} ({origin}) without remainder"
    faults: Faults = []
    if isinstance(settings, PPOSettings) and rollout_agent_steps % settings.minibatch_size:
        faults.append(("minibatch_size", settings.minibatch_size, divides))
    if isinstance(settings, DQNSettings) and rollout_agent_steps % settings.agent_steps_per_update:
        faults.append(("agent_steps_per_update", settings.agent_steps_per_update, divides))
    if isinstance(settings, DQNSettings):
        faults.extend(_check_replay(settings, games))
    faults.extend(_check_learners(settings, rollout_agent_steps, max(1, resources.num_learners)))
    return faults


def _check_replay(settings: DQNSettings, games: int) -> Faults:
    """The replay holds a batch, and whole returns of each game; epsilon falls."""
    faults: Faults = []
    if settings.replay_size is not None:
        size, per_game = settings.replay_size, -(-settings.replay_size // games)
        if size < settings.batch_size:
            allowed = f"at least batch_size, {settings.batch_size:,} transitions"
            faults.append(("replay_size", size, allowed))
        elif per_game < settings.n_step:
            allowed = f"at most {per_game:,}, of which replay_size {size:,} has room for each game"
            faults.append(("n_step", settings.n_step, allowed))
    if settings.epsilon_final > settings.epsilon_initial:
        allowed = f"at most epsilon_initial, {settings.epsilon_initial}"
        faults.append(("epsilon_final", settings.epsilon_final, allowed))
    return faults


def _check_learners(settings: Settings, rollout_agent_steps: int, learners: int) -> Faults:
    """What a gradient step takes is split evenly over the learners; advantages need a deviation."""
    split = f"resources.num_learners, {learners}, divides without remainder"
    if isinstance(settings, A2CSettings):
        allowed = f"one whose rollout, now {rollout_agent_steps:,} agent steps, {split}"
        fits = rollout_agent_steps % learners == 0
        return [] if fits else [("rollout_length", settings.rollout_length, allowed)]
    name = "minibatch_size" if isinstance(settings, PPOSettings) else "batch_size"
    rows = getattr(settings, name)
    if rows % learners:
        return [(name, rows, f"a number that {split}")]
    if isinstance(settings, PPOSettings) and settings.normalize_advantages and rows == learners:
        allowed = "2 or more for each learner, or normalize_advantages false"
        return [(name, rows, allowed)]
    return []


def build_experiment_id(game: GameSpec, algorithm: str, *, seed: int, created_at: datetime) -> str:
    """A name that no other run has: ROM, algorithm, seed, moment, four random characters."""
    alphabet = string.ascii_lowercase + string.digits
    parts = (
        game.rom.replace("_", "-"),
        algorithm.lower(),
        f"s{seed}",
        created_at.strftime("%Y%m%d-%H%M%S"),
        "".join(secrets.choice(alphabet) for _ in range(4)),
    )
    return "-".join(parts)
