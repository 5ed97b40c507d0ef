"""The published values arrive in RLlib's config; RLlib's defaults do not stand in their place."""

from typing import Any

import pytest

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.rllib.a2c import A2CConfig, A2CLearner
from retro_ml.rllib.dqn import DQNConfig, DQNLearner
from retro_ml.rllib.env_runner import AtariEnvRunner
from retro_ml.rllib.ppo import PPOConfig, PPOLearner
from retro_ml.rllib.translate import translate

pytestmark = pytest.mark.unit


def translated(algorithm: str, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "game_id": "BreakoutNoFrameskip-v4",
        "total_timesteps": 2_000_000,
        "seed": 7,
        "use_gpu": False,
    }
    config = ExperimentConfig(algorithm=algorithm, **given | fields)
    result = translate(config, num_cpus=2)
    result.validate()
    return result


def assert_values(config: Any, expected: dict[str, Any]) -> None:
    assert {name: getattr(config, name) for name in expected} == expected


COMMON: dict[str, Any] = {
    "env_runner_cls": AtariEnvRunner,
    "env": "breakout",
    "seed": None,
    "run_seed": 7,
    "num_env_runners": 0,
    "num_learners": 0,
    "num_gpus_per_learner": 0,
    "num_cpus_for_main_process": 2,
    "torch_threads": 2,
    "framework_str": "torch",
    "torch_skip_nan_gradients": False,
    "gamma": 0.99,
    "grad_clip_by": "global_norm",
}


def test_ppo() -> None:
    config = translated("PPO")
    assert isinstance(config, PPOConfig)
    assert config.learner_class is PPOLearner
    assert_values(
        config,
        {
            **COMMON,
            "num_envs_per_env_runner": 8,
            "rollout_fragment_length": 128,
            "train_batch_size_per_learner": 1_024,
            "num_epochs": 4,
            "minibatch_size": 256,
            "shuffle_batch_per_epoch": True,
            "lr": [[0, 2.5e-4], [2_000_000, 0.0]],
            "adam_eps": 1e-5,
            "clip_param": 0.1,
            "lambda_": 0.95,
            "entropy_coeff": 0.01,
            "vf_loss_coeff": 0.5,
            "vf_clip_param": float("inf"),
            "grad_clip": 0.5,
            "normalize_advantages": True,
            "use_kl_loss": False,
        },
    )
    assert config.env_config["exploration"] == "softmax"


def test_ppo_over_the_literatures_schedule() -> None:
    config = translated("PPO", ppo={"schedule_agent_steps": 10_000_000})
    assert config.lr == [[0, 2.5e-4], [10_000_000, 0.0]]


def test_a2c() -> None:
    config = translated("A2C")
    assert isinstance(config, A2CConfig)
    assert config.learner_class is A2CLearner
    assert_values(
        config,
        {
            **COMMON,
            "num_envs_per_env_runner": 16,
            "rollout_fragment_length": 5,
            "train_batch_size_per_learner": 80,
            "updates_per_iteration": 13,  # the first multiple of 80 that is at least 1,000
            "num_epochs": 1,
            "minibatch_size": None,
            "lr": [[0, 7e-4], [2_000_000, 0.0]],
            "lambda_": 1.0,
            "rmsprop_alpha": 0.99,
            "rmsprop_eps": 1e-5,
            "rmsprop_eps_inside_root": False,
            "entropy_coeff": 0.01,
            "vf_loss_coeff": 0.5,
            "grad_clip": 0.5,
            "use_kl_loss": False,
        },
    )


def test_a2c_as_stable_baselines3_has_it() -> None:
    config = translated("A2C", preset="sb3")
    assert_values(
        config,
        {
            "rmsprop_eps_inside_root": True,
            "vf_loss_coeff": 0.25,
            "lr": [[0, 7e-4], [2_000_000, 7e-4]],
        },
    )


def test_a2c_as_nnabla_has_it() -> None:
    """Its step size falls over 50,000,000 agent steps, however long the run."""
    config = translated("A2C", preset="nnabla")
    assert config.lr == [[0, 7e-4], [50_000_000, 0.0]]
    assert_values(config, {"rmsprop_eps_inside_root": False, "vf_loss_coeff": 0.5})


