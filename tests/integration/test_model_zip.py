"""model.zip of really trained agents, in Stable-Baselines3, RLlib, ONNX Runtime, PyTorch; and back.

Agreement is on 1,000 observations of Breakout that the agent itself saw.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import onnxruntime
import pytest
import safetensors
import stable_baselines3 as sb3
import torch
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from retro_ml import Agent, load_model, run_experiment
from retro_ml.core.artifacts.checkpoint_files import find_checkpoints
from retro_ml.core.artifacts.initial_weights import save_initial_weights
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.artifacts.run_model import save_run_model
from retro_ml.core.artifacts.training_history import TrainingHistory
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.evaluation import export
from retro_ml.evaluation.initial_weights import read_initial_weights
from retro_ml.evaluation.observations import collect_observations
from retro_ml.networks.nature_cnn import QNetwork
from retro_ml.rllib.translate import translate

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_ray")]
ALGORITHMS = ("PPO", "A2C", "DQN")
QUIET = RunOptions(progress="quiet")
Observations = NDArray[np.uint8]


def build_config(folder: Path, algorithm: str, **fields: Any) -> ExperimentConfig:
    given: dict[str, Any] = {
        "game_id": "BreakoutNoFrameskip-v4",
        "total_timesteps": 1_000,
        "dqn": {"warmup_agent_steps": 200},
        "experiment_id": algorithm,
        "output_dir": str(folder),
        "use_gpu": False,
    }
    return ExperimentConfig(algorithm=algorithm, **{**given, **fields})  # type: ignore[arg-type]


def train(config: ExperimentConfig) -> Path:
    result = run_experiment(config, options=QUIET)
    assert result.error is None
    return result.model_path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, own_ray: None) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(build_config(folder, name)) for name in ALGORITHMS}


@pytest.fixture(scope="module")
def seen(models: dict[str, Path]) -> dict[str, Observations]:
    """1,000 observations of each agent's own games."""
    agents = {name: Agent.load(path) for name, path in models.items()}
    return {name: collect_observations(agent, count=1_000) for name, agent in agents.items()}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_theirs(path: Path, algorithm: str, **how: Any) -> Any:
    return getattr(sb3, algorithm).load(path, device="cpu", **how)


def test_what_an_agent_sees_are_real_frames(seen: dict[str, Observations]) -> None:
    for observations in seen.values():
        assert observations.shape == (1_000, 4, 84, 84)
        assert len(np.unique(observations.reshape(1_000, -1), axis=0)) > 500
        # The newest frame of one moment is the one before it a step later, 8 games side by side.
        before, after = observations[400:408, 3], observations[408:416, 2]
        assert (before == after).reshape(8, -1).all(axis=1).sum() >= 6


# Stable-Baselines3.


@pytest.mark.parametrize("name", ALGORITHMS)
def test_stable_baselines3_acts_as_the_agent_does(
    name: str, models: dict[str, Path], seen: dict[str, Observations]
) -> None:
    agent, observations = Agent.load(models[name]), seen[name]
    model = load_theirs(models[name], name)

    actions, _ = model.predict(observations, deterministic=True)
    with torch.no_grad():
        tensor = torch.from_numpy(observations)
        if name == "DQN":
            scores, ours = model.q_net(tensor).numpy(), agent.scores(observations)
            values = scores.max(axis=1)
        else:
            distribution = model.policy.get_distribution(tensor).distribution
            scores, ours = distribution.probs.numpy(), agent.action_probabilities(observations)
            values = model.policy.predict_values(tensor)[:, 0].numpy()

    np.testing.assert_array_equal(actions, agent.act(observations, deterministic=True))
    np.testing.assert_allclose(scores, ours, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values, agent.value(observations), rtol=0, atol=1e-5)
    metadata = load_model_archive(models[name]).metadata
    assert model.num_timesteps == metadata["agent_steps"] >= 1_000
    assert metadata["stable_baselines3"]["loads"] is True


