"""ASHA's rungs after a restart, and what a population exchanges; without Ray running."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from retro_ml.cluster.population import Population
from retro_ml.cluster.schedulers import AshaByGame, PbtByPopulation, build_scheduler
from retro_ml.cluster.trial_actor import EXPERIMENT, trial_config
from retro_ml.core.experiments.distributions import parse_distribution
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.rllib.names import AGENT_STEPS, SCORE

pytestmark = pytest.mark.unit

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Past:
    """A source that knows what earlier calls left, and has no trials."""

    def __init__(self, scores: dict[str, list[tuple[int, float]]], ended: list[str]) -> None:
        self._scores = scores
        self.ended_before = ended

    def past_scores(self, experiment_id: str) -> list[tuple[int, float]]:
        """Those given."""
        return self._scores.get(experiment_id, [])

    def next_trial(self) -> None:
        """None."""

    def must_end(self, experiment_id: str) -> None:
        """Nothing must."""

    def trial_ended(self, end: Any) -> None:
        """Nobody asks."""


def trial(name: str) -> Any:
    return SimpleNamespace(trial_id=name)


def report(scheduler: Any, name: str, agent_steps: int, score: float | None) -> str:
    result = {AGENT_STEPS: agent_steps, SCORE: score}
    return str(scheduler.on_trial_result(None, trial(name), result))


def asha(games: list[str], past: Past | None = None, **settings: Any) -> AshaByGame:
    sweep = SweepConfig(
        base={"total_timesteps": 400},
        grid={"game_id": games, "seed": [1, 2, 3, 4]},
        scheduler="asha",
        asha={"grace_agent_steps": 100, "reduction_factor": 2} | settings,
    )
    scheduler = AshaByGame(sweep, past or Past({}, []))
    for planned in sweep.trials:
        if past is None or planned.experiment_id not in past.ended_before:
            scheduler.on_trial_add(None, trial(planned.experiment_id))
    return scheduler


def test_the_worse_half_is_stopped_at_each_rung() -> None:
    scheduler = asha(["pong"])
    assert report(scheduler, "pong-ppo-s1", 90, 0.0) == CONTINUE, "before the first rung"
    assert report(scheduler, "pong-ppo-s1", 100, 5.0) == CONTINUE, "the first to come"
    assert report(scheduler, "pong-ppo-s2", 100, 4.0) == STOP
    assert report(scheduler, "pong-ppo-s3", 110, 6.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s3", 200, 1.0) == CONTINUE, "the first at the second rung"
    assert report(scheduler, "pong-ppo-s1", 200, 0.9) == STOP


def test_who_passed_a_rung_is_not_compared_at_those_below_that_it_jumped_over() -> None:
    """Iterations may be longer than the rungs are apart."""
    scheduler = asha(["pong"])
    assert report(scheduler, "pong-ppo-s1", 250, 5.0) == CONTINUE, "the first at the second rung"
    assert report(scheduler, "pong-ppo-s1", 300, 5.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s2", 250, 6.0) == CONTINUE, "it passes the second rung"
    assert report(scheduler, "pong-ppo-s2", 300, 4.0) == CONTINUE, "and waits for the next"


def test_games_are_not_compared_with_one_another() -> None:
    scheduler = asha(["pong", "qbert"])
    assert report(scheduler, "qbert-ppo-s1", 100, 4_000.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s1", 100, -21.0) == CONTINUE


def test_a_trial_without_a_score_goes_on() -> None:
    scheduler = asha(["pong"])
    assert report(scheduler, "pong-ppo-s1", 100, 5.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s2", 100, None) == CONTINUE
    assert report(scheduler, "pong-ppo-s2", 120, 4.0) == STOP


def test_the_rungs_are_rebuilt_from_what_the_trials_left() -> None:
    past = Past(
        {
            "pong-ppo-s1": [(100, 5.0), (200, 7.0), (400, 9.0)],
            "pong-ppo-s2": [(100, 4.0)],
            "pong-ppo-s3": [(100, 6.0)],  # it goes on from here
        },
        ended=["pong-ppo-s1", "pong-ppo-s2"],
    )
    scheduler = asha(["pong"], past)
    assert report(scheduler, "pong-ppo-s4", 100, 4.9) == STOP, "the median there is 5"
    assert report(scheduler, "pong-ppo-s3", 200, 6.9) == STOP, "7 is there already"


def test_the_first_rung_is_a_sixteenth_by_default() -> None:
    scheduler = asha(["pong"], grace_agent_steps=None)
    assert report(scheduler, "pong-ppo-s1", 24, 5.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s2", 24, 4.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s1", 25, 5.0) == CONTINUE
    assert report(scheduler, "pong-ppo-s2", 25, 4.0) == STOP


def test_populations_are_of_one_game_and_algorithm() -> None:
    sweep = SweepConfig(
        base={"total_timesteps": 400},
        grid={"game_id": ["pong", "qbert"], "algorithm": ["PPO", "A2C"], "seed": [1, 2]},
        distributions={
            "ppo.gamma": {"uniform": [0.9, 0.99]},
            "a2c.gamma": {"uniform": [0.9, 0.99]},
        },
        samples=2,
        scheduler="pbt",
    )
    scheduler = PbtByPopulation(sweep, lambda event: None)
    groups = {trial.experiment_id: scheduler.group(trial.experiment_id) for trial in sweep.trials}
    assert len(groups) == 16
    assert len(set(groups.values())) == 4
    assert groups["pong-ppo-s1-t0000"] == groups["pong-ppo-s2-t0001"]


def test_a_trials_population_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = SweepConfig(
        base={"game_id": "pong", "total_timesteps": 400},
        distributions={"ppo.gamma": {"uniform": [0.9, 0.99]}},
        samples=3,
        scheduler="pbt",
    )
    scheduler = PbtByPopulation(sweep, lambda event: None)
    trials = [trial(planned.experiment_id) for planned in sweep.trials]
    own = [scheduler.of(each) for each in trials]

    def group(name: str) -> str:
        raise AssertionError(f"asked once more for {name}")

    monkeypatch.setattr(scheduler, "group", group)
    assert [scheduler.of(each) for each in trials] == own
    assert len(set(map(id, own))) == 1


def test_no_scheduler_is_first_in_first_out() -> None:
    sweep = SweepConfig(base={"game_id": "pong"})
    assert type(build_scheduler(sweep, Past({}, []), lambda event: None)) is FIFOScheduler


@pytest.fixture
def explore(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What a trial goes on with that takes over from another one."""

    def call(low: float, high: float, theirs: float) -> dict[str, Any]:
        sweep = SweepConfig(
            name="s",
            output_dir=str(tmp_path),
            base={"game_id": "pong", "total_timesteps": 400},
            grid={"seed": [1, 2]},
        )
        distribution = parse_distribution({"uniform": [low, high]})
        population = Population(
            {"ppo.gamma": distribution, "a2c.gamma": distribution},
            interval_agent_steps=100,
            quantile=0.5,
            resample_probability=0.0,
            tell=lambda event: None,
        )
        own, other = (
            SimpleNamespace(
                config=trial_config(
                    planned.config.model_copy(
                        update={"ppo": planned.config.ppo.model_copy(update={"gamma": gamma})}
                    ),
                    num_cpus=1,
                    num_gpus=0,
                    restore_from="/gone/step-100",
                )
            )
            for planned, gamma in zip(sweep.trials, (0.1, theirs), strict=True)
        )
        config, _ = population._get_new_config(own, other)
        return dict(config)

    return call


def test_a_trial_takes_over_changed_values_and_remains_itself(
    explore: Callable[..., dict[str, Any]],
) -> None:
    config = explore(0.1, 0.9, theirs=0.5)
    experiment = config[EXPERIMENT]
    assert experiment["ppo"]["gamma"] in (pytest.approx(0.4), pytest.approx(0.6))
    assert (experiment["seed"], experiment["experiment_id"]) == (1, "pong-ppo-s1")
    assert config["checkpoints_dir"].endswith("s/pong-ppo-s1/checkpoints")
    assert config["restore_from"] is None
    assert experiment["a2c"]["gamma"] == 0.99, "another algorithm's"


def test_nothing_leaves_the_bounds_it_was_drawn_from(
    explore: Callable[..., dict[str, Any]],
) -> None:
    found = {explore(0.48, 0.55, theirs=0.5)[EXPERIMENT]["ppo"]["gamma"] for _ in range(20)}
    assert found <= {0.48, 0.55}
