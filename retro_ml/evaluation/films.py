"""Films of an agent that plays: the game in its own colours, and the strip beside it.

Games are encoded as they are played, so memory does not grow with their length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import Episode
from retro_ml.evaluation.film_options import FilmOptions
from retro_ml.evaluation.picture import Enlarger, side_by_side, to_planes
from retro_ml.evaluation.playback import Moment, watch_games
from retro_ml.evaluation.protocols import build_protocol
from retro_ml.evaluation.strip import Caption, Strip
from retro_ml.evaluation.video_file import FRAMES_PER_S, Planes, VideoFile

_HOLD_FRAMES = FRAMES_PER_S
"""For how long a game's last screen stays: 1 s (this project's choice)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """What was filmed."""

    path: Path
    frames: int
    width: int
    height: int
    episodes: tuple[Episode, ...]
    """The games that came to their end."""
    whole: bool
    """All that was asked for; it was stopped otherwise."""


def record_film(
    agent: Agent,
    path: Path,
    options: FilmOptions,
    *,
    temporary: Path | None = None,
    share: float | None = None,
    max_frames: int | None = None,
    on_moment: Callable[[Moment], None] = lambda moment: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Film | None:
    """Films whole games.

    Args:
        agent: plays.
        path: the film's file, an mp4.
        options: how.
        temporary: where it grows until it is whole, if others may film to `path` at the same time.
        share: of its training that the agent has had, 0 to 1, shown as a bar.
        max_frames: the film ends here, in the middle of a game too.
        on_moment: is called after every agent step.
        stopped: asked after every agent step; True ends the film with what was played.

    Returns:
        The film; None where it was stopped before anything was played.

    Raises:
        NoVideo: the extra `[video]` is not there.
        ArchiveError: the agent has another number of actions than the game.
        ArtifactError: the file cannot be written; nothing remains of it.
    """
    protocol = build_protocol(agent.config, options.of_evaluation)
    caption = build_caption(agent, share=share)
    camera: _Camera | None = None
    episodes: list[Episode] = []
    whole = True
    try:
        for action_meanings, moment in watch_games(
            agent, protocol=protocol, episodes=options.episodes, seed=options.seed
        ):
            if camera is None:
                camera = _Camera(
                    path, moment, options, caption, action_meanings, temporary=temporary
                )
            camera.take(moment)
            if moment.ended is not None:
                episodes.append(moment.ended)
            on_moment(moment)
            if max_frames is not None and camera.file.frames >= max_frames:
                break
            if stopped():
                whole = False
                break
        if camera is None or (not whole and camera.file.frames < FRAMES_PER_S // 4):
            return None
        camera.file.finish()
    finally:
        if camera is not None:
            camera.file.discard()
    return Film(
        path=path,
        frames=camera.file.frames,
        width=camera.width,
        height=camera.height,
        episodes=tuple(episodes),
        whole=whole,
    )


def build_caption(agent: Agent, *, share: float | None) -> Caption:
    """Who plays, in words."""
    config = agent.config
    trained = agent.metadata.get("agent_steps")
    after = [] if trained is None else [f"{trained:,} agent steps"]
    if share is not None:
        after.append(f"{100 * share:.0f} %")
    return Caption(
        title=_game_title(config),
        lines=(f"played by {config.algorithm}", "after " + ", ".join(after) if after else ""),
        share=share,
    )


class _Camera:
    """Moments -> frames in a file."""

    def __init__(
        self,
        path: Path,
        first: Moment,
        options: FilmOptions,
        caption: Caption,
        action_meanings: tuple[str, ...],
        *,
        temporary: Path | None,
    ) -> None:
        height, width = first.screens.shape[1:3]
        self._enlarge = Enlarger(height, width, scale=options.scale)
        self.height, self.width = self._enlarge.height, self._enlarge.width
        self._strip: Strip | None = None
        if options.strip:
            self._strip = Strip(
                caption,
                action_meanings=action_meanings,
                height=self.height,
                episodes=options.episodes,
            )
            self.width += self._strip.width
        self.file = VideoFile(path, width=self.width, height=self.height, temporary=temporary)

    def take(self, moment: Moment) -> None:
        strip: Planes | None = None
        if self._strip is not None:
            strip = to_planes(self._strip.draw(moment), pixel_format="yuv420p")
        for screen in moment.screens:
            planes = side_by_side(self._enlarge(screen), strip)
            self.file.write(planes)
        if moment.ended is not None:
            for _ in range(_HOLD_FRAMES):
                self.file.write(planes)


def _game_title(config: ExperimentConfig) -> str:
    return config.game.rom.replace("_", " ").title()