@pytest.mark.parametrize(
    ("name", "how", "agent_steps"),
    [
        # Two rollouts: the step size has fallen to 0 when the last one is learned from.
        ("PPO", {"n_steps": 16, "batch_size": 16, "n_epochs": 1}, 64),
        ("A2C", {}, 20),
        ("DQN", {"learning_starts": 10, "buffer_size": 1_000}, 40),
    ],
)
def test_training_goes_on_in_stable_baselines3(
    name: str, how: dict[str, Any], agent_steps: int, models: dict[str, Path]
) -> None:
    gymnasium.register_envs(ale_py)
    games = make_atari_env("BreakoutNoFrameskip-v4", n_envs=2, seed=0)
    model = load_theirs(models[name], name, env=VecFrameStack(games, n_stack=4), **how)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    trained = model.num_timesteps

    model.learn(agent_steps, reset_num_timesteps=False)
    games.close()

    assert model.num_timesteps >= trained + agent_steps
    after = model.policy.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    heads = ["q_net.q_net.0.bias"] if name == "DQN" else ["action_net.bias", "value_net.bias"]
    for head in heads:
        assert not torch.equal(after[head], before[head])


def test_a_dueling_network_stays_ours_and_the_archive_says_so(tmp_path: Path) -> None:
    config = build_config(tmp_path, "DQN", dqn={"dueling": True})
    config.experiment_dir.mkdir()
    network = QNetwork(4, dueling=True)
    save_run_model(
        config,
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        path=config.model_path,
        agent_steps=0,
        score=None,
        action_meanings=["NOOP", "FIRE", "RIGHT", "LEFT"],
        history=TrainingHistory(config).summarize(),
        created_at="2026-01-01T00:00:00+00:00",
    )
    path = config.model_path
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pth")]
        assert "dueling" in archive.read("README.md").decode()
    archived = load_model_archive(path)
    assert archived.metadata["stable_baselines3"] == {
        "loads": False,
        "reason": "it has no dueling network",
    }
    assert Agent.load(path).network.value_hidden is not None


# RLlib.


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_rlmodule_acts_as_the_agent_does(
    name: str, models: dict[str, Path], seen: dict[str, Observations]
) -> None:
    module = load_model(models[name])
    with torch.no_grad():
        batch = {"obs": torch.from_numpy(seen[name])}
        scores = module.forward_inference(batch)["action_dist_inputs"].numpy()

    np.testing.assert_array_equal(scores, Agent.load(models[name]).scores(seen[name]))
    if name != "DQN":
        values = module.compute_values(batch).detach().numpy()
        np.testing.assert_array_equal(values, Agent.load(models[name]).value(seen[name]))


def test_the_checkpoint_beside_it_restores_the_algorithm(models: dict[str, Path]) -> None:
    folder = models["PPO"].parent
    config = ExperimentConfig.model_validate_json((folder / "config.json").read_text())
    algorithm = translate(config).build_algo()
    algorithm.load_checkpoint(str(find_checkpoints(folder / "checkpoints")[-1].path))

    weights = algorithm.learner_group.get_weights()["default_policy"]
    for key, array in load_model_archive(models["PPO"]).weights.items():
        np.testing.assert_array_equal(weights[f"network.{key}"], array)
    algorithm.stop()


