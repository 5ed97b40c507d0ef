"""Which steps lose a life, from scripted answers where the emulator's would be: a game that gives
lives as well is seldom met, and one that is cut while it has more of them than it began with."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ale_py import Action
from numpy.typing import NDArray

from retro_ml.envs import atari
from retro_ml.envs.atari import AtariGames, GameSettings

pytestmark = pytest.mark.unit

NOOP, FIRE = 0, 1


class ScriptedEmulator:
    """One game; `script` holds the lives after each step, and whether it was over or cut."""

    script: tuple[tuple[int, bool, bool], ...] = ()

    def __init__(self, rom: str, **how: Any) -> None:
        self.ale = SimpleNamespace(get_action_set=lambda: [Action.NOOP, Action.FIRE])
        self.pressed: list[int] = []

    def reset(self, **how: Any) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int32]]]:
        return np.zeros((1, 1, 84, 84), np.uint8), self._info(3)

    def send(self, actions: NDArray[np.int64]) -> None:
        self.pressed.extend(actions.tolist())

    def recv(self) -> Any:
        lives, over, cut = self.script[len(self.pressed) - 1]
        frames = np.zeros((1, 1, 84, 84), np.uint8)
        info = {**self._info(lives), "final_obs": frames}
        return frames, np.zeros(1, np.int32), np.array([over]), np.array([cut]), info

    def _info(self, lives: int) -> dict[str, NDArray[np.int32]]:
        names = ("frame_number", "episode_frame_number")
        return {"lives": np.array([lives]), **{name: np.array([4]) for name in names}}


def play(
    monkeypatch: pytest.MonkeyPatch, *script: tuple[int, bool, bool], sticky_actions: float = 0.0
) -> tuple[list[bool], list[int]]:
    """For each step whether a life was lost, and what was pressed for an agent that never fires."""
    monkeypatch.setattr(ScriptedEmulator, "script", script)
    monkeypatch.setattr(atari, "AtariVectorEnv", ScriptedEmulator)
    settings = GameSettings(
        rom="any", sticky_actions=sticky_actions, noop_max=0, max_frames=100, auto_fire=True
    )
    games = AtariGames(settings, num_games=1, num_threads=1, seed=0)
    games.reset()
    lost = [bool(games.step(np.array([NOOP])).life_lost[0]) for _ in script]
    return lost, games._ale.pressed  # type: ignore[attr-defined]


def test_a_life_won_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, pressed = play(monkeypatch, *((lives, False, False) for lives in (3, 4, 4, 3, 2, 2)))
    assert lost == [False, False, False, True, True, False]
    assert pressed == [NOOP, NOOP, NOOP, NOOP, FIRE, FIRE]


@pytest.mark.parametrize(("over", "cut"), [(True, False), (False, True)])
def test_an_ended_game_loses_no_life(
    monkeypatch: pytest.MonkeyPatch, over: bool, cut: bool
) -> None:
    """It had 5 lives and the next one, whose lives are seen already, begins with 3."""
    lost, pressed = play(
        monkeypatch, (5, False, False), (3, over, cut), (3, False, False), (2, False, False)
    )
    assert lost == [False, False, False, True]
    assert pressed == [NOOP] * 4


def test_with_sticky_actions_each_game_begins_with_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ((3, False, False), (3, False, True), (3, False, False), (3, False, False))
    _, pressed = play(monkeypatch, *script, sticky_actions=0.25)
    assert pressed == [FIRE, NOOP, FIRE, NOOP]
