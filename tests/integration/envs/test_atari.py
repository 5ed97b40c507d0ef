"""Games: starts, lives, time limits, scores and frames, each against what is known by hand."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retro_ml.envs.atari import AtariGames, FinishedGame, Step

pytestmark = pytest.mark.integration

BuildGames = Callable[..., AtariGames]
BREAKOUT_LIVES = 5
CHI_SQUARE_29 = 66.0  # exceeded once in 10,000 by chance; seeds are fixed, so always or never


def idle(games: AtariGames) -> Step:
    return games.step(np.zeros(games.num_envs, np.int64))


def at_random(games: AtariGames, rng: np.random.Generator) -> Step:
    return games.step(rng.integers(0, int(games.single_action_space.n), games.num_envs))


def play_until_finished(
    games: AtariGames, rng: np.random.Generator | None = None
) -> tuple[list[Step], FinishedGame]:
    steps = []
    for _ in range(3000):
        steps.append(idle(games) if rng is None else at_random(games, rng))
        if steps[-1].finished:
            return steps, steps[-1].finished[0][1]
    raise AssertionError("no game ended within 3,000 agent steps")


def start_frames(games: AtariGames, starts: int) -> NDArray[np.int64]:
    """Frames played before the first observation, of that many games of two agent steps each."""
    games.reset()
    frames: list[int] = []
    while len(frames) < starts:
        frames.extend(game.frames - 8 for _, game in idle(games).finished)
    return np.array(frames)


@pytest.mark.parametrize(
    ("rom", "auto_fire", "one_frame"),
    [
        # ale-py draws 0 to 30 and FIRE is the first frame: one frame for a draw of 0 and of 1.
        ("breakout", True, 2 / 31),
        ("ms_pacman", True, 1 / 30),  # no FIRE: a draw of 0 is drawn again
    ],
)
def test_games_start_after_1_to_30_frames(
    build_games: BuildGames, rom: str, auto_fire: bool, one_frame: float
) -> None:
    games = build_games(rom, num_games=8, noop_max=30, max_frames=8, auto_fire=auto_fire, seed=5)
    drawn = start_frames(games, 200)
    assert set(np.unique(drawn)) == set(range(1, 31))
    expected = np.full(30, (1 - one_frame) / 29) * len(drawn)
    expected[0] = one_frame * len(drawn)
    counts = np.bincount(drawn, minlength=31)[1:]
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_29


def test_a_start_of_one_frame_can_be_asked_for(build_games: BuildGames) -> None:
    games = build_games("ms_pacman", num_games=4, noop_max=1, max_frames=8)
    assert set(start_frames(games, 8)) == {1}


def test_without_no_ops_fire_is_still_pressed(build_games: BuildGames) -> None:
    games = build_games("breakout", num_games=2, auto_fire=True, max_frames=8)
    assert set(start_frames(games, 4)) == {1}


def test_without_no_ops_and_fire_a_game_starts_at_once(build_games: BuildGames) -> None:
    games = build_games("ms_pacman", num_games=2, max_frames=8)
    assert set(start_frames(games, 10)) == {0}
    assert games.frames_played == 5 * 8 * 2


def test_an_idle_agent_loses_its_five_lives_in_breakout(build_games: BuildGames) -> None:
    games = build_games(auto_fire=True)
    games.reset()
    steps, game = play_until_finished(games)
    assert sum(int(step.life_lost[0]) for step in steps) == BREAKOUT_LIVES - 1
    assert [bool(step.terminated[0]) for step in steps] == [False] * (len(steps) - 1) + [True]
    assert not any(step.truncated[0] or step.final_frames for step in steps)
    assert game.agent_steps == len(steps)


def test_without_fire_an_idle_agent_stalls_in_breakout(build_games: BuildGames) -> None:
    games = build_games(auto_fire=False)
    games.reset()
    assert not any(idle(games).life_lost[0] for _ in range(600))


def test_only_the_first_action_after_a_lost_life_is_fire(build_games: BuildGames) -> None:
    """Twins of one seed: one chooses FIRE itself at that moment, the other LEFT."""
    twins = [build_games(auto_fire=True, seed=4) for _ in range(2)]
    for games in twins:
        games.reset()
    fire, left = (twins[0].action_meanings.index(name) for name in ("FIRE", "LEFT"))
    life_lost = False
    while not life_lost:
        life_lost, also = (bool(idle(games).life_lost[0]) for games in twins)
        assert life_lost == also
    first, second = twins[0].step(np.array([fire])), twins[1].step(np.array([left]))
    np.testing.assert_array_equal(first.frames, second.frames)
    differ = False
    for _ in range(3):  # from here on the agent's own actions count again
        first, second = twins[0].step(np.array([fire])), twins[1].step(np.array([left]))
        differ |= not np.array_equal(first.frames, second.frames)
    assert differ


def test_sticky_actions_do_not_keep_a_game_from_its_fire(build_games: BuildGames) -> None:
    """Where the ball is out, an idle agent soon loses a life; ale-py's one frame of FIRE is lost to
    a quarter of the games. The second games are begun by a time limit and not by a reset."""
    games = build_games(num_games=20, auto_fire=True, sticky_actions=0.25, max_frames=480)
    games.reset()
    for _ in range(2):
        steps = [idle(games) for _ in range(120)]
        assert steps[-1].truncated.all()
        assert np.any([step.life_lost for step in steps], axis=0).all()


def test_games_without_fire_are_left_alone_after_a_lost_life(build_games: BuildGames) -> None:
    games = build_games("ms_pacman", auto_fire=True)
    assert "FIRE" not in games.action_meanings
    games.reset()
    steps, _ = play_until_finished(games)
    assert sum(int(step.life_lost[0]) for step in steps) == 2  # three lives


def test_time_limit_truncates_and_hands_on_the_last_frame(build_games: BuildGames) -> None:
    """12 frames are three agent steps. The last one's frame is no other game's (what it is exactly,
    the comparison with Gymnasium shows)."""
    cut, endless = build_games("ms_pacman", num_games=2, max_frames=12), build_games("ms_pacman")
    first = cut.reset()
    endless.reset()
    for number in range(1, 7):
        step, twin = idle(cut), idle(endless) if number <= 3 else None
        last = number % 3 == 0
        assert step.truncated.tolist() == [last] * 2
        assert step.terminated.tolist() == [False] * 2
        assert step.started.tolist() == [last] * 2
        assert sorted(step.final_frames) == ([0, 1] if last else [])
        if twin is None:
            continue
        if last:
            assert (step.final_frames[1] != twin.frames[0]).mean() < 0.02  # blinking dots
            assert (step.final_frames[1] != first[1]).any()
            np.testing.assert_array_equal(step.frames, first)
            assert step.finished == [(0, FinishedGame(0.0, 3, 12)), (1, FinishedGame(0.0, 3, 12))]
        else:
            np.testing.assert_array_equal(step.frames[1], twin.frames[0])


def test_time_limit_need_not_be_a_multiple_of_four_frames(build_games: BuildGames) -> None:
    games = build_games("ms_pacman", max_frames=10)
    games.reset()
    assert [bool(idle(games).truncated[0]) for _ in range(6)] == [False, False, True] * 2
    assert games.frames_played == 20


def test_score_is_unclipped_and_of_the_whole_game(build_games: BuildGames) -> None:
    """Ms. Pac-Man: 10 a dot; three lives make one game."""
    games = build_games("ms_pacman")
    games.reset()
    rng = np.random.default_rng(1)
    for _ in range(2):  # the second game's score does not begin with the first one's
        steps, game = play_until_finished(games, rng)
        rewards = [float(step.rewards[0]) for step in steps]
        assert max(rewards) >= 10
        assert sum(int(step.life_lost[0]) for step in steps) == 2
        assert game.score == sum(rewards)
        assert game.agent_steps == len(steps)
        # The last step ends with the game, after 1 to 4 of its frames.
        assert 4 * (len(steps) - 1) < game.frames <= 4 * len(steps)


def test_frames_played_are_those_of_all_games(build_games: BuildGames) -> None:
    """Where the time limit has just ended all games, only the starts of the next are left over."""
    games = build_games(num_games=4, noop_max=30, auto_fire=True, max_frames=40)
    games.reset()
    finished = 0
    for _ in range(20):
        step = idle(games)
        finished += sum(game.frames for _, game in step.finished)
    assert step.started.all()
    assert 4 <= games.frames_played - finished <= 4 * 30


def play_out(games: AtariGames, steps: int = 120) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(9)
    meanings = int(games.single_action_space.n)
    frames = [games.reset()]
    frames.extend(
        games.step(np.full(games.num_envs, rng.integers(meanings))).frames for _ in range(steps)
    )
    return frames


def test_a_game_is_a_function_of_its_seed_and_its_actions(build_games: BuildGames) -> None:
    """All games get the same actions: what differs are seeds (sticky actions, no-ops)."""
    random = {"sticky_actions": 0.25, "noop_max": 30}
    both = np.stack(play_out(build_games(num_games=2, seed=3, **random)))
    again = np.stack(play_out(build_games(num_games=2, seed=3, **random)))
    second = np.stack(play_out(build_games(num_games=1, seed=3, first_game=1, **random)))
    other = np.stack(play_out(build_games(num_games=2, seed=4, **random)))
    np.testing.assert_array_equal(both, again)
    np.testing.assert_array_equal(both[:, 1:], second)
    assert not np.array_equal(both[:, 0], both[:, 1])
    assert not np.array_equal(both[:, 0], other[:, 0])


def test_a_second_reset_gives_other_games(build_games: BuildGames) -> None:
    games = build_games(sticky_actions=0.25, noop_max=30)
    assert not np.array_equal(np.stack(play_out(games)), np.stack(play_out(games)))


def test_derived_seeds_are_in_ale_pys_range(
    build_games: BuildGames, monkeypatch: pytest.MonkeyPatch
) -> None:
    games = build_games(num_games=2, seed=2**31 - 1, first_game=10_000)
    seen: list[int] = []
    reset = games._ale.reset

    def spy(**how: NDArray[np.int64]) -> object:
        seen.extend(how["seed"].tolist())
        return reset(**how)

    monkeypatch.setattr(games._ale, "reset", spy)
    for _ in range(3):
        games.reset()
    assert len(set(seen)) == 6
    assert min(seen) >= 0
    assert max(seen) < 2**31


def test_what_a_step_gave_is_the_callers_to_keep(build_games: BuildGames) -> None:
    games = build_games("ms_pacman", num_games=2, max_frames=40)
    games.reset()
    rng = np.random.default_rng(2)
    kept = []
    for _ in range(30):
        step = at_random(games, rng)
        arrays = [step.frames, step.rewards, step.terminated, step.truncated, step.life_lost]
        arrays += list(step.final_frames.values())
        kept.append((arrays, [array.copy() for array in arrays]))
    for arrays, copies in kept:
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_all_18_actions_on_demand(build_games: BuildGames) -> None:
    assert len(build_games("pong").action_meanings) == 6
    games = build_games("pong", full_action_space=True)
    assert len(games.action_meanings) == 18
    games.reset()
    games.step(np.array([17]))


def test_auto_fire_and_no_ops_together_end_at_the_limit(build_games: BuildGames) -> None:
    """A game lasts max_frames after its start, however long that was."""
    games = build_games(num_games=3, noop_max=30, auto_fire=True, max_frames=20)
    games.reset()
    lengths = [game.agent_steps for _ in range(25) for _, game in idle(games).finished]
    assert lengths == list(itertools.repeat(5, 15))
