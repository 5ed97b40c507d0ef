"""`python -m retro_ml.watch`, `retro-ml watch`: a film of a trained agent, or the agent live.

Exit codes: 0 done, 1 the film could not be written, 2 bad input, 3 this machine cannot do it (the
extra `[video]`, a window or a terminal) or storage does not answer, 130 and 143 stopped by a
signal. PyTorch is imported only when the games really begin, Ray never.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retro_ml.core.artifacts.given_runs import (
    STORAGE_FAILED,
    GivenModel,
    StorageError,
    open_model,
)
from retro_ml.core.artifacts.storage import (
    ArtifactError,
    own_temporary_path,
)
from retro_ml.core.engine.progress_text import shown_path
from retro_ml.core.engine.stop_signals import StopSignals
from retro_ml.core.experiments.command import (
    Parser,
    describe_unknown,
    fail,
    print_answer,
    refuse,
    stoppable,
    tell_stopped,
)
from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.evaluation.film_options import FilmOptions

if TYPE_CHECKING:
    from retro_ml.evaluation.films import Film

FAILED = 1
_ONE_MODEL = "one model at a time, all else are options"
CANNOT = 3

_DESCRIPTION = """\
Film a trained agent at play: every frame of the game in its own colours, 60 a second, and beside
it score, value estimate and action probabilities. Needs the extra retro_ml[video] and no display.
Or watch it live, in a window where there is a display, otherwise in the terminal."""

_EPILOG = """\
examples:
  retro-ml watch runs/my-run                       writes runs/my-run/videos/agent.mp4
  retro-ml watch model.zip --episodes 3 --video breakout.mp4
  retro-ml watch runs/my-run --live
  retro-ml watch s3://runs/lab/my-run              sends videos/agent.mp4 there
"""


@stoppable()
def main(argv: Sequence[str] | None = None) -> int:
    """Film or show one agent as `argv` says; the process's exit code."""
    try:
        flags, options = _read_call(sys.argv[1:] if argv is None else argv)
        with open_model(flags.model) as model:
            target = _choose_target(model, flags)
            return _watch(model, target, options=options, flags=flags)
    except UsageError as error:
        return refuse("watch", error.faults)
    except StorageError as error:
        return fail(f"MODEL: {error}", STORAGE_FAILED)
    except KeyboardInterrupt as error:
        return tell_stopped(error, "nothing was filmed")


def _read_call(argv: Sequence[str]) -> tuple[argparse.Namespace, FilmOptions]:
    """Flags and validated options. Raises: UsageError with all faults."""
    parser = _build_parser()
    flags, unknown = parser.parse_known_args(argv)
    faults = describe_unknown(unknown, parser, unexpected=_ONE_MODEL)
    if flags.model is None:
        faults.append("MODEL: missing -> a model.zip, or the folder of a run that has one")
    if flags.live and flags.video is not None:
        faults.append("--video: with --live nothing is filmed -> leave out one of the two")
    given = {
        name: value
        for name, value in vars(flags).items()
        if name in FilmOptions.model_fields and value is not None
    }
    try:
        options = FilmOptions.model_validate(given)
    except ValidationError as error:
        faults += describe_faults(error, FilmOptions)
    if faults:
        raise UsageError(faults)
    return flags, options


def _build_parser() -> Parser:
    parser = Parser(
        "watch",
        usage="MODEL [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model.zip or a run's folder, or the URI of one"
    )
    parser.add_argument(
        "--video",
        metavar="FILE.mp4",
        help="the film's file; by default videos/agent.mp4 in the run's folder, or the model's "
        "name with .mp4 beside it, in storage where MODEL is there; one that is there is replaced",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="show it at real speed, film nothing: in a window, or in this terminal where there is "
        "no display",
    )
    for name, field in FilmOptions.model_fields.items():
        words: dict[str, Any] = {"help": str(field.description).replace("%", "%%")}
        if field.annotation is bool:
            words["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        else:
            words["metavar"] = "N" if field.annotation is int else "NAME"
        if field.default and field.annotation is not bool:
            words["help"] += f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, **words)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _choose_target(model: GivenModel, flags: argparse.Namespace) -> Path:
    """The film's file; with --live it is not used. Raises: UsageError."""
    target = model.path.with_suffix(".mp4") if model.run is None else model.run.film_path
    return target if flags.live else _check_target(flags.video, target)


