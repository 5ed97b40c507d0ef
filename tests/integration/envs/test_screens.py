"""The second emulator shows the very game that the agent plays."""

import cv2
import numpy as np
import pytest

from retro_ml.envs.atari import GameSettings
from retro_ml.envs.frames import pack_frames
from retro_ml.envs.screens import ScreenedGame, ScreensDiffer

pytestmark = pytest.mark.integration


def build_game(rom: str, *, sticky_actions: float = 0.0, noop_max: int = 0) -> ScreenedGame:
    settings = GameSettings(
        rom=rom,
        sticky_actions=sticky_actions,
        noop_max=noop_max,
        max_frames=400,
        auto_fire=True,
    )
    return ScreenedGame(settings)


def as_seen(screens: np.ndarray) -> np.ndarray:
    """What ale-py makes of the last two screens: grey, their maximum, 84 x 84, packed.

    The emulator's grey is not reckoned from its RGB, so colours are made grey by its own table.
    """
    return pack_frames(cv2.resize(screens, (84, 84), interpolation=cv2.INTER_AREA)[None])


@pytest.mark.parametrize(
    ("rom", "sticky_actions", "noop_max"),
    [
        ("breakout", 0.25, 0),
        ("breakout", 0.0, 30),
        # No FIRE: a start without no-ops is drawn again.
        ("freeway", 0.0, 2),
        # Choosing the game's mode takes frames; 250 lines.
        ("air_raid", 0.25, 30),
    ],
)
def test_observations_are_equal(
    rom: str, sticky_actions: float, noop_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = build_game(rom, sticky_actions=sticky_actions, noop_max=noop_max)
    greys: list[np.ndarray] = []
    emulator = game._emulator

    class Spy:
        """The emulator, whose grey screens are kept beside the coloured ones."""

        def __getattr__(self, name: str) -> object:
            return getattr(emulator, name)

        def getScreenRGB(self) -> np.ndarray:
            greys.append(emulator.getScreenGrayscale())
            return emulator.getScreenRGB()

    monkeypatch.setattr(game, "_emulator", Spy())
    rng = np.random.default_rng(0)
    compared = 0
    for seed in (3, 12_345):
        greys.clear()
        frames = game.reset(seeds=np.array([seed]))
        np.testing.assert_array_equal(as_seen(greys[-1]), frames)
        while True:
            greys.clear()
            step = game.step(rng.integers(game.single_action_space.n, size=1))
            if step.started[0]:
                break
            assert game.screens.shape[0] == 4
            assert game.screens.shape[2:] == (160, 3)
            np.testing.assert_array_equal(as_seen(np.maximum(*greys[-2:])), step.frames)
            compared += 1
    assert compared > 100
    game.close()


def test_a_game_that_was_left_is_noticed() -> None:
    game = build_game("breakout")
    game.reset(seeds=np.array([1]))
    game._emulator.loadROM(game._rom_path)  # another game: it begins anew

    def play_on() -> None:
        for _ in range(200):
            game.step(np.array([2]))

    with pytest.raises(ScreensDiffer, match="the second emulator has left the game"):
        play_on()
    game.close()


def test_it_is_started_by_a_seed_alone() -> None:
    game = build_game("breakout")

    with pytest.raises(ValueError, match="the seed of the one game"):
        game.reset()
    game.close()
