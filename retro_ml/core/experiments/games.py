"""Every spelling of a game id -> one ROM and one protocol.

The ROMs are those of the installed ale-py; its folder is looked at without importing it, which
keeps the command line quick. Two protocols are left of Gymnasium's many (Machado et al. 2018,
arXiv:1709.06009): `noframeskip-v4`, the older literature's, and `v5`, with sticky actions.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from retro_ml.core.experiments.nearest import either, nearest

Protocol = Literal["noframeskip-v4", "v5"]

# ale_py/registration.py leaves these out for the same reason.
TWO_PLAYER_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})

_SPELLING = re.compile(
    r"(?P<namespace>ale/)?"
    r"(?P<name>.+?)"
    r"(?P<ram>-ram)?"
    r"(?P<kind>noframeskip|deterministic)?"
    r"(?:-v(?P<version>\d+))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class GameSpec:
    """One game as it is played here."""

    rom: str
    """ale-py's name of the ROM, e.g. `space_invaders`."""
    protocol: Protocol
    sticky_actions: float
    """Probability that the emulator repeats the previous action."""
    note: str | None = None
    """For the log: what the spelling meant elsewhere, where that differs."""

    @property
    def label(self) -> str:
        """What tells apart the games whose scores can be compared: `pong`, or `pong (v5)`."""
        return f"{self.rom} (v5)" if self.protocol == "v5" else self.rom


class GameNotFound(ValueError):
    """No game is known by this name."""


@cache  # schedulers ask for the same few games of each waiting trial
def find_game(game_id: str) -> GameSpec:
    """The game meant by `game_id`: a Gymnasium id, a ROM's name or a title, in any case.

    Raises: GameNotFound, with the nearest names or the reason for the refusal.
    """
    spelling = _SPELLING.fullmatch(game_id.strip())
    if spelling is None:
        raise GameNotFound("a game's name, e.g. BreakoutNoFrameskip-v4, ALE/Pong-v5 or breakout")
    if spelling["ram"]:
        raise GameNotFound(
            "games are played from the screen, not from the console's RAM; leave out -ram"
        )
    rom = _find_rom(spelling["name"])
    version = _find_version(spelling)
    if version == "v5":
        return GameSpec(rom=rom, protocol="v5", sticky_actions=0.25)
    note = _note_on_spelling(
        game_id.strip(), kind=(spelling["kind"] or "").lower(), version=version
    )
    return GameSpec(rom=rom, protocol="noframeskip-v4", sticky_actions=0.0, note=note)


@cache
def available_roms() -> tuple[str, ...]:
    """The single-player ROMs that ale-py brings, sorted.

    Raises: ModuleNotFoundError when ale-py is not installed.
    """
    spec = importlib.util.find_spec("ale_py")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("ale-py is not installed", name="ale_py")
    folder = Path(spec.submodule_search_locations[0]) / "roms"
    return tuple(sorted({path.stem for path in folder.glob("*.bin")} - TWO_PLAYER_ONLY))


def _letters(name: str) -> str:
    """`Ms. Pac-Man`, `MsPacman` and `ms_pacman` are all `mspacman`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _find_rom(name: str) -> str:
    wanted = _letters(name)
    if wanted in {_letters(rom) for rom in TWO_PLAYER_ONLY}:
        raise GameNotFound("this game has no single-player mode; choose another")
    by_letters = {_letters(rom): rom for rom in available_roms()}
    # Montezuma's Revenge is montezuma_revenge, Yars' Revenge yars_revenge.
    for spelled in (wanted, _letters(re.sub("['\u2019]s\\b", "", name))):
        if spelled in by_letters:
            return by_letters[spelled]
    near = nearest(wanted, by_letters)
    if not near:
        raise GameNotFound(
            f"no such game; one of ale-py's {len(by_letters)} single-player games, "
            "e.g. breakout, pong, space_invaders"
        )
    raise GameNotFound(f"no such game; did you mean {either([by_letters[key] for key in near])}?")


def _find_version(spelling: re.Match[str]) -> str | None:
    """`v0`, `v4`, `v5`, or None where the spelling names no version."""
    version = f"v{spelling['version']}" if spelling["version"] else None
    if spelling["namespace"]:
        if version not in {None, "v5"} or spelling["kind"]:
            raise GameNotFound(f"the ALE/ ids are of version v5; write ALE/{spelling['name']}-v5")
        return "v5"
    if version == "v5" and spelling["kind"]:
        name, kind = spelling["name"], spelling["kind"]
        raise GameNotFound(f"no such version; write {name}{kind}-v4 or ALE/{name}-v5")
    if version not in {None, "v0", "v4", "v5"}:
        name = spelling["name"]
        raise GameNotFound(f"no such version; write {name}NoFrameskip-v4 or ALE/{name}-v5")
    return version


def _note_on_spelling(game_id: str, *, kind: str, version: str | None) -> str | None:
    """What `game_id` means in Gymnasium, where it is not what is used here."""
    if version is None and not kind:
        return None
    meant = []
    if version == "v0":
        meant.append("sticky actions of 0.25")
    if kind == "deterministic":
        meant.append("every 4th frame alone instead of the maximum of two (3rd in SpaceInvaders)")
    if not kind:
        meant.append("a frame skip drawn from 2 to 4 at each step")
    if not meant:
        return None
    return (
        f"{game_id} elsewhere means {' and '.join(meant)}; here the game is played as "
        "NoFrameskip-v4: 4 frames a step, the maximum of the last two, no sticky actions "
        "unless environment.sticky_actions says so"
    )
