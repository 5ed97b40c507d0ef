"""The members of model.zip that `stable_baselines3.PPO/A2C/DQN.load` reads, written without it.

Its format (2.x): `data`, JSON in which classes and spaces are pickles; `policy.pth` and
`policy.optimizer.pth`, state dicts as `torch.save` writes them; `pytorch_variables.pth`, which
these algorithms leave empty; `_stable_baselines3_version` and `system_info.txt`. Only what differs
from the constructor's defaults needs to be in `data`. Our own reader never opens any of them.

Deviations on purpose: the optimizer begins afresh and DQN's target network is the network itself,
because a checkpoint keeps those; DQN's replay is 100,000 transitions at most (RL Baselines3 Zoo's
Atari settings), because Stable-Baselines3 stores whole stacks, 56 kB a transition.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from retro_ml.core.artifacts.pickle_bytes import Call, Global, write_pickle
from retro_ml.core.artifacts.torch_file import build_torch_file

if TYPE_CHECKING:
    from retro_ml.core.artifacts.model_archive import Weights
    from retro_ml.core.experiments.config import ExperimentConfig

SB3_VERSION = "2.9.2"
"""Whose source the members follow, and which the tests load them with."""

BODY = {
    "body.conv1": "features_extractor.cnn.0",
    "body.conv2": "features_extractor.cnn.2",
    "body.conv3": "features_extractor.cnn.4",
    "body.linear": "features_extractor.linear.0",
}
ACTOR_CRITIC = {**BODY, "policy": "action_net", "value": "value_net"}
"""Layers of our actor-critic -> those of `ActorCriticCnnPolicy`."""
Q_NETWORK = {ours: f"q_net.{theirs}" for ours, theirs in {**BODY, "q": "q_net.0"}.items()}
"""Layers of our Q-network -> those of DQN's `CnnPolicy`."""

_MAX_REPLAY = 100_000
_NO_LIMIT = 1e9  # of the gradient's norm: Stable-Baselines3 cannot leave it out
_DTYPE = Global("numpy", "uint8")


def explain_absence(config: ExperimentConfig, weights: Weights) -> str | None:
    """Why Stable-Baselines3 cannot have this network; None where it can."""
    layers = Q_NETWORK if config.algorithm == "DQN" else ACTOR_CRITIC
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if config.algorithm == "DQN" and config.dqn.dueling:
        return "it has no dueling network"
    if weights.keys() != expected or any(w.dtype != np.float32 for w in weights.values()):
        return "it has no such network"
    return None


def build_members(
    config: ExperimentConfig, weights: Weights, *, agent_steps: int, versions: dict[str, Any]
) -> dict[str, bytes]:
    """The members' contents by name.

    Args:
        config: the experiment.
        weights: for which `explain_absence` knows no reason.
        agent_steps: taken so far.
        versions: of the libraries in use, for system_info.txt.
    """
    num_actions = len(weights["q.bias" if config.algorithm == "DQN" else "policy.bias"])
    data = _data(config, num_actions=num_actions, agent_steps=agent_steps)
    info = "".join(f"- {name}: {version}\n" for name, version in versions.items())
    return {
        "data": json.dumps(data, indent=2, allow_nan=False).encode(),
        "policy.pth": build_torch_file(_state_dict(config, weights)),
        "policy.optimizer.pth": build_torch_file(_optimizer_state(config)),
        "pytorch_variables.pth": build_torch_file(None),
        "_stable_baselines3_version": SB3_VERSION.encode(),
        "system_info.txt": f"Written by retro_ml, not by Stable-Baselines3.\n{info}".encode(),
    }


def describe_losses(config: ExperimentConfig) -> list[str]:
    """What of the experiment training there does without or does otherwise."""
    lost = ["the optimizer's state: it begins afresh"]
    if not _has_constant_rate(config):
        lost.append(
            f"the step size's horizon of {config.schedule_agent_steps:,} agent steps: it falls to "
            "0 over what learn is asked for"
        )
    if config.algorithm != "DQN":
        return lost
    dqn = config.dqn
    lost.append("the target network and the replay: they begin afresh")
    if dqn.double:
        lost.append("double Q-learning")
    if dqn.prioritized:
        lost.append("prioritised replay")
    if dqn.loss != "huber":
        lost.append("the squared loss: it is Huber's there")
    if (dqn.replay_size or 0) > _MAX_REPLAY:
        lost.append(f"the size of the replay: {_MAX_REPLAY:,} transitions there")
    return lost


def _state_dict(config: ExperimentConfig, weights: Weights) -> dict[str, Any]:
    whole = {name: np.asarray(array, order="C") for name, array in weights.items()}
    state: dict[str, Any] = {}
    layers = Q_NETWORK if config.algorithm == "DQN" else ACTOR_CRITIC
    for name, array in whole.items():
        layer, kind = name.rsplit(".", maxsplit=1)
        theirs = f"{layers[layer]}.{kind}"
        copies = [theirs]
        if config.algorithm == "DQN":
            copies.append(theirs.replace("q_net.", "q_net_target.", 1))
        elif layer in BODY:
            # One extractor under three names.
            copies += [f"pi_{theirs}", f"vf_{theirs}"]
        state |= dict.fromkeys(copies, array)
    return state


