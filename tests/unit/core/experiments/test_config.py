"""ExperimentConfig: defaults, what is filled in, round trip, and every fault at once."""

import json
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.games import available_roms
from retro_ml.core.experiments.run_type import RunType
from retro_ml.core.experiments.sections import A2CSettings, DQNSettings, PPOSettings

pytestmark = pytest.mark.unit


def build(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(**({"game_id": "BreakoutNoFrameskip-v4"} | fields))


def faults(**fields: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        build(**fields)
    return config_faults(caught.value)


# Defaults and what is filled in.


def test_only_the_game_must_be_given() -> None:
    config = ExperimentConfig(game_id="breakout")

    assert config.algorithm == "PPO"
    assert config.run_type is RunType.QUICK
    assert config.total_timesteps == 10_000
    assert (config.seed, config.output_dir, config.use_gpu) == (0, "runs", True)
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({})
    assert [line.split(" ->")[0] for line in config_faults(caught.value)] == ["game_id: missing"]


def test_the_fields_stand_in_the_documented_order() -> None:
    assert list(json.loads(build().model_dump_json())) == [
        "experiment_id",
        "game_id",
        "algorithm",
        "run_type",
        "total_timesteps",
        "seed",
        "output_dir",
        "use_gpu",
        "created_at",
        "preset",
        "init_from",
        "init_sha256",
        "environment",
        "resources",
        "checkpointing",
        "evaluation",
        "video_every",
        "ppo",
        "a2c",
        "dqn",
    ]


def test_the_experiment_id_is_readable_and_unique() -> None:
    fields = {
        "game_id": "ALE/SpaceInvaders-v5",
        "algorithm": "dqn",
        "seed": 42,
        "created_at": datetime(2026, 11, 22, 12, 15, tzinfo=timezone(timedelta(hours=2))),
    }
    ids = {build(**fields).experiment_id for _ in range(20)}

    assert len(ids) > 1
    pattern = r"space-invaders-dqn-s42-20261122-101500-[a-z0-9]{4}"
    assert all(re.fullmatch(pattern, name) for name in ids)


@pytest.mark.parametrize(
    ("fields", "run_type", "total"),
    [
        ({}, "QUICK", 10_000),
        ({"run_type": "short"}, "SHORT", 500_000),
        ({"run_type": RunType.MEDIUM}, "MEDIUM", 2_000_000),
        ({"run_type": "LONG", "total_timesteps": None}, "LONG", 10_000_000),
        ({"total_timesteps": 77}, "CUSTOM", 77),
        ({"total_timesteps": "1e6"}, "CUSTOM", 1_000_000),
        ({"total_timesteps": "2_000"}, "CUSTOM", 2_000),
        ({"run_type": "CUSTOM", "total_timesteps": 10**10}, "CUSTOM", 10**10),
        ({"run_type": "QUICK", "total_timesteps": 10_000}, "QUICK", 10_000),
    ],
)
def test_run_type_and_number_of_steps(fields: dict[str, Any], run_type: str, total: int) -> None:
    config = build(**fields)

    assert (config.run_type.value, config.total_timesteps) == (run_type, total)


def test_the_game_id_decides_the_protocol_and_the_section_overrides_it() -> None:
    old, new = build().environment, build(game_id="ALE/Breakout-v5").environment
    assert (old.sticky_actions, old.terminal_on_life_loss) == (0.0, True)
    assert (new.sticky_actions, new.terminal_on_life_loss) == (0.25, False)

    own = {"sticky_actions": 0.1, "terminal_on_life_loss": True}
    mixed = build(game_id="ALE/Breakout-v5", environment=own).environment
    assert (mixed.sticky_actions, mixed.terminal_on_life_loss) == (0.1, True)


@pytest.mark.parametrize(("algorithm", "games"), [("PPO", 8), ("A2C", 16), ("DQN", 4)])
@pytest.mark.parametrize("runners", [0, 1, 2, 4])
def test_the_games_are_split_over_the_runners(algorithm: str, games: int, runners: int) -> None:
    config = build(algorithm=algorithm, resources={"num_env_runners": runners})

    assert config.resources.games_per_env_runner == games // max(1, runners)
    assert config.num_games == games


def test_schedules_of_the_chosen_algorithm_are_filled_in() -> None:
    config = build(algorithm="DQN", total_timesteps=400_000)
    assert config.settings is config.dqn
    assert config.dqn.schedule_agent_steps == config.schedule_agent_steps == 400_000
    assert config.dqn.replay_size == 400_000
    assert config.dqn.warmup_agent_steps == 20_000  # 5 %
    assert config.dqn.epsilon_agent_steps == 40_000  # 10 %
    assert config.ppo.schedule_agent_steps is None

    long = build(algorithm="DQN", run_type="LONG").dqn
    assert (long.replay_size, long.warmup_agent_steps) == (1_000_000, 80_000)

    own = build(total_timesteps=300_000, ppo={"schedule_agent_steps": 10_000_000})
    assert own.schedule_agent_steps == 10_000_000


def test_extending_a_saved_run_keeps_its_schedule() -> None:
    saved = build(algorithm="DQN", total_timesteps=100_000).model_dump()

    longer = ExperimentConfig.model_validate(saved | {"total_timesteps": 1_000_000})

    assert longer.total_timesteps == 1_000_000
    assert longer.schedule_agent_steps == 100_000
    assert longer.dqn == ExperimentConfig.model_validate(saved).dqn


@pytest.mark.parametrize(
    ("fields", "agent_steps"),
    [
        ({"algorithm": "PPO"}, 8 * 128),
        ({"algorithm": "A2C"}, 1_040),  # 13 rollouts of 16 x 5
        ({"algorithm": "DQN"}, 256),  # 16 rollouts of 4 x 4
        ({"algorithm": "A2C", "a2c": {"rollout_length": 100}}, 1_600),
        ({"algorithm": "A2C", "resources": {"games_per_env_runner": 200}}, 1_000),
    ],
)
def test_the_agent_steps_of_an_iteration(fields: dict[str, Any], agent_steps: int) -> None:
    assert build(**fields).iteration_agent_steps == agent_steps


def test_the_published_settings() -> None:
    config = build()
    ppo, a2c, dqn = config.ppo, config.a2c, config.dqn

    assert (ppo.learning_rate, ppo.adam_eps, ppo.clip) == (2.5e-4, 1e-5, 0.1)
    assert (ppo.rollout_length, ppo.epochs, ppo.minibatch_size) == (128, 4, 256)
    assert (ppo.gamma, ppo.gae_lambda) == (0.99, 0.95)
    assert (ppo.entropy_coefficient, ppo.value_loss_coefficient) == (0.01, 0.5)
    assert (ppo.max_grad_norm, ppo.normalize_advantages) == (0.5, True)
    assert (a2c.learning_rate, a2c.rmsprop_alpha, a2c.rmsprop_eps) == (7e-4, 0.99, 1e-5)
    assert (a2c.rmsprop_eps_inside_root, a2c.value_loss_coefficient) == (False, 0.5)
    assert (a2c.rollout_length, a2c.gamma, a2c.gae_lambda) == (5, 0.99, 1.0)
    assert (dqn.learning_rate, dqn.batch_size, dqn.agent_steps_per_update) == (1e-4, 32, 4)
    assert (dqn.epsilon_initial, dqn.epsilon_final) == (1.0, 0.01)
    assert (dqn.target_update_agent_steps, dqn.loss, dqn.max_grad_norm) == (1_000, "huber", 10)
    assert not any([dqn.double, dqn.dueling, dqn.prioritized, dqn.n_step > 1])


@pytest.mark.parametrize("section", [PPOSettings, A2CSettings, DQNSettings])
def test_every_value_cites_its_source(section: type[BaseModel]) -> None:
    source = re.compile(r"\d{4}|Baselines|CleanRL|this project's choice|Dopamine")
    for name, field in section.model_fields.items():
        assert source.search(field.description or ""), name


# One place for paths.


def test_the_paths_are_those_of_run_paths(tmp_path: Path) -> None:
    config = build(output_dir=tmp_path, experiment_id="one")

    assert config.output_dir == str(tmp_path)
    assert config.experiment_dir == tmp_path / "one"
    assert config.metrics_path == tmp_path / "one" / "metrics.json"
    assert config.model_path == tmp_path / "one" / "model.zip"
    assert config.log_path == tmp_path / "one" / "training.log"
    assert config.config_path == tmp_path / "one" / "config.json"
    assert config.status_path == tmp_path / "one" / "status.json"
    assert config.events_path == tmp_path / "one" / "events.log"
    assert config.checkpoints_dir == tmp_path / "one" / "checkpoints"


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    assert build(output_dir="~/runs").output_dir == "/home/ada/runs"


# Frozen, exact, whole.

small_floats = st.floats(min_value=1e-12, max_value=1.0, exclude_min=True)


@given(
    game_id=st.sampled_from(available_roms()),
    algorithm=st.sampled_from(["PPO", "A2C", "DQN"]),
    total=st.integers(min_value=1, max_value=10**10),
    seed=st.integers(min_value=0, max_value=2**31 - 1),
    learning_rate=small_floats,
    output_dir=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0~"), min_size=1
    ).filter(str.strip),
    created_at=st.datetimes(
        min_value=datetime(1900, 1, 2), max_value=datetime(2900, 1, 1), timezones=st.just(UTC)
    ),
)
@settings(max_examples=50, deadline=None)
def test_json_round_trip_is_exact(
    game_id: str,
    algorithm: str,
    total: int,
    seed: int,
    learning_rate: float,
    output_dir: str,
    created_at: datetime,
) -> None:
    config = build(
        game_id=game_id,
        algorithm=algorithm,
        total_timesteps=total,
        seed=seed,
        output_dir=output_dir,
        created_at=created_at,
        **{algorithm.lower(): {"learning_rate": learning_rate}},
    )
    text = config.model_dump_json()

    again = ExperimentConfig.model_validate_json(text)

    assert again == config
    assert again.model_dump_json() == text
    assert ExperimentConfig.model_validate(config.model_dump()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_times_are_utc_with_microseconds() -> None:
    config = build(created_at="2026-11-22T12:15:00+02:00")

    assert json.loads(config.model_dump_json())["created_at"] == "2026-11-22T10:15:00.000000+00:00"
    assert build().created_at.utcoffset() == timedelta(0)


def test_a_config_cannot_be_changed() -> None:
    config = build()

    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.ppo.clip = 0.2


def test_numpys_whole_numbers_are_taken() -> None:
    config = build(seed=np.int64(7), total_timesteps=np.int32(5))

    assert type(config.seed) is int
    assert (config.seed, config.total_timesteps) == (7, 5)


# Presets.


def test_a_preset_fills_what_is_not_set() -> None:
    sb3 = build(algorithm="A2C", preset="SB3", a2c={"value_loss_coefficient": 0.3})
    assert sb3.preset == "sb3"
    assert sb3.a2c.rmsprop_eps_inside_root is True
    assert sb3.a2c.anneal_learning_rate is False
    assert sb3.a2c.value_loss_coefficient == 0.3

    given_as_model = A2CSettings(value_loss_coefficient=0.3)
    assert build(algorithm="A2C", preset="sb3", a2c=given_as_model).a2c == sb3.a2c


def test_the_dopamine_preset() -> None:
    dqn = build(algorithm="DQN", preset="dopamine", run_type="LONG").dqn

    assert (dqn.learning_rate, dqn.adam_eps, dqn.loss) == (6.25e-5, 1.5e-4, "mse")
    assert (dqn.target_update_agent_steps, dqn.warmup_agent_steps) == (8_000, 20_000)
    assert (dqn.epsilon_agent_steps, dqn.max_grad_norm) == (250_000, None)


def test_a_presets_choice_survives_the_round_trip() -> None:
    config = build(algorithm="DQN", preset="dopamine", dqn={"loss": "huber"})

    assert ExperimentConfig.model_validate_json(config.model_dump_json()) == config


# Faults.


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"game_id": "Brekout"}, "game_id: Brekout -> no such game; did you mean breakout?"),
        ({"algorithm": "TRPO"}, "algorithm: TRPO -> one of PPO, A2C, DQN"),
        ({"run_type": "fast"}, "run_type: FAST -> one of QUICK, SHORT, MEDIUM, LONG, CUSTOM"),
        (
            {"total_timesteps": 0},
            "total_timesteps: 0 -> a whole number from 1 up to 10,000,000,000",
        ),
        ({"total_timesteps": 1.5}, "total_timesteps: 1.5 -> a whole number from 1 up to"),
        ({"total_timesteps": "9" * 50}, "total_timesteps: 9999"),
        ({"total_timesteps": True}, "total_timesteps: True -> a whole number from 1 up to"),
        ({"seed": -1}, "seed: -1 -> a whole number from 0 up to 2,147,483,647"),
        ({"seed": 2**31}, "seed: 2147483648 -> a whole number from 0 up to 2,147,483,647"),
        ({"seed": "1e999999999"}, "seed: 1e999999999 -> a whole number"),
        ({"use_gpu": 1}, "use_gpu: 1 -> true or false"),
        ({"output_dir": " "}, "output_dir:   -> a folder's path, e.g. runs"),
        ({"output_dir": "a\0b"}, "output_dir: a\\x00b -> a folder's path, e.g. runs"),
        ({"created_at": "2026-11-22"}, "created_at: 2026-11-22 -> a date and time with its zone"),
        ({"created_at": 0}, "created_at: 0 -> a date and time with its zone"),
        ({"created_at": "0001-01-01T00:00:00+10:00"}, "created_at: 0001-01-01T00:00:00+10:00 ->"),
        ({"preset": "sb3"}, "preset: sb3 -> PPO has no presets; this one is for A2C"),
        ({"ppo": {"clip": float("nan")}}, "ppo.clip: nan -> a finite number above 0, up to 1"),
        ({"ppo": {"clip": True}}, "ppo.clip: True -> a number above 0, up to 1"),
        ({"ppo": 3}, "ppo: 3 -> a section with learning_rate, "),
        ({"ppo": {"minibatch_size": 100}}, "ppo.minibatch_size: 100 -> a number that divides a "),
        ({"ppo": {"minibatch_size": 2_048}}, "ppo.minibatch_size: 2048 -> a number that divides"),
        ({"ppo": {"epoch": 3}}, "ppo.epoch: unknown field -> did you mean ppo.epochs?"),
        (
            {"learning_rate": 1},
            "learning_rate: unknown field -> did you mean ppo.learning_rate, a2",
        ),
        ({"seeds": 1}, "seeds: unknown field -> did you mean seed?"),
        (
            {"environment": {"sticky_actions": 1}},
            "environment.sticky_actions: 1 -> a number from 0",
        ),
        (
            {"environment": {"noop_max": 9, "max_frames": 8}},
            "environment.noop_max: 9 -> fewer frames than environment.max_frames, 8",
        ),
        ({"resources": {"num_env_runners": 3}}, "resources.num_env_runners: 3 -> PPO's 8 games "),
        ({"resources": {"num_gpus": 1.5}}, "resources.num_gpus: 1.5 -> above 1 only whole GPUs"),
        (
            {"resources": {"num_gpus": 3, "num_learners": 2}},
            "resources.num_gpus: 3.0 -> whole GPUs for each of 2 learners",
        ),
        (
            {"resources": {"num_gpus": 1, "num_learners": 2}},
            "resources.num_gpus: 1.0 -> whole GPUs for each of 2 learners",
        ),
        (
            {"use_gpu": False, "resources": {"num_gpus": 1}},
            "resources.num_gpus: 1.0 -> 0, because use_gpu is false",
        ),
        (
            {"algorithm": "DQN", "dqn": {"agent_steps_per_update": 5}},
            "dqn.agent_steps_per_update: 5 -> a number that divides a rollout's 16 agent steps",
        ),
        (
            {"algorithm": "DQN", "dqn": {"replay_size": 31}},
            "dqn.replay_size: 31 -> at least batch_size, 32 transitions",
        ),
        (
            {"algorithm": "DQN", "dqn": {"replay_size": 40, "n_step": 11}},
            "dqn.n_step: 11 -> at most 10, of which replay_size 40 has room for each game",
        ),
        (
            {"resources": {"num_learners": 3}},
            "ppo.minibatch_size: 256 -> a number that resources.num_learners, 3, divides",
        ),
        (
            {"algorithm": "A2C", "resources": {"num_learners": 3}},
            "a2c.rollout_length: 5 -> one whose rollout, now 80 agent steps, resources.num_learn",
        ),
        (
            {"algorithm": "DQN", "resources": {"num_learners": 64}},
            "dqn.batch_size: 32 -> a number that resources.num_learners, 64, divides",
        ),
        (
            {"ppo": {"minibatch_size": 1}},
            "ppo.minibatch_size: 1 -> 2 or more for each learner, or normalize_advantages false",
        ),
        (
            {"algorithm": "DQN", "dqn": {"epsilon_initial": 0}},
            "dqn.epsilon_final: 0.01 -> at most epsilon_initial, 0.0",
        ),
        (
            {"run_type": "QUICK", "total_timesteps": 20_000},
            "total_timesteps: 20000 -> run_type QUICK means 10,000 agent steps",
        ),
        ({"run_type": "CUSTOM"}, "total_timesteps: None -> a run of type CUSTOM needs a number"),
    ],
)
def test_a_fault_names_field_value_and_what_is_allowed(fields: dict[str, Any], line: str) -> None:
    (only,) = faults(**fields)

    assert only.startswith(line)
    assert "\n" not in only
    assert only.isprintable()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "a\\b", "-a", "a.", "a b", "ä", "a\n", "a" * 101]
)
def test_an_experiment_id_that_is_no_plain_name_is_refused(name: str) -> None:
    (only,) = faults(experiment_id=name)

    assert only.startswith("experiment_id: ")