def test_dqn() -> None:
    """5 % of two million is more than 80,000; 10 % of it are 200,000."""
    config = translated("DQN")
    assert isinstance(config, DQNConfig)
    assert config.learner_class is DQNLearner
    assert_values(
        config,
        {
            **COMMON,
            "num_envs_per_env_runner": 4,
            "rollout_fragment_length": 4,
            "rounds_per_iteration": 16,  # the first multiple of 16 that is at least 1,000
            "agent_steps_per_update": 4,
            "train_batch_size_per_learner": 32,
            "lr": 1e-4,
            "adam_eps": 1e-8,
            "replay_size": 1_000_000,
            "num_steps_sampled_before_learning_starts": 80_000,
            "epsilon": [[0, 1.0], [200_000, 0.01]],
            "target_network_update_freq": 1_000,
            "td_error_loss_fn": "huber",
            "grad_clip": 10.0,
            "double_q": False,
            "dueling": False,
            "n_step": 1,
            "prioritized": False,
        },
    )
    assert config.env_config["exploration"] == [[0, 1.0], [200_000, 0.01]]
    assert config.model_config["dueling"] is False


def test_dqn_as_dopamine_has_it() -> None:
    assert_values(
        translated("DQN", preset="dopamine"),
        {
            "lr": 6.25e-5,
            "adam_eps": 1.5e-4,
            "td_error_loss_fn": "mse",
            "target_network_update_freq": 8_000,
            "num_steps_sampled_before_learning_starts": 20_000,
            # its linearly_decaying_epsilon: 1 until the warm-up is over, then down in 250,000
            "epsilon": [[0, 1.0], [20_000, 1.0], [270_000, 0.01]],
            "grad_clip": None,
        },
    )


def test_dqns_schedules_need_not_be_the_runs_length() -> None:
    """From 10,000,000: 5 % of them are more than 80,000; 10 % are 1,000,000."""
    config = translated("DQN", dqn={"schedule_agent_steps": 10_000_000})
    assert_values(
        config,
        {
            "beta_agent_steps": 10_000_000,
            "num_steps_sampled_before_learning_starts": 80_000,
            "epsilon": [[0, 1.0], [1_000_000, 0.01]],
        },
    )


def test_dqns_switches() -> None:
    config = translated(
        "DQN", dqn={"double": True, "dueling": True, "n_step": 3, "prioritized": True}
    )
    assert_values(config, {"double_q": True, "dueling": True, "n_step": 3, "prioritized": True})
    assert config.model_config["dueling"] is True


@pytest.mark.parametrize(
    ("game_id", "sticky_actions", "noop_max", "lives_end"),
    [("BreakoutNoFrameskip-v4", 0.0, 30, True), ("ALE/Breakout-v5", 0.25, 0, False)],
)
def test_the_games_id_decides_the_protocol(
    game_id: str, sticky_actions: float, noop_max: int, lives_end: bool
) -> None:
    env_config = translated("PPO", game_id=game_id).env_config
    assert env_config["settings"] == {
        "rom": "breakout",
        "sticky_actions": sticky_actions,
        "noop_max": noop_max,
        "max_frames": 108_000,
        "auto_fire": True,
        "full_action_space": False,
    }
    assert env_config["terminal_on_life_loss"] is lives_end
    assert env_config["clip_rewards"] is True


def test_env_runners_share_the_games() -> None:
    config = translated("PPO", resources={"num_env_runners": 4})
    assert_values(
        config,
        {
            "num_env_runners": 4,
            "num_envs_per_env_runner": 2,
            "train_batch_size_per_learner": 1_024,
            "restart_failed_env_runners": True,
        },
    )
    assert config.env_config["num_threads"] == 1


def test_learners_share_the_batch() -> None:
    config = translated("PPO", resources={"num_learners": 2})
    assert_values(
        config, {"num_learners": 2, "train_batch_size_per_learner": 512, "minibatch_size": 128}
    )


def test_the_experiment_itself_goes_along() -> None:
    config = translated("PPO")
    assert ExperimentConfig.model_validate(config.experiment).seed == 7
