"""A game's screen as a person would see it: every frame, in its own colours and resolution.

`ale_py.vector_env` hands out what the agent sees: a quarter of the frames, small and grey. So a
second emulator, a single `ALEInterface`, plays the same game beside it. It is given the same seed
and the same buttons, frame for frame, and so shows the same game, sticky actions included: the
emulator's random numbers follow from the seed and are drawn at each frame. Were the two ever to
differ in a reward, the lives or the number of frames, no screen would be handed out any more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from numpy.typing import NDArray

from retro_ml.envs.atari import FRAME_SKIP, AtariGames, GameSettings, Step


class ScreensDiffer(RuntimeError):
    """The second emulator plays another game than the first."""


class ScreenedGame(AtariGames):
    """One game of `AtariGames` that also keeps its screens.

    It is started by `reset(seeds=...)` alone and played to its first end.

    Args:
        settings: the game and its protocol.
    """

    def __init__(self, settings: GameSettings) -> None:
        super().__init__(settings, num_games=1, num_threads=1, seed=0)
        self.screens: NDArray[np.uint8]
        """`[F, H, W, 3]` the frames that the last `reset` (its last one alone) or step showed, RGB;
        4 of them after a step, fewer at a game's end."""
        self.lives = 0
        """Those that the screens show; 0 in games that count none."""
        self.reward = 0
        """Of the last step, unclipped."""
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._emulator = ALEInterface()
        self._emulator.setFloat("repeat_action_probability", settings.sticky_actions)
        choose = (
            self._emulator.getLegalActionSet
            if settings.full_action_space
            else self._emulator.getMinimalActionSet
        )
        self._choose_actions = choose
        rom_path = roms.get_rom_path(settings.rom)
        assert rom_path is not None  # the first emulator has loaded it
        self._rom_path = rom_path

    def reset(self, *, seeds: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Starts the game; see `AtariGames.reset`.

        Raises:
            ValueError: without a seed.
            ScreensDiffer: the two emulators differ, which no game of ale-py's has done.
        """
        if seeds is None:
            raise ValueError("seeds: None -> the seed of the one game")
        frames = super().reset(seeds=seeds)
        emulator = self._emulator
        emulator.setInt("random_seed", int(seeds[0]))
        emulator.loadROM(self._rom_path)
        self._buttons = list(self._choose_actions())
        for _ in range(int(self.starts[0])):
            emulator.reset_game()
        self._frames_in_play = 0
        start_frames = int(self.game_frames[0])
        # Choosing a game's mode takes frames in some ROMs, which count too.
        waiting_frames = start_frames - int(emulator.getEpisodeFrameNumber())
        for number in range(waiting_frames):
            fire = number == 0 and self.settings.auto_fire and Action.FIRE in self._buttons
            emulator.act(Action.FIRE if fire else Action.NOOP)
            if emulator.game_over():
                emulator.reset_game()
        self._compare(frames=int(emulator.getEpisodeFrameNumber()), expected=start_frames)
        self.lives, self.reward = emulator.lives(), 0
        self.screens = emulator.getScreenRGB()[None]
        return frames

    def receive(self) -> Step:
        """The step begun by `send`; `screens` and `lives` are those of its frames."""
        step = super().receive()
        emulator = self._emulator
        action = self._buttons[int(self.pressed[0])]
        reward, screens = 0, []
        for _ in range(FRAME_SKIP):
            reward += emulator.act(action)
            screens.append(emulator.getScreenRGB())
            self._frames_in_play += 1
            if emulator.game_over() or self._frames_in_play >= self.settings.max_frames:
                break
        self._compare(reward=reward, expected=float(step.rewards[0]))
        self._compare(game_over=emulator.game_over(), expected=bool(step.terminated[0]))
        self.lives, self.reward = emulator.lives(), reward
        self.screens = np.stack(screens)
        return step

    def _compare(self, *, expected: Any, **shown: Any) -> None:
        ((what, value),) = shown.items()
        if value != expected:
            raise ScreensDiffer(
                f"the second emulator has left the game: {what.replace('_', ' ')} {value}, "
                f"not {expected}"
            )