def _data(config: ExperimentConfig, *, num_actions: int, agent_steps: int) -> dict[str, Any]:
    box = Call(Global("gymnasium.spaces.box", "Box"), (0, 255, (4, 84, 84), _DTYPE))
    discrete = Call(Global("gymnasium.spaces.discrete", "Discrete"), (num_actions,))
    settings = config.settings
    limit = settings.max_grad_norm
    common = {
        "policy_class": _pickled(_policy_class(config)),
        "observation_space": _pickled(box),
        "action_space": _pickled(discrete),
        # One game is what Stable-Baselines3's DQN counts its steps for.
        "n_envs": 1 if config.algorithm == "DQN" else config.num_games,
        "num_timesteps": agent_steps,
        "verbose": 0,
        "gamma": settings.gamma,
        "max_grad_norm": _NO_LIMIT if limit is None else limit,
        "policy_kwargs": _policy_kwargs(config),
        "learning_rate": _learning_rate(config),
    }
    own = {"PPO": _ppo_data, "A2C": _a2c_data, "DQN": _dqn_data}
    return common | own[config.algorithm](config)


def _ppo_data(config: ExperimentConfig) -> dict[str, Any]:
    ppo = config.ppo
    return {
        "n_steps": ppo.rollout_length,
        "n_epochs": ppo.epochs,
        "batch_size": ppo.minibatch_size,
        "gae_lambda": ppo.gae_lambda,
        "clip_range": ppo.clip,
        "ent_coef": ppo.entropy_coefficient,
        "vf_coef": ppo.value_loss_coefficient,
        "normalize_advantage": ppo.normalize_advantages,
    }


def _a2c_data(config: ExperimentConfig) -> dict[str, Any]:
    a2c = config.a2c
    return {
        "n_steps": a2c.rollout_length,
        "gae_lambda": a2c.gae_lambda,
        "ent_coef": a2c.entropy_coefficient,
        "vf_coef": a2c.value_loss_coefficient,
        "normalize_advantage": False,
    }


def _dqn_data(config: ExperimentConfig) -> dict[str, Any]:
    dqn = config.dqn
    fall = dqn.epsilon_agent_steps or config.total_timesteps
    horizon = dqn.epsilon_hold_agent_steps + fall
    return {
        "batch_size": dqn.batch_size,
        "buffer_size": min(dqn.replay_size or _MAX_REPLAY, _MAX_REPLAY),
        "learning_starts": dqn.warmup_agent_steps or 0,
        "train_freq": dqn.agent_steps_per_update,
        "gradient_steps": 1,
        "n_steps": dqn.n_step,
        "target_update_interval": dqn.target_update_agent_steps,
        "exploration_initial_eps": dqn.epsilon_initial,
        "exploration_final_eps": dqn.epsilon_final,
        "exploration_fraction": min(1.0, horizon / config.total_timesteps),
        "exploration_rate": dqn.epsilon_final,
    }


def _policy_class(config: ExperimentConfig) -> Global:
    if config.algorithm == "DQN":
        return Global("stable_baselines3.dqn.policies", "CnnPolicy")
    return Global("stable_baselines3.common.policies", "ActorCriticCnnPolicy")


def _policy_kwargs(config: ExperimentConfig) -> dict[str, Any]:
    if config.algorithm != "A2C":
        eps = config.ppo.adam_eps if config.algorithm == "PPO" else config.dqn.adam_eps
        return {"optimizer_kwargs": {"eps": eps}}
    a2c = config.a2c
    optimizer = Global("torch.optim.rmsprop", "RMSprop")
    if a2c.rmsprop_eps_inside_root:
        module = "stable_baselines3.common.sb2_compat.rmsprop_tf_like"
        optimizer = Global(module, "RMSpropTFLike")
    how = {"alpha": a2c.rmsprop_alpha, "eps": a2c.rmsprop_eps, "weight_decay": 0}
    return _pickled({"optimizer_class": optimizer, "optimizer_kwargs": how})


def _learning_rate(config: ExperimentConfig) -> Any:
    """A number, or the schedule that falls to 0 over what `learn` is asked for."""
    rate = config.settings.learning_rate
    if _has_constant_rate(config):
        return rate
    schedule = Global("stable_baselines3.common.utils", "LinearSchedule")
    return _pickled(Call(schedule, (rate, 0.0, 1.0)))


def _has_constant_rate(config: ExperimentConfig) -> bool:
    if config.algorithm == "A2C":
        return not config.a2c.anneal_learning_rate
    return config.algorithm == "DQN"


def _optimizer_state(config: ExperimentConfig) -> dict[str, Any]:
    """The state dict of an optimizer that has done nothing."""
    num_parameters = 10 if config.algorithm == "DQN" else 12
    group: dict[str, Any] = {"lr": config.settings.learning_rate, "weight_decay": 0}
    if config.algorithm == "A2C":
        group |= {"alpha": config.a2c.rmsprop_alpha, "eps": config.a2c.rmsprop_eps}
        group |= {"momentum": 0, "centered": False}
    else:
        eps = config.ppo.adam_eps if config.algorithm == "PPO" else config.dqn.adam_eps
        group |= {"betas": (0.9, 0.999), "eps": eps, "amsgrad": False}
    group["params"] = list(range(num_parameters))
    return {"state": {}, "param_groups": [group]}


def _pickled(value: Any) -> dict[str, str]:
    """Stable-Baselines3's notation of what JSON cannot hold."""
    return {":type:": "pickle", ":serialized:": base64.b64encode(write_pickle(value)).decode()}
