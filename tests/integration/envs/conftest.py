"""Short ways to games and frames."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames, GameSettings

BuildGames = Callable[..., AtariGames]
UnpackFrames = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@pytest.fixture
def build_games() -> Iterator[BuildGames]:
    """Games without any randomness unless the test asks for it; closed at the end."""
    with ExitStack() as stack:

        def build(
            rom: str = "breakout",
            *,
            num_games: int = 1,
            seed: int = 0,
            first_game: int = 0,
            **how: Any,
        ) -> AtariGames:
            plain = {
                "sticky_actions": 0.0,
                "noop_max": 0,
                "max_frames": 108_000,
                "auto_fire": False,
            }
            settings = GameSettings(rom=rom, **{**plain, **how})
            games = AtariGames(
                settings, num_games=num_games, num_threads=2, seed=seed, first_game=first_game
            )
            return stack.enter_context(closing(games))

        yield build
