"""ExperimentConfig -> RLlib's AlgorithmConfig: the one place where the two meet.

`translate(config).build_algo()` gives a working RLlib Algorithm; the same object is what Ray Tune
runs. RLlib's own names are used for all that RLlib knows; the rest are fields of our classes.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.machine import count_cpus
from retro_ml.rllib.a2c import A2CConfig
from retro_ml.rllib.dqn import DQNConfig
from retro_ml.rllib.ppo import PPOConfig


def translate(
    config: ExperimentConfig, *, num_cpus: int | None = None, num_gpus: float | None = None
) -> AlgorithmConfig:
    """The RLlib config of an experiment.

    Args:
        config: the experiment.
        num_cpus: CPUs, and so threads, of the trial's main process, where the config leaves it
            open; by default all that this process may use.
        num_gpus: GPUs of the trial, where the config leaves it open; by default one if use_gpu is
            true and this process sees one.
    """
    resources = config.resources
    cpus = resources.num_cpus or num_cpus or count_cpus()
    gpus = _choose_gpus(config, num_gpus)
    learners = max(resources.num_learners, 1)
    algorithm = {"PPO": _translate_ppo, "A2C": _translate_a2c, "DQN": _translate_dqn}
    translated = algorithm[config.algorithm](config, learners)
    translated.environment(config.game.rom, env_config=_env_config(config, cpus))
    translated.env_runners(
        num_env_runners=resources.num_env_runners,
        num_envs_per_env_runner=resources.games_per_env_runner,
        rollout_fragment_length=config.settings.rollout_length,
        num_cpus_per_env_runner=1,
        # However slow: RLlib drops what comes late, asks again, and never learns from it (2.60).
        sample_timeout_s=None,
    )
    translated.learners(
        num_learners=resources.num_learners,
        num_gpus_per_learner=gpus / learners,
    )
    translated.resources(num_cpus_for_main_process=cpus)
    translated.framework("torch")
    translated.debugging(log_level="WARN")
    translated.fault_tolerance(restart_failed_env_runners=True)
    translated.rl_module(model_config=_model_config(config, gpus))
    translated.experiment = config.model_dump(mode="json")
    translated.run_seed = config.seed
    if config.init_from is not None:
        translated.initial_weights = str(config.paths.initial_weights_path)
    translated.torch_threads = cpus
    return translated


def _translate_ppo(config: ExperimentConfig, learners: int) -> AlgorithmConfig:
    settings = config.ppo
    translated = PPOConfig().training(
        lr=_linear(settings.learning_rate, 0.0, config.schedule_agent_steps),
        gamma=settings.gamma,
        lambda_=settings.gae_lambda,
        clip_param=settings.clip,
        entropy_coeff=settings.entropy_coefficient,
        vf_loss_coeff=settings.value_loss_coefficient,
        grad_clip=settings.max_grad_norm,
        grad_clip_by="global_norm",
        num_epochs=settings.epochs,
        minibatch_size=settings.minibatch_size // learners,
        train_batch_size_per_learner=config.iteration_agent_steps // learners,
        shuffle_batch_per_epoch=True,
    )
    translated.adam_eps = settings.adam_eps
    translated.normalize_advantages = settings.normalize_advantages
    return translated


def _translate_a2c(config: ExperimentConfig, learners: int) -> AlgorithmConfig:
    settings = config.a2c
    final = 0.0 if settings.anneal_learning_rate else settings.learning_rate
    rollout_agent_steps = config.num_games * settings.rollout_length
    translated = A2CConfig().training(
        lr=_linear(settings.learning_rate, final, config.schedule_agent_steps),
        gamma=settings.gamma,
        lambda_=settings.gae_lambda,
        entropy_coeff=settings.entropy_coefficient,
        vf_loss_coeff=settings.value_loss_coefficient,
        grad_clip=settings.max_grad_norm,
        grad_clip_by="global_norm",
        train_batch_size_per_learner=rollout_agent_steps // learners,
    )
    translated.rmsprop_alpha = settings.rmsprop_alpha
    translated.rmsprop_eps = settings.rmsprop_eps
    translated.rmsprop_eps_inside_root = settings.rmsprop_eps_inside_root
    translated.updates_per_iteration = config.iteration_agent_steps // rollout_agent_steps
    return translated


def _translate_dqn(config: ExperimentConfig, learners: int) -> AlgorithmConfig:
    settings = config.dqn
    rollout_agent_steps = config.num_games * settings.rollout_length
    translated = DQNConfig().training(
        lr=settings.learning_rate,
        gamma=settings.gamma,
        n_step=settings.n_step,
        epsilon=_epsilon(config),
        double_q=settings.double,
        dueling=settings.dueling,
        td_error_loss_fn=settings.loss,
        grad_clip=settings.max_grad_norm,
        grad_clip_by="global_norm",
        num_steps_sampled_before_learning_starts=settings.warmup_agent_steps,
        target_network_update_freq=settings.target_update_agent_steps,
        train_batch_size_per_learner=settings.batch_size // learners,
    )
    translated.adam_eps = settings.adam_eps
    translated.replay_size = settings.replay_size
    translated.prioritized = settings.prioritized
    translated.prioritized_alpha = settings.prioritized_alpha
    translated.prioritized_beta = settings.prioritized_beta
    translated.beta_agent_steps = config.schedule_agent_steps
    translated.agent_steps_per_update = settings.agent_steps_per_update
    translated.rounds_per_iteration = config.iteration_agent_steps // rollout_agent_steps
    return translated


def _env_config(config: ExperimentConfig, cpus: int) -> dict[str, Any]:
    environment = config.environment
    exploration: Any = "softmax"
    if config.algorithm == "DQN":
        exploration = _epsilon(config)
    return {
        "settings": {
            "rom": config.game.rom,
            "sticky_actions": environment.sticky_actions,
            "noop_max": environment.noop_max,
            "max_frames": environment.max_frames,
            "auto_fire": environment.auto_fire,
            "full_action_space": environment.full_action_space,
        },
        "clip_rewards": environment.clip_rewards,
        "terminal_on_life_loss": environment.terminal_on_life_loss,
        "num_threads": 1 if config.resources.num_env_runners else cpus,
        "exploration": exploration,
    }


def _model_config(config: ExperimentConfig, gpus: float) -> dict[str, Any]:
    model_config: dict[str, Any] = {
        "precision": config.resources.precision,
        "device": "cuda" if gpus else "cpu",
    }
    if config.algorithm == "DQN":
        model_config["dueling"] = config.dqn.dueling
    return model_config


def _choose_gpus(config: ExperimentConfig, num_gpus: float | None) -> float:
    if not config.use_gpu:
        return 0.0
    if config.resources.num_gpus is not None:
        return config.resources.num_gpus
    if num_gpus is not None:
        return num_gpus
    return 1.0 if torch.cuda.is_available() else 0.0


def _epsilon(config: ExperimentConfig) -> list[list[float]]:
    """Epsilon in the same notation: it may stand still before it falls."""
    dqn = config.dqn
    assert dqn.epsilon_agent_steps is not None  # filled in when the config was built
    hold = dqn.epsilon_hold_agent_steps
    standing = [[0, dqn.epsilon_initial]] if hold else []
    end = hold + dqn.epsilon_agent_steps
    return [*standing, [hold, dqn.epsilon_initial], [end, dqn.epsilon_final]]


def _linear(first: float, last: float, agent_steps: int) -> list[list[float]]:
    """RLlib's notation of a value that goes from `first` to `last` over so many agent steps."""
    return [[0, first], [agent_steps, last]]
