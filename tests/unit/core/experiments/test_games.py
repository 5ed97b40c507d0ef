"""Spellings of games, checked against what ale-py itself registers."""

import subprocess
import sys

import pytest

from retro_ml.core.experiments.games import (
    TWO_PLAYER_ONLY,
    GameNotFound,
    GameSpec,
    available_roms,
    find_game,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("game_id", "rom"),
    [
        ("BreakoutNoFrameskip-v4", "breakout"),
        ("Breakout-v4", "breakout"),
        ("breakout", "breakout"),
        ("  BREAKOUT ", "breakout"),
        ("ms_pacman", "ms_pacman"),
        ("MsPacman", "ms_pacman"),
        ("ms-pacman", "ms_pacman"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("pacman", "pacman"),
        ("Space Invaders", "space_invaders"),
        ("UpNDown", "up_n_down"),
        ("TicTacToe3DNoFrameskip-v4", "tic_tac_toe_3d"),
        ("JamesbondNoFrameskip-v4", "jamesbond"),
        ("E.T.", "et"),
        ("Q*bert", "qbert"),
        ("H.E.R.O.", "hero"),
        ("Montezuma's Revenge", "montezuma_revenge"),
        ("Montezuma\u2019s Revenge", "montezuma_revenge"),
        ("Yars' Revenge", "yars_revenge"),
        ("Yar's Revenge", "yars_revenge"),
        ("Up'n Down", "up_n_down"),
        ("Kung-Fu Master", "kung_fu_master"),
        ("Pitfall!", "pitfall"),
        ("Wizard of Wor", "wizard_of_wor"),
        ("Atlantis2", "atlantis2"),
        ("KingKong", "king_kong"),
    ],
)
def test_spellings_without_sticky_actions(game_id: str, rom: str) -> None:
    game = find_game(game_id)

    assert (game.rom, game.protocol, game.sticky_actions) == (rom, "noframeskip-v4", 0.0)


def test_a_game_is_looked_up_once() -> None:
    """Schedulers ask for it of each waiting trial at each event."""
    assert find_game("Ms. Pac-Man") is find_game("Ms. Pac-Man")


@pytest.mark.parametrize("game_id", ["ALE/Breakout-v5", "ale/breakout-v5", "Breakout-v5"])
def test_v5_has_sticky_actions(game_id: str) -> None:
    assert find_game(game_id) == GameSpec(rom="breakout", protocol="v5", sticky_actions=0.25)


@pytest.mark.parametrize(
    ("game_id", "words"),
    [
        ("BreakoutNoFrameskip-v4", None),
        ("breakout", None),
        ("Breakout-v4", ["a frame skip drawn from 2 to 4"]),
        ("Breakout-v0", ["sticky actions of 0.25", "a frame skip drawn from 2 to 4"]),
        ("BreakoutNoFrameskip-v0", ["sticky actions of 0.25"]),
        ("BreakoutDeterministic-v4", ["every 4th frame alone"]),
        ("BreakoutDeterministic-v0", ["sticky actions of 0.25", "every 4th frame alone"]),
    ],
)
def test_the_note_says_what_a_spelling_meant(game_id: str, words: list[str] | None) -> None:
    note = find_game(game_id).note

    if words is None:
        assert note is None
    else:
        assert note is not None
        assert note.startswith(game_id)
        assert all(word in note for word in words)
        assert ("drawn from" in note) == any("drawn from" in word for word in words)


def test_every_id_of_ale_py_is_understood() -> None:
    import ale_py  # registers its games with gymnasium
    import gymnasium

    assert ale_py.__version__
    registered = {
        game_id: spec.kwargs["game"]
        for game_id, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ale_py")
    }

    assert len(registered) > 300
    assert {find_game(game_id).rom for game_id in registered} == set(available_roms())
    for game_id, rom in registered.items():
        game = find_game(game_id)
        assert game.rom == rom
        assert game.sticky_actions == (0.25 if game_id.startswith("ALE/") else 0.0)


def test_every_rom_is_found_by_its_own_name() -> None:
    import ale_py.roms

    single_player = set(ale_py.roms.get_all_rom_ids()) - TWO_PLAYER_ONLY
    assert set(available_roms()) == single_player
    assert all(find_game(rom).rom == rom for rom in single_player)


@pytest.mark.parametrize(
    ("game_id", "words"),
    [
        ("Brekout", "did you mean breakout?"),
        ("ALE/SpaceInvader-v5", "did you mean space_invaders?"),
        ("zzzzzzz", "no such game"),
        ("", "a game's name"),
        ("...", "no such game"),
        ("a\nb", "a game's name"),
        ("Breakout-ram-v4", "leave out -ram"),
        ("Breakout-ramNoFrameskip-v4", "leave out -ram"),
        ("ALE/Breakout-ram-v5", "leave out -ram"),
        ("ALE/Breakout-v4", "write ALE/Breakout-v5"),
        ("Breakout-v3", "write BreakoutNoFrameskip-v4 or ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v5", "write BreakoutNoFrameskip-v4 or ALE/Breakout-v5"),
        *((rom, "no single-player mode") for rom in sorted(TWO_PLAYER_ONLY)),
        ("MazeCraze-v5", "no single-player mode"),
    ],
)
def test_refusals_say_why(game_id: str, words: str) -> None:
    with pytest.raises(GameNotFound, match=r"^[^\n]*$") as refusal:
        find_game(game_id)

    assert words in str(refusal.value)


def test_finding_a_game_does_not_import_ale_py() -> None:
    program = (
        "import sys; from retro_ml.core.experiments.games import find_game; find_game('pong'); "
        "assert 'ale_py' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
