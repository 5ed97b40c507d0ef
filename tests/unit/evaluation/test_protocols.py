"""What a named protocol means for a model, and the seeds of its games."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import retro_ml
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.envs.atari import GAME_SEEDS
from retro_ml.evaluation.episodes import game_seed
from retro_ml.evaluation.protocols import EvaluationOptions, Protocol, build_protocol

pytestmark = pytest.mark.unit


def build(game_id: str, algorithm: str = "PPO", **how: Any) -> Protocol:
    environment = how.pop("environment", {})
    config = ExperimentConfig(game_id=game_id, algorithm=algorithm, environment=environment)
    return build_protocol(config, EvaluationOptions(**how))


def test_machado_is_what_v5_means() -> None:
    assert asdict(build("ALE/Breakout-v5")) == {
        "name": "machado",
        "sticky_actions": 0.25,
        "noop_max": 0,
        "max_frames": 108_000,
        "auto_fire": True,
        "full_action_space": False,
        "actions": "sampled",
        "epsilon": 0.0,
        "whole_games": True,
        "clipped_rewards": False,
    }


@pytest.mark.parametrize("game_id", ["BreakoutNoFrameskip-v4", "breakout"])
def test_noop_is_what_the_older_ids_mean(game_id: str) -> None:
    protocol = build(game_id)

    assert (protocol.name, protocol.sticky_actions, protocol.noop_max) == ("noop", 0.0, 30)
    assert protocol.max_frames == 108_000


def test_a_named_protocol_beats_the_id_and_the_training() -> None:
    training = {
        "sticky_actions": 0.5,
        "noop_max": 7,
        "max_frames": 400,
        "auto_fire": False,
        "full_action_space": True,
    }
    noop = build("ALE/Pong-v5", protocol="noop", environment=training)
    machado = build("pong", protocol="machado", environment=training)

    assert (noop.name, noop.sticky_actions, noop.noop_max) == ("noop", 0.0, 30)
    assert (machado.name, machado.sticky_actions, machado.noop_max) == ("machado", 0.25, 0)
    for protocol in (noop, machado):
        assert protocol.max_frames == 108_000
        # What the model was trained with: it knows no other actions.
        assert (protocol.auto_fire, protocol.full_action_space) == (False, True)


@pytest.mark.parametrize(
    ("algorithm", "deterministic", "actions", "epsilon"),
    [
        ("PPO", False, "sampled", 0.0),
        ("A2C", False, "sampled", 0.0),
        ("DQN", False, "epsilon-greedy", 0.001),
        ("PPO", True, "greedy", 0.0),
        ("DQN", True, "greedy", 0.0),
    ],
)
def test_how_actions_are_chosen(
    algorithm: str, deterministic: bool, actions: str, epsilon: float
) -> None:
    protocol = build("pong", algorithm, deterministic=deterministic)

    assert (protocol.actions, protocol.epsilon) == (actions, epsilon)


@pytest.mark.parametrize("seed", [0, 42])
def test_no_seed_of_an_evaluation_is_one_of_training(seed: int) -> None:
    training = {derive_seed(seed, GAME_SEEDS, game, turn) for game in range(16) for turn in
                range(200)}  # fmt: skip
    evaluation = [game_seed(seed, number) for number in range(1_000)]

    assert len(set(evaluation)) == 1_000
    assert training.isdisjoint(evaluation)


def test_every_kind_of_seed_has_a_word_of_its_own() -> None:
    package = Path(retro_ml.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    words = dict(re.findall(r"^([A-Z_]+_SEEDS) = (\d+)$", source, flags=re.MULTILINE))

    assert {"GAME_SEEDS", "ACTION_SEEDS", "EVALUATION_GAME_SEEDS"} <= set(words)
    assert len(set(words.values())) == len(words)