@pytest.mark.parametrize("name", ["a", "A1", "7", "my.run_2-x", "a" * 100])
def test_a_plain_name_is_kept(name: str) -> None:
    assert build(experiment_id=name).experiment_id == name


def test_all_faults_are_reported_at_once() -> None:
    lines = faults(
        experiment_id="a/b",
        game_id="Brekout",
        algorithm="DQN",
        run_type="QUICK",
        total_timesteps=5,
        seed=-1,
        environment={"sticky_actions": -1, "noop_max": -2},
        resources={"num_env_runners": 3, "num_gpus": 1.5},
        ppo={"clip": 0, "bogus": 1},
        a2c=None,
        bogus=1,
    )

    assert [line.split(":")[0] for line in lines] == [
        "experiment_id",
        "game_id",
        "total_timesteps",
        "seed",
        "environment.sticky_actions",
        "environment.noop_max",
        "resources.num_env_runners",
        "resources.num_gpus",
        "ppo.clip",
        "ppo.bogus",
        "a2c",
        "bogus",
    ]


def test_settings_that_just_fit() -> None:
    build(ppo={"minibatch_size": 1, "normalize_advantages": False})
    build(ppo={"minibatch_size": 8}, resources={"num_learners": 4})
    build(algorithm="A2C", resources={"num_learners": 80})
    build(algorithm="DQN", dqn={"replay_size": 40, "n_step": 10})


