"""The model.zip of an agent that can play: PPO on Breakout after 500,736 agent steps.

tests/data/breakout-ppo.npz has its weights, the large ones rounded to 4 bits with a scale for each
row, from a run of `retro-ml run --game-id BreakoutNoFrameskip-v4 -n 500000 --seed 2
--resources.precision bf16 --ppo.schedule-agent-steps 10000000`, whose agent scored 16.9 in 100
games; with these it plays as well (17.9 in 16 games, the unrounded one 16.4 in the same). The
archive is written anew from them, as every run writes it.
"""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import stable_baselines3 as sb3
import torch
from numpy.typing import NDArray

from retro_ml import Agent, export
from retro_ml.core.artifacts.model_archive import CARD, save_model_archive
from retro_ml.core.artifacts.run_model import save_run_model
from retro_ml.core.artifacts.training_history import TrainingHistory
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.evaluation.export import export_agent
from retro_ml.evaluation.observations import collect_observations
from retro_ml.networks.nature_cnn import ActorCriticNetwork

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RANDOM_SCORE = 1.7


def load_weights() -> dict[str, NDArray[np.float32]]:
    """The network's parameters by name."""
    with np.load(ROOT / "tests" / "data" / "breakout-ppo.npz", allow_pickle=False) as file:
        weights = {name: file[name].astype(np.float32) for name in file}
    for name in [name for name in weights if name.endswith("/scale")]:
        scale = weights.pop(name)
        parameter = weights[name.removesuffix("/scale")]
        parameter *= scale.reshape(-1, *[1] * (parameter.ndim - 1))
    return weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = ExperimentConfig(
        game_id="BreakoutNoFrameskip-v4",
        seed=2,
        total_timesteps=500_000,
        ppo={"schedule_agent_steps": 10_000_000},
        resources={"precision": "bf16"},
        output_dir=str(folder / "runs"),
        experiment_id="ppo-breakout",
    )
    config.experiment_dir.mkdir(parents=True)
    save_run_model(
        config,
        load_weights(),
        path=config.model_path,
        agent_steps=500_736,
        score=17.7,
        action_meanings=["NOOP", "FIRE", "RIGHT", "LEFT"],
        history=TrainingHistory(config).summarize(),
        created_at="2026-11-24T16:19:00+00:00",
    )
    return config.model_path


@pytest.fixture(scope="module")
def agent(model: Path) -> Agent:
    return Agent.load(model)


@pytest.fixture(scope="module")
def seen(agent: Agent) -> NDArray[np.uint8]:
    """1,000 observations of its own games."""
    return collect_observations(agent, count=1_000)


@pytest.mark.parametrize("source", ["README.md", "docs/model-archive.md", "the card in it"])
def test_the_lines_to_use_an_agent_play_a_game(
    source: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "the card in it":
        with zipfile.ZipFile(model) as archive:
            text = archive.read(CARD).decode()
    else:
        text = (ROOT / source).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (lines,) = [block for block in blocks if "Agent.load" in block]
    monkeypatch.chdir(model.parents[2] if source == "README.md" else model.parent)
    names: dict[str, Any] = {}

    exec(compile(lines, source, "exec"), names)

    assert names["observation"].shape == (4, 84, 84)
    assert 0 <= names["action"] < 4


@pytest.mark.parametrize(
    "words", ['PPO.load("model.zip")\nobservation', "load_model(", "InferenceSession("]
)
def test_the_lines_for_other_libraries_run(
    words: str, model: Path, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "model-archive.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (lines,) = [block for block in blocks if words in block]
    shutil.copy(model, tmp_path)
    if "model.onnx" in lines:
        export_agent(agent, to="onnx", output=tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)

    exec(compile(lines, "model-archive.md", "exec"), {})


def test_a_head_of_another_game_is_refused_before_it_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {n: t.numpy() for n, t in ActorCriticNetwork(18).state_dict().items()}
    config = ExperimentConfig(game_id="breakout", experiment_id="x").model_dump_json()
    path = tmp_path / "model.zip"
    save_model_archive(path, weights=weights, config_json=config, metadata={})

    assert export.main([str(path), "--to", "safetensors"]) == 2

    told = capsys.readouterr()
    assert "the model knows 18 actions, breakout has 4" in told.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zip"]


def test_it_plays_well_and_its_scores_are_the_real_ones(agent: Agent) -> None:
    scores = [agent.play(seed=seed).score for seed in range(3)]

    assert np.mean(scores) > 3 * RANDOM_SCORE
    assert agent.play(seed=0).score == scores[0]


def test_stable_baselines3_agrees(model: Path, agent: Agent, seen: NDArray[np.uint8]) -> None:
    theirs = sb3.PPO.load(model, device="cpu")
    actions, _ = theirs.predict(seen, deterministic=True)
    with torch.no_grad():
        tensor = torch.from_numpy(seen)
        probabilities = theirs.policy.get_distribution(tensor).distribution.probs.numpy()
        values = theirs.policy.predict_values(tensor)[:, 0].numpy()

    assert len(np.unique(actions)) > 2
    np.testing.assert_array_equal(actions, agent.act(seen, deterministic=True))
    ours = agent.action_probabilities(seen)
    assert ours.max() > 0.9  # it knows what it wants
    np.testing.assert_allclose(probabilities, ours, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values, agent.value(seen), rtol=0, atol=1e-5)


def test_onnx_runtime_agrees(agent: Agent, seen: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_agent(agent, to="onnx", output=path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, values = session.run(None, {"observations": seen})

    np.testing.assert_array_equal(logits.argmax(axis=1), agent.act(seen, deterministic=True))
    np.testing.assert_allclose(logits, agent.scores(seen), rtol=0, atol=1e-5)
    np.testing.assert_allclose(values, agent.value(seen), rtol=0, atol=1e-5)
