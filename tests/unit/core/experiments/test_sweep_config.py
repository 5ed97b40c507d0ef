"""Sweeps: which trials there are, what they are called, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retro_ml.core.experiments.distributions import draw_value, parse_distribution
from retro_ml.core.experiments.layers import load_config_file
from retro_ml.core.experiments.suites import SUITES, suite_path
from retro_ml.core.experiments.sweep_config import SweepConfig, sweep_faults
from retro_ml.evaluation.human_scores import SCORES

pytestmark = pytest.mark.unit

LEARNING_RATE = {"ppo.learning_rate": {"log_uniform": [1e-5, 1e-3]}}


def names(**fields: Any) -> list[str]:
    return [trial.experiment_id for trial in SweepConfig(**fields).trials]


def faults(**fields: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        SweepConfig(**fields)
    return sweep_faults(caught.value)


def test_a_grid_is_every_combination_in_the_order_of_its_fields() -> None:
    grid = {"game_id": ["pong", "ALE/Breakout-v5"], "algorithm": ["ppo", "DQN"], "seed": [1, 2]}
    assert names(grid=grid) == [
        "pong-ppo-s1",
        "pong-ppo-s2",
        "pong-dqn-s1",
        "pong-dqn-s2",
        "breakout-v5-ppo-s1",
        "breakout-v5-ppo-s2",
        "breakout-v5-dqn-s1",
        "breakout-v5-dqn-s2",
    ]


def test_trials_are_experiments_in_the_sweeps_folder(tmp_path: Path) -> None:
    base = {"game_id": "pong", "total_timesteps": 20_000, "ppo": {"epochs": 2}}
    sweep = SweepConfig(
        name="s", output_dir=str(tmp_path), base=base, grid={"ppo.clip": [0.1, 0.3]}
    )
    configs = [trial.config for trial in sweep.trials]
    assert [config.experiment_id for config in configs] == [
        "pong-ppo-s0-clip-0.1",
        "pong-ppo-s0-clip-0.3",
    ]
    assert [(c.ppo.clip, c.ppo.epochs, c.total_timesteps) for c in configs] == [
        (0.1, 2, 20_000),
        (0.3, 2, 20_000),
    ]
    assert {config.experiment_dir.parent for config in configs} == {tmp_path / "s"}


def test_draws_are_seeded_and_a_longer_sweep_begins_with_those_of_a_shorter() -> None:
    def rates(**fields: Any) -> list[float]:
        sweep = SweepConfig(base={"game_id": "pong"}, distributions=LEARNING_RATE, **fields)
        return [trial.config.ppo.learning_rate for trial in sweep.trials]

    five = rates(samples=5)
    assert rates(samples=5) == five
    assert rates(samples=8)[:5] == five
    assert rates(samples=5, seed=1) != five
    assert len(set(five)) == 5
    assert all(1e-5 <= rate <= 1e-3 for rate in five)


def test_the_same_draws_meet_every_combination_of_the_grid() -> None:
    sweep = SweepConfig(grid={"game_id": ["pong", "qbert"]}, distributions=LEARNING_RATE, samples=2)
    rates = [trial.config.ppo.learning_rate for trial in sweep.trials]
    assert [trial.experiment_id for trial in sweep.trials] == [
        "pong-ppo-s0-t0000",
        "qbert-ppo-s0-t0000",
        "pong-ppo-s0-t0001",
        "qbert-ppo-s0-t0001",
    ]
    assert rates[0] == rates[1] != rates[2] == rates[3]


def test_what_means_nothing_to_an_algorithm_does_not_multiply_its_trials() -> None:
    grid = {"algorithm": ["PPO", "DQN"], "ppo.clip": [0.1, 0.2]}
    assert names(base={"game_id": "pong"}, grid=grid) == [
        "pong-ppo-s0-clip-0.1",
        "pong-ppo-s0-clip-0.2",
        "pong-dqn-s0",
    ]
    grid = {"algorithm": ["PPO", "DQN"]}
    assert (
        len(names(base={"game_id": "pong"}, grid=grid, distributions=LEARNING_RATE, samples=3)) == 4
    )


def test_a_sweep_reads_back_from_its_json() -> None:
    sweep = SweepConfig(base={"game_id": "pong"}, distributions=LEARNING_RATE, samples=3)
    again = SweepConfig.model_validate_json(sweep.model_dump_json())
    assert [trial.values for trial in again.trials] == [trial.values for trial in sweep.trials]


def test_the_default_name_follows_from_what_the_sweep_does() -> None:
    def name(**fields: Any) -> str:
        return SweepConfig(base={"game_id": "pong"}, **fields).sweep_id

    assert name() == name(output_dir="elsewhere", max_concurrent=2)
    assert name() != name(grid={"seed": [1, 2]})


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uniform", -1, 1), ("log_uniform", "1e-5", 1), ("int_uniform", 2, 4)]
)
def test_draws_stay_within_their_bounds(kind: str, low: Any, high: Any) -> None:
    distribution = parse_distribution({kind: [low, high]})
    draws = [draw_value(distribution, seed=0, number=i, path="x") for i in range(200)]
    assert float(low) <= min(draws) < max(draws) <= high
    assert all(isinstance(draw, int) for draw in draws) == (kind == "int_uniform")


def test_a_log_uniform_draw_is_uniform_in_the_exponent() -> None:
    distribution = parse_distribution({"log_uniform": [1e-4, 1e-2]})
    draws = [draw_value(distribution, seed=0, number=i, path="x") for i in range(1_000)]
    assert sum(draw < 1e-3 for draw in draws) == pytest.approx(500, abs=60)


def test_every_invalid_combination_is_found_and_each_fault_told_once() -> None:
    grid = {"game_id": ["brakout", "pong"], "ppo.minibatch_size": [256, 100], "seed": [1, -1, 3]}
    lines = faults(grid=grid)
    assert len(lines) == 3
    starts = (
        "grid.game_id: brakout -> no such game; did you mean breakout?",
        "grid.ppo.minibatch_size: 100 -> a number that divides",
        "grid.seed: -1 -> a whole number from 0",
    )
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({}, "base.game_id: missing -> the game"),
        (
            {"base": {"game_id": "pong", "ppo": {"clp": 1}}, "grid": {"seed": [1, 2]}},
            "base.ppo.clp: unknown field -> did you mean ppo.clip?",
        ),
        ({"base": 3}, "base: 3 -> fields of an experiment"),
        ({"base": {"game_id": "pong", "output_dir": "x"}}, "base.output_dir: x -> none"),
        ({"grid": [1]}, "grid: [1] -> fields with lists of their values"),
        ({"grid": {"game_id": "pong"}}, "grid.game_id: pong -> a list of values"),
        ({"grid": {"game_id": []}}, "grid.game_id: [] -> a list of values"),
        ({"grid": {"experiment_id": ["a"]}}, "grid.experiment_id: ['a'] -> none"),
        ({"grid": {"ppo": [{"clip": 0.1}]}}, "grid.ppo: [{'clip': 0.1}] -> plain values"),
        ({"samples": 3}, "samples: 3 -> 1, because there are no distributions"),
        ({"search": "optuna"}, "search: optuna -> random, because"),
        ({"scheduler": "pbt"}, "scheduler: pbt -> none or asha; PBT needs distributions"),
        ({"scheduler": "hyperband"}, "scheduler: hyperband -> one of none, asha, pbt"),
        ({"name": "../x"}, "name: ../x -> a plain name"),
        ({"output_dir": " "}, "output_dir:   -> a folder's path"),
        ({"max_concurrent": 0}, "max_concurrent: 0 -> a whole number from 1"),
        ({"max_hours": 0}, "max_hours: 0 -> a number above 0"),
        ({"asha": {"reduction_factor": 1}}, "asha.reduction_factor: 1 -> a number above 1"),
        ({"grids": {}}, "grids: unknown field -> did you mean grid?"),
        ({"distributions": {"ppo.clip": {"unform": [0, 1]}}}, "distributions.ppo.clip: {'unform'"),
        (
            {"distributions": {"ppo.clip": {"uniform": [1, 0]}}},
            "distributions.ppo.clip: {'uniform'",
        ),
        ({"distributions": {"ppo.clip": {"uniform": [0]}}}, "distributions.ppo.clip: {'uniform'"),
        ({"distributions": {"ppo.clip": {"choice": []}}}, "distributions.ppo.clip: {'choice'"),
        ({"distributions": {"seed": {"int_uniform": [0, 1.5]}}}, "distributions.seed: {'int_unif"),
        ({"distributions": {"ppo.clip": {"log_uniform": [0, 1]}}}, "distributions.ppo.clip: {'log"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(fields: dict[str, Any], start: str) -> None:
    lines = faults(**fields)
    assert len(lines) == 1
    assert lines[0].startswith(start)
    assert " -> " in lines[0]


def test_pbt_takes_only_what_can_change_in_the_middle_of_a_run() -> None:
    distributions = {"ppo.rollout_length": {"choice": [64, 128]}}
    fields = {"base": {"game_id": "pong"}, "samples": 4, "scheduler": "pbt"}
    (line,) = faults(**fields, distributions=distributions)
    assert "PBT cannot change ppo.rollout_length in the middle of a run" in line
    assert len(names(**fields, distributions=LEARNING_RATE)) == 4


def test_a_field_is_swept_in_one_way_only() -> None:
    fields = {"base": {"game_id": "pong"}, "grid": {"ppo.learning_rate": [1e-4]}}
    (line,) = faults(**fields, distributions=LEARNING_RATE)
    assert line.endswith("either here or in grid, not both")


def test_a_search_is_refused_where_its_bounds_do_not_fit() -> None:
    distributions = {"ppo.clip": {"uniform": [0.1, 2]}}
    (line,) = faults(base={"game_id": "pong"}, distributions=distributions, search="optuna")
    assert line.startswith("distributions.ppo.clip: 2.0 -> a number above 0, up to 1")


def test_too_many_trials_are_refused_before_they_are_made() -> None:
    grid = {"game_id": ["pong"], "seed": list(range(1_000)), "ppo.epochs": list(range(1, 1_000))}
    assert faults(grid=grid) == ["grid: 999,000 trials -> 100,000 at most"]


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_a_sweep_that_names_its_source(suite: str) -> None:
    path = suite_path(suite)
    sweep = SweepConfig.model_validate(load_config_file(str(path)))
    games = {trial.config.game.rom for trial in sweep.trials}
    assert "arXiv:" in path.read_text()
    assert len(games) == int(suite.rpartition("-")[2])
    assert games <= set(SCORES)
    assert {trial.config.environment.sticky_actions for trial in sweep.trials} == {0.25}
    assert {trial.config.total_timesteps for trial in sweep.trials} == {50_000_000}


def test_atari_5_is_the_five_games_of_its_paper() -> None:
    sweep = SweepConfig.model_validate(load_config_file(str(suite_path("atari-5"))))
    assert {trial.config.game.rom for trial in sweep.trials} == {
        "battle_zone",
        "double_dunk",
        "name_this_game",
        "phoenix",
        "qbert",
    }
