"""Observations that an agent really sees, to compare its copies in other formats on."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames, GameSettings
from retro_ml.envs.frames import PACKED_STACK_SHAPE, push_frames, unpack_stacks
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import check_actions

_NUM_GAMES = 8


def collect_observations(agent: Agent, *, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """`[count, 4, 84, 84] uint8`: 8 games, played by the agent as in its training, step by step.

    Raises:
        ArchiveError: the agent has another number of actions than the game.
    """
    environment = agent.config.environment
    settings = GameSettings(
        rom=agent.config.game.rom,
        sticky_actions=environment.sticky_actions or 0.0,
        noop_max=environment.noop_max or 0,
        max_frames=environment.max_frames,
        auto_fire=environment.auto_fire,
        full_action_space=environment.full_action_space,
    )
    seen = np.empty((-(-count // _NUM_GAMES), _NUM_GAMES, *PACKED_STACK_SHAPE), np.uint8)
    games = AtariGames(settings, num_games=_NUM_GAMES, num_threads=2, seed=seed)
    with closing(games):
        check_actions(agent, int(games.single_action_space.n))
        stacks = np.zeros((_NUM_GAMES, *PACKED_STACK_SHAPE), np.uint8)
        push_frames(stacks, games.reset(), np.ones(_NUM_GAMES, np.bool_))
        for moment in seen:
            moment[:] = stacks
            step = games.step(np.asarray(agent.act(unpack_stacks(stacks))))
            push_frames(stacks, step.frames, step.started)
    return unpack_stacks(seen.reshape(-1, *PACKED_STACK_SHAPE)[:count])
