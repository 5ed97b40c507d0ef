"""What a module computes in, by where it is. A GPU cannot be had here: its answer is put in."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from retro_ml.envs.frames import OBSERVATION_SHAPE
from retro_ml.rllib import machine
from retro_ml.rllib.module import ActorCriticModule, QModule, precision_of

pytestmark = pytest.mark.unit


def build(precision: str, *, device: str, acts_only: bool, kind: type = ActorCriticModule) -> str:
    spec = RLModuleSpec(
        module_class=kind,
        observation_space=Box(0, 255, OBSERVATION_SHAPE, np.uint8),
        action_space=Discrete(4),
        inference_only=acts_only,
        model_config={"precision": precision, "device": device, "dueling": False},
    )
    return precision_of(spec.build().network)


@pytest.mark.parametrize("kind", [ActorCriticModule, QModule])
@pytest.mark.parametrize(
    ("precision", "device", "cpu", "gpu", "learner", "env_runner"),
    [
        ("auto", "cpu", True, False, "bf16", "bf16"),
        ("auto", "cpu", False, True, "fp32", "fp32"),
        ("auto", "cuda", False, True, "bf16", "fp32"),
        ("auto", "cuda", True, False, "fp32", "bf16"),
        ("bf16", "cuda", False, True, "bf16", "fp32"),
        ("bf16", "cpu", False, False, "bf16", "fp32"),
        ("fp32", "cuda", True, True, "fp32", "fp32"),
    ],
)
def test_a_learner_does_as_told_and_an_env_runner_as_its_cpu_can(
    kind: type,
    precision: str,
    device: str,
    cpu: bool,
    gpu: bool,
    learner: str,
    env_runner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)

    assert build(precision, device=device, acts_only=False, kind=kind) == learner
    assert build(precision, device=device, acts_only=True, kind=kind) == env_runner