def test_the_notes_say_that_a_run_ends_with_its_warm_up() -> None:
    assert build(algorithm="DQN").notes == ()
    assert build(algorithm="PPO", dqn={"warmup_agent_steps": 90_000}).notes == ()
    config = build(game_id="Breakout-v0", algorithm="DQN", preset="dopamine", total_timesteps=9_000)
    spelling, warmup = config.notes
    assert spelling == config.game.note
    assert warmup == (
        "nothing is learned in 9,000 agent steps: the warm-up, dqn.warmup_agent_steps, takes 20,000"
    )


def test_the_settings_of_another_algorithm_need_not_fit() -> None:
    assert build(algorithm="A2C", ppo={"minibatch_size": 7}).ppo.minibatch_size == 7


# Another model to begin with.


def test_a_model_to_begin_with_is_a_whole_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = build(init_from="models/a.zip", init_sha256="0" * 64)

    assert config.init_from == str(tmp_path / "models" / "a.zip")
    assert build(init_from=tmp_path / "a.zip").init_from == str(tmp_path / "a.zip")
    assert build().init_from is None
    again = ExperimentConfig.model_validate_json(config.model_dump_json())
    assert again == config


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"init_from": " "}, "a file's path"),
        ({"init_from": "a\0b"}, "a file's path"),
        ({"init_sha256": "0" * 64}, "init_from, which is not given"),
        ({"init_from": "a.zip", "init_sha256": "0" * 63}, "64 hexadecimal digits"),
        ({"init_from": 5}, "init_from: 5 -> text"),
    ],
)
def test_what_is_no_model_to_begin_with(fields: dict[str, Any], fault: str) -> None:
    (line,) = faults(**fields)
    assert fault in line