# Other runtimes.


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_onnx_runtime_acts_as_the_agent_does(
    name: str, models: dict[str, Path], seen: dict[str, Observations], tmp_path: Path
) -> None:
    agent, path = Agent.load(models[name]), tmp_path / "model.onnx"
    done = export.export_agent(agent, to="onnx", output=path)

    assert (done.num_observations, os.listdir(tmp_path)) == (1_000, ["model.onnx"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("observations", "tensor(uint8)")
    assert entry.shape[1:] == [4, 84, 84]
    names = ["q_values"] if name == "DQN" else ["logits", "value"]
    assert [output.name for output in session.get_outputs()] == names
    for count in (1, 2, 37):
        part = seen[name][-count:]
        outputs = session.run(None, {"observations": part})
        assert outputs[0].shape == (count, 4)
        np.testing.assert_allclose(outputs[0], agent.scores(part), rtol=0, atol=1e-5)
        if name == "PPO":
            np.testing.assert_allclose(outputs[1], agent.value(part), rtol=0, atol=1e-5)


def test_torch_export_and_safetensors_hold_the_same(
    models: dict[str, Path], seen: dict[str, Observations], tmp_path: Path
) -> None:
    agent, part = Agent.load(models["A2C"]), seen["A2C"][:5]
    export.export_agent(agent, to="torch-export", output=tmp_path / "m.pt2")
    export.export_agent(agent, to="safetensors", output=tmp_path / "m.safetensors")

    with torch.no_grad():
        logits, values = torch.export.load(tmp_path / "m.pt2").module()(torch.from_numpy(part))
    np.testing.assert_allclose(logits, agent.scores(part), rtol=0, atol=1e-5)
    np.testing.assert_allclose(values, agent.value(part), rtol=0, atol=1e-5)
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["action_meanings"]) == list(agent.action_meanings)
        for key, array in load_model_archive(models["A2C"]).weights.items():
            np.testing.assert_array_equal(file.get_tensor(key), array)


def test_an_export_that_acts_otherwise_is_not_written(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_another(
        agent: Agent,
    ) -> tuple[bytes, Callable[[Observations], NDArray[np.float32]]]:
        return b"x", lambda observations: -agent.scores(observations)

    monkeypatch.setattr(export, "_build_weights", build_another)
    agent = Agent.load(models["PPO"])
    with pytest.raises(export.ExportDiffers, match="other actions on"):
        export.export_agent(agent, to="safetensors", output=tmp_path / "m.safetensors")
    assert not os.listdir(tmp_path)


# The agent.


def test_an_agent_plays_whole_games(models: dict[str, Path]) -> None:
    agent = Agent.load(models["PPO"])
    episode = agent.play(seed=3)

    assert episode == agent.play(seed=3)
    assert episode.score >= 0
    assert episode.agent_steps > 100
    assert agent.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT")


# Back in.


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_a_run_begins_with_the_weights_of_another(
    source: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """A2C's network under PPO, which learns so slowly that it keeps it."""
    path = tmp_path / "model.zip"
    if source == "ours":
        path.write_bytes(models["A2C"].read_bytes())
    else:
        load_theirs(models["A2C"], "A2C").save(path)
    config = build_config(
        tmp_path, "PPO", init_from=path, total_timesteps=1_000, ppo={"learning_rate": 1e-30}
    )
    archive = load_model_archive(train(config))

    for name, array in load_model_archive(models["A2C"]).weights.items():
        np.testing.assert_allclose(archive.weights[name], array, rtol=0, atol=1e-12)
    origin = archive.metadata["initialized_from"]
    assert origin["file"] == str(path)
    assert origin["sha256"] == archive.config["init_sha256"]
    assert origin["agent_steps"] == load_model_archive(models["A2C"]).metadata["agent_steps"]
    assert "the whole network" in (tmp_path / "PPO" / "training.log").read_text()


def test_a_q_network_and_its_target_are_taken_over(models: dict[str, Path], tmp_path: Path) -> None:
    config = build_config(tmp_path, "DQN", init_from=models["DQN"])
    config.experiment_dir.mkdir()
    save_initial_weights(config, read_initial_weights(config))
    algorithm = translate(config).build_algo()
    weights = algorithm.get_learner_state()["rl_module"]["default_policy"]
    for name, array in load_model_archive(models["DQN"]).weights.items():
        np.testing.assert_array_equal(weights[f"network.{name}"], array)
        np.testing.assert_array_equal(weights[f"target_network.{name}"], array)
    algorithm.stop()
