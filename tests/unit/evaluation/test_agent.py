"""What an agent tells of one observation and of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation import agent as agents
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import Episode
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork, pack_observations
from retro_ml.networks.standard_form import build_standard_form

pytestmark = pytest.mark.unit

BATCH = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
KINDS = ("PPO", "DQN", "dueling DQN")


def build_agent(kind: str, **metadata: Any) -> Agent:
    torch.manual_seed(0)
    dueling = kind == "dueling DQN"
    config = ExperimentConfig(
        game_id="breakout", algorithm=kind.rsplit(maxsplit=1)[-1], dqn={"dueling": dueling}
    )
    network = ActorCriticNetwork(4) if kind == "PPO" else QNetwork(4, dueling=dueling)
    if isinstance(network, ActorCriticNetwork):  # its head begins with all actions alike
        with torch.no_grad():
            network.policy.weight.mul_(100.0)
    return Agent(network, config=config, metadata=metadata)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    agent = build_agent("PPO")
    probabilities = agent.action_probabilities(BATCH)

    logits = torch.from_numpy(agent.scores(BATCH))
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1), atol=1e-6)
    assert probabilities.dtype == np.float32
    assert probabilities.std() > 0.05
    shares = np.bincount([int(agent.act(BATCH[0])) for _ in range(2_000)], minlength=4) / 2_000
    np.testing.assert_allclose(shares, probabilities[0], atol=0.05)


@pytest.mark.parametrize("kind", ["DQN", "dueling DQN"])
def test_a_q_learner_takes_the_best_action_and_its_value(kind: str) -> None:
    agent = build_agent(kind)
    scores = agent.scores(BATCH)

    assert agent.action_probabilities(BATCH).argmax(axis=1).tolist() == scores.argmax(1).tolist()
    assert agent.action_probabilities(BATCH).sum(axis=1).tolist() == [1.0] * 5
    np.testing.assert_array_equal(agent.value(BATCH), scores.max(axis=1))


def test_the_value_is_the_value_heads() -> None:
    agent = build_agent("PPO")
    with torch.no_grad():
        _, values = agent.network(pack_observations(torch.from_numpy(BATCH)))

    np.testing.assert_array_equal(agent.value(BATCH), values.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_one_observation_is_a_row_of_a_batch(kind: str) -> None:
    agent = build_agent(kind)

    assert agent.action_probabilities(BATCH[2]).shape == (4,)
    assert np.ndim(agent.value(BATCH[2])) == np.ndim(agent.act(BATCH[2])) == 0
    np.testing.assert_allclose(agent.value(BATCH[2]), agent.value(BATCH)[2], atol=1e-6)
    for ask in (agent.action_probabilities, agent.value, agent.act):
        assert len(ask(BATCH)) == 5
        with pytest.raises(ValueError, match=r"\[4, 84, 84\]"):
            ask(BATCH.astype(np.float32))


def test_it_plays_as_an_evaluation_does_whatever_its_run_overrode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protocols = []

    def play(agent: Agent, *, protocol: Any, **how: Any) -> list[Episode]:
        protocols.append(protocol)
        return [Episode(score=1.0, agent_steps=1, frames=4, capped=False)]

    monkeypatch.setattr(agents, "play_episodes", play)
    overridden = {"sticky_actions": 0.1, "noop_max": 5, "max_frames": 400, "auto_fire": False}
    agent = build_agent("PPO")
    agent.play()
    agent.config = ExperimentConfig(game_id="breakout", environment=overridden)
    agent.play()

    asked, other = protocols
    assert (asked.name, asked.sticky_actions, asked.noop_max) == ("noop", 0.0, 30)
    assert (asked.auto_fire, other.auto_fire) == (True, False)
    assert replace(other, auto_fire=True) == asked


def test_actions_are_named_where_the_archive_names_them() -> None:
    meanings = ["NOOP", "FIRE", "RIGHT", "LEFT"]

    assert build_agent("PPO", game={"action_meanings": meanings}).action_meanings == (*meanings,)
    assert build_agent("PPO").action_meanings == ()
    assert build_agent("PPO", game="breakout").action_meanings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_form_is_the_same_network(kind: str) -> None:
    agent = build_agent(kind)
    form = build_standard_form(agent.network)
    with torch.no_grad():
        outputs = form(torch.from_numpy(BATCH))

    assert len(outputs) == len(form.outputs)
    np.testing.assert_allclose(outputs[0], agent.scores(BATCH), atol=1e-5)
    if kind == "PPO":
        np.testing.assert_allclose(outputs[1], agent.value(BATCH), atol=1e-5)