def _check_target(given: str | None, target: Path) -> Path:
    if given is not None:
        target = Path(given)
        if target.suffix.lower() != ".mp4":
            raise UsageError([f"--video: {given} -> a file that ends in .mp4"])
        try:
            if target.is_dir():
                raise UsageError([f"--video: {given} -> is a folder; name a file in it"])
            if not target.parent.is_dir():
                raise UsageError(
                    [f"--video: {given} -> there is no folder {target.parent}; make it"]
                )
        except OSError as error:  # a name too long, or a folder on the way that may not be entered
            raise UsageError([f"--video: {given} -> {error.strerror}"]) from None
    # A run's own folder of films is made when it is needed.
    folder = target.parent if target.parent.exists() else target.parent.parent
    if not os.access(folder, os.W_OK):
        raise UsageError(
            [f"--video: {target} -> cannot be written there; choose another file with --video"]
        )
    return target


def _watch(
    model: GivenModel, target: Path, *, options: FilmOptions, flags: argparse.Namespace
) -> int:
    """Raises: StorageError."""
    from retro_ml.core.artifacts.model_archive import ArchiveError
    from retro_ml.envs.screens import ScreensDiffer
    from retro_ml.evaluation.live import NoScreen
    from retro_ml.evaluation.video_file import NoVideo

    try:
        if flags.live:
            return _show(model, options)
        return _film(model, target, options=options, quiet=flags.quiet)
    except ArchiveError as error:
        return refuse("watch", [model.in_words(error)])
    except (NoScreen, NoVideo) as error:
        return fail(str(error), CANNOT)
    except (ArtifactError, ScreensDiffer) as error:
        return fail(str(error), FAILED)


def _film(model: GivenModel, target: Path, *, options: FilmOptions, quiet: bool) -> int:
    from retro_ml.evaluation.agent import Agent
    from retro_ml.evaluation.film_progress import FilmProgress
    from retro_ml.evaluation.films import record_film
    from retro_ml.evaluation.video_file import require_video

    agent = Agent.load(model.path)
    require_video()
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ArtifactError.from_os_error(error, target.parent) from error
    # Another call may film the same run.
    temporary = own_temporary_path(target)
    progress = FilmProgress(None if quiet else sys.stderr, episodes=options.episodes)
    stop = StopSignals(
        on_first=lambda: None,
        before_exit=lambda: temporary.unlink(missing_ok=True),
    )
    with stop, progress:
        film = record_film(
            agent,
            target,
            options,
            temporary=temporary,
            on_moment=progress,
            stopped=lambda: stop.signum is not None,
        )
    if film is None:
        print("stopped: nothing was filmed", file=sys.stderr)
    else:
        _tell(film, model)
    return 0 if stop.signum is None else 128 + stop.signum


def _tell(film: Film, model: GivenModel) -> None:
    """One line: where it is, what it shows. Raises: StorageError."""
    from retro_ml.evaluation.film_progress import film_words

    where = model.keep(film.path)
    if model.storage is None:
        where = shown_path(film.path)
    if not film.whole:
        print("stopped: the film ends where it was stopped", file=sys.stderr)
    print_answer(f"film: {where} ({film_words(film)})")


def _show(model: GivenModel, options: FilmOptions) -> int:
    from retro_ml.evaluation.agent import Agent
    from retro_ml.evaluation.live import open_screen, show_live

    screen = open_screen(options, sys.stdout)
    agent = Agent.load(model.path)
    stop = StopSignals(on_first=lambda: None, before_exit=screen.restore)
    try:
        with stop, screen:
            scores = show_live(agent, options, screen, stopped=lambda: stop.signum is not None)
    except BrokenPipeError:  # the terminal is gone
        return 0
    if scores:
        words = ", ".join(f"{score:,.0f}" for score in scores)
        print_answer(f"{'scores' if len(scores) > 1 else 'score'}: {words}")
    return 0 if stop.signum is None else 128 + stop.signum


if __name__ == "__main__":
    sys.exit(main())
