"""Whole games, played and scored, with untrained networks."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retro_ml.core.artifacts.model_archive import ArchiveError, save_model_archive
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import Episode, Standing, play_episodes
from retro_ml.evaluation.evaluate import evaluate_model
from retro_ml.evaluation.protocols import EvaluationOptions, Protocol, build_protocol
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork

pytestmark = pytest.mark.integration

SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Writes the model.zip of a run that has learned nothing; returns its path."""

    def save(
        game_id: str = "ALE/Breakout-v5", algorithm: str = "PPO", *, num_actions: int = 4
    ) -> Path:
        torch.manual_seed(0)
        config = ExperimentConfig(game_id=game_id, algorithm=algorithm)
        network = QNetwork(num_actions) if algorithm == "DQN" else ActorCriticNetwork(num_actions)
        folder = tmp_path / "runs" / f"{config.game.rom}-{algorithm}"
        folder.mkdir(parents=True)
        path = folder / "model.zip"
        weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        save_model_archive(
            path,
            weights=weights,
            config_json=config.model_dump_json(),
            metadata={"agent_steps": 123},
        )
        return path

    return save


def protocol_of(agent: Agent, **how: Any) -> Protocol:
    """The agent's own protocol, but with games that are cut off early."""
    protocol = build_protocol(agent.config, EvaluationOptions())
    return replace(protocol, **{"max_frames": 300, **how})


def play(agent: Agent, *, episodes: int = 3, seed: int = 0, **how: Any) -> list[Episode]:
    num_games = how.pop("num_games", 3)
    return play_episodes(
        agent,
        protocol=protocol_of(agent, **how),
        episodes=episodes,
        seed=seed,
        num_games=num_games,
    )


def test_scores_depend_on_the_seed_and_not_on_the_number_of_games(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())
    one = play(agent, episodes=4, num_games=1, max_frames=1_000)
    many = play(agent, episodes=4, num_games=3, max_frames=1_000)
    other = play(agent, episodes=4, num_games=3, max_frames=1_000, seed=1)

    assert one == many
    assert len({episode.agent_steps for episode in one}) > 1  # they end at different times
    assert other != one


def test_an_episode_is_the_same_among_few_and_many(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())

    assert play(agent, episodes=2, num_games=2) == play(agent, episodes=4, num_games=3)[:2]


def test_rows_of_a_batch_come_out_the_same_wherever_they_stand(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())
    row = np.random.default_rng(0).integers(0, 256, (21, 21, 64), dtype=np.uint8)

    scores = agent.scores(np.repeat(row[None], 16, axis=0))

    np.testing.assert_array_equal(scores, np.repeat(scores[:1], 16, axis=0))


def test_a_lost_life_ends_nothing_and_scores_are_not_clipped(save_model: SaveModel) -> None:
    path = save_model("SpaceInvadersNoFrameskip-v4", num_actions=6)

    evaluation = evaluate_model(path, episodes=2, num_games=2)

    # An invader scores 5 at least; three lives of a random player last hundreds of steps.
    assert all(episode.score >= 5 and episode.score % 5 == 0 for episode in evaluation.episodes)
    assert all(episode.agent_steps > 150 for episode in evaluation.episodes)
    assert evaluation.capped == 0
    assert evaluation.protocol.name == "noop"
    assert evaluation.mean.human_normalised == pytest.approx(
        (evaluation.mean.value - 148.0) / (1668.7 - 148.0)
    )
    # An agent step is 4 frames, the last may be cut short; 1 to 30 no-ops come before.
    for episode in evaluation.episodes:
        assert -3 <= episode.frames - 4 * episode.agent_steps <= 31


def test_a_game_that_stalls_is_cut_off_and_said(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())

    episodes = play(agent, episodes=2, max_frames=80)

    assert [episode.capped for episode in episodes] == [True, True]
    assert all(76 <= episode.frames <= 84 for episode in episodes)


def test_without_any_chance_all_games_are_one(save_model: SaveModel) -> None:
    agent = Agent.load(save_model("BreakoutNoFrameskip-v4", "DQN"))
    sure = {"sticky_actions": 0.0, "noop_max": 0, "max_frames": 600}

    greedy = play(agent, actions="greedy", epsilon=0.0, **sure)
    sure["max_frames"] = 4_000  # they end before
    exploring = play(agent, actions="epsilon-greedy", epsilon=0.5, **sure)
    sampled = play(agent, actions="sampled", epsilon=0.0, **sure)

    assert len(set(greedy)) == 1
    assert len(set(exploring)) > 1
    assert len(set(sampled)) > 1


def test_no_ops_vary_the_games(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())

    no_ops = play(agent, sticky_actions=0.0, noop_max=30, actions="greedy", max_frames=200)

    # No-ops are frames of the game before its first agent step.
    assert len({episode.frames - 4 * episode.agent_steps for episode in no_ops}) > 1


def test_weights_of_another_game_are_refused(save_model: SaveModel) -> None:
    with pytest.raises(ArchiveError, match="knows 6 actions, breakout has 4"):
        evaluate_model(save_model(num_actions=6), episodes=1)


def test_a_bad_option_is_told(save_model: SaveModel) -> None:
    with pytest.raises(ValueError, match="episodes"):
        evaluate_model(save_model(), episodes=0)


def test_progress_counts_up_to_the_end(save_model: SaveModel) -> None:
    agent = Agent.load(save_model())
    seen: list[Standing] = []

    episodes = play_episodes(
        agent,
        protocol=protocol_of(agent, max_frames=80),
        episodes=3,
        seed=0,
        num_games=2,
        on_step=seen.append,
    )

    assert seen[0] == Standing(0, 3, 2, None)
    assert seen[-1].finished == 3
    assert seen[-1].agent_steps == sum(episode.agent_steps for episode in episodes)


def test_pytorchs_threads_are_left_as_they_were(save_model: SaveModel) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        play(Agent.load(save_model()), episodes=1, max_frames=40)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def run(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retro_ml.evaluate", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_twice(save_model: SaveModel) -> None:
    path = save_model()
    documents = []
    for num_games in ("1", "2"):
        process = run(str(path.parent), "--episodes", "2", "--num-games", num_games, "--json")
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        documents.append(output)

    assert documents[0] == documents[1]
    result = json.loads(documents[0])
    assert result == json.loads((path.parent / "evaluation-machado.json").read_text())
    assert result["model_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["trained_agent_steps"] == 123
    assert result["protocol"]["sticky_actions"] == 0.25
    assert len(result["episodes"]) == 2
    assert result["mean"]["value"] == np.mean([game["score"] for game in result["episodes"]])


def test_ctrl_c_ends_it_at_once_and_writes_nothing(save_model: SaveModel) -> None:
    path = save_model()
    process = run(str(path.parent), "--episodes", "100000")
    try:
        assert process.stderr is not None
        assert " / 100,000 games" in process.stderr.readline()  # 10 s later: it is playing

        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "stopped: no result was written"
    assert list(path.parent.iterdir()) == [path]
