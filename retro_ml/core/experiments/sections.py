"""The sections of an ExperimentConfig: games, machine, checkpoints and each algorithm's settings.

Every value stands here once, with its unit and its source. A default of None is filled in when the
config is built (config.py says how) so that a saved config is explicit.

Deviations on purpose: frame skip 4 with the maximum of the last two frames, 84 x 84 grey pixels and
a stack of 4 (Mnih et al. 2015) are no fields, because the network and saved agents rely on them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retro_ml.core.experiments.fields import FrozenModel, Real, Switch, Whole

MAX_AGENT_STEPS = 10**10


class EnvironmentConfig(FrozenModel):
    """How the game is played."""

    sticky_actions: Real | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="probability that the emulator repeats the previous action; by default as the "
        "game id says: 0.25 for ALE/...-v5, otherwise 0 (Machado et al. 2018)",
    )
    noop_max: Whole | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="a game starts with 1 to this many frames of no-ops, 0 for none; by default 0 "
        "for ALE/...-v5 (Machado et al. 2018), otherwise 30 (Mnih et al. 2015)",
    )
    max_frames: Whole = Field(
        default=108_000,
        ge=4,
        le=2**31 - 1,
        description="frames after which a game is cut off: 30 minutes (Machado et al. 2018)",
    )
    terminal_on_life_loss: Switch | None = Field(
        default=None,
        description="training takes a lost life for the end; by default false for ALE/...-v5 "
        "(Machado et al. 2018), otherwise true (Mnih et al. 2015)",
    )
    auto_fire: Switch = Field(
        default=True,
        description="FIRE is pressed when a game starts and after a lost life, where the game has "
        "it, so that a greedy agent cannot stall (OpenAI Baselines, FireResetEnv)",
    )
    full_action_space: Switch = Field(
        default=False,
        description="all 18 actions instead of the game's own (Machado et al. 2018 use all 18, "
        "Mnih et al. 2015 the game's own)",
    )
    clip_rewards: Switch = Field(
        default=True, description="training sees the sign of each reward (Mnih et al. 2015)"
    )


class ResourcesConfig(FrozenModel):
    """What the run takes of the machine or cluster."""

    num_env_runners: Whole = Field(
        default=0,
        ge=0,
        le=10_000,
        description="processes that play; 0: the trial's own process plays (RLlib's default)",
    )
    games_per_env_runner: Whole | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="games that one process plays at a time; by default PPO's 8 (Schulman et al. "
        "2017), A2C's 16 (OpenAI Baselines) or DQN's 4 (this project's choice) are split evenly",
    )
    num_learners: Whole = Field(
        default=0,
        ge=0,
        le=1_000,
        description="processes that learn; 0: the trial's own process learns (RLlib's default)",
    )
    num_gpus: Real | None = Field(
        default=None,
        ge=0,
        le=1_000,
        description="GPUs for the run, a fraction shares one; by default decided at the start "
        "from use_gpu and what is there",
    )
    num_cpus: Whole | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="CPUs and torch threads of the run's main process; by default decided at the "
        "start from what is there",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="arithmetic of the network; auto: bf16 where the hardware has it "
        "(this project's choice)",
    )
    max_failures: Whole = Field(
        default=3,
        ge=0,
        le=1_000_000,
        description="how often a failed run is tried again from its last checkpoint "
        "(this project's choice)",
    )


class CheckpointingConfig(FrozenModel):
    """When training is saved."""

    every_steps: Whole = Field(
        default=50_000,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps from one checkpoint to the next (this project's choice)",
    )
    keep: Whole = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description="newest checkpoints to keep (this project's choice)",
    )


class EvaluationConfig(FrozenModel):
    """Whole games played by the agent between two iterations; training goes on unchanged."""

    every_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps from one evaluation to the next; by default there is none",
    )
    episodes: Whole = Field(
        default=30, ge=1, le=100_000, description="whole games of each (this project's choice)"
    )
    protocol: Literal["machado", "noop"] | None = Field(
        default=None,
        description="machado: sticky actions of 0.25 (Machado et al. 2018); noop: 1 to 30 no-ops "
        "at the start (Mnih et al. 2015); by default machado for ALE/...-v5, otherwise noop",
    )


class PPOSettings(FrozenModel):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

    learning_rate: Real = Field(
        default=2.5e-4,
        gt=0,
        le=1,
        description="Adam's step size at the start, annealed linearly to 0 "
        "(Schulman et al. 2017, table 5)",
    )
    schedule_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps until the step size is 0; by default total_timesteps, "
        "10,000,000 in the literature (Schulman et al. 2017)",
    )
    rollout_length: Whole = Field(
        default=128,
        ge=1,
        le=100_000,
        description="agent steps of each game between updates (Schulman et al. 2017, table 5)",
    )
    epochs: Whole = Field(
        default=4,
        ge=1,
        le=1_000,
        description="passes over each rollout (OpenAI Baselines, ppo2 for Atari)",
    )
    minibatch_size: Whole = Field(
        default=256,
        ge=1,
        le=10_000_000,
        description="agent steps in one gradient step (Schulman et al. 2017, table 5: 32 x 8)",
    )
    adam_eps: Real = Field(
        default=1e-5, gt=0, le=1, description="Adam's epsilon (OpenAI Baselines; Huang et al. 2022)"
    )
    gamma: Real = Field(
        default=0.99, ge=0, le=1, description="discount (Schulman et al. 2017, table 5)"
    )
    gae_lambda: Real = Field(
        default=0.95,
        ge=0,
        le=1,
        description="lambda of the advantage estimate (Schulman et al. 2017, table 5)",
    )
    clip: Real = Field(
        default=0.1,
        gt=0,
        le=1,
        description="clip range of the probability ratio, kept constant (CleanRL, ppo_atari; "
        "Schulman et al. 2017 anneal it)",
    )
    entropy_coefficient: Real = Field(
        default=0.01,
        ge=0,
        le=10,
        description="weight of the entropy (Schulman et al. 2017, table 5)",
    )
    value_loss_coefficient: Real = Field(
        default=0.5,
        ge=0,
        le=100,
        description="weight of the value's mean squared error (OpenAI Baselines, "
        "Stable-Baselines3)",
    )
    max_grad_norm: Real | None = Field(
        default=0.5,
        gt=0,
        le=1e6,
        description="global gradient norm, null for no limit (OpenAI Baselines; Huang et al. 2022)",
    )
    normalize_advantages: Switch = Field(
        default=True,
        description="advantages of each minibatch to mean 0 and deviation 1 (OpenAI Baselines; "
        "Huang et al. 2022)",
    )


class A2CSettings(FrozenModel):
    """Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783), synchronous."""

    learning_rate: Real = Field(
        default=7e-4, gt=0, le=1, description="RMSprop's step size at the start (OpenAI Baselines)"
    )
    anneal_learning_rate: Switch = Field(
        default=True,
        description="the step size falls linearly to 0 (Mnih et al. 2016; nnabla-rl and OpenAI "
        "Baselines do, Stable-Baselines3 does not)",
    )
    schedule_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps until the step size is 0; by default total_timesteps "
        "(OpenAI Baselines; nnabla-rl: 50,000,000)",
    )
    rollout_length: Whole = Field(
        default=5,
        ge=1,
        le=100_000,
        description="agent steps of each game between updates (Mnih et al. 2016)",
    )
    rmsprop_alpha: Real = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="RMSprop's decay of squared gradients (Mnih et al. 2016)",
    )
    rmsprop_eps: Real = Field(
        default=1e-5, gt=0, le=1, description="RMSprop's epsilon (OpenAI Baselines, nnabla-rl)"
    )
    rmsprop_eps_inside_root: Switch = Field(
        default=False,
        description="epsilon is added under the root, as TensorFlow does (Stable-Baselines3), "
        "instead of outside (nnabla-rl, PyTorch)",
    )
    gamma: Real = Field(default=0.99, ge=0, le=1, description="discount (Mnih et al. 2016)")
    gae_lambda: Real = Field(
        default=1.0,
        ge=0,
        le=1,
        description="lambda of the advantage estimate; 1: plain n-step returns (Mnih et al. 2016)",
    )
    entropy_coefficient: Real = Field(
        default=0.01, ge=0, le=10, description="weight of the entropy (Mnih et al. 2016)"
    )
    value_loss_coefficient: Real = Field(
        default=0.5,
        ge=0,
        le=100,
        description="weight of the value's mean squared error (nnabla-rl; Stable-Baselines3's "
        "Atari settings: 0.25)",
    )
    max_grad_norm: Real | None = Field(
        default=0.5,
        gt=0,
        le=1e6,
        description="global gradient norm, null for no limit (OpenAI Baselines, nnabla-rl)",
    )


class DQNSettings(FrozenModel):
    """Deep Q-learning (Mnih et al. 2015, Nature 518)."""

    learning_rate: Real = Field(
        default=1e-4, gt=0, le=1, description="Adam's step size, constant (CleanRL, dqn_atari)"
    )
    adam_eps: Real = Field(
        default=1e-8, gt=0, le=1, description="Adam's epsilon (Kingma and Ba 2015; PyTorch)"
    )
    schedule_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps that the defaults of replay, warm-up and epsilon are reckoned "
        "from; by default total_timesteps, 10,000,000 in the literature (CleanRL, dqn_atari)",
    )
    batch_size: Whole = Field(
        default=32, ge=1, le=1_000_000, description="transitions in one update (Mnih et al. 2015)"
    )
    agent_steps_per_update: Whole = Field(
        default=4, ge=1, le=1_000_000, description="agent steps for each update (Mnih et al. 2015)"
    )
    rollout_length: Whole = Field(
        default=4,
        ge=1,
        le=100_000,
        description="agent steps of each game between two rounds of updates "
        "(this project's choice)",
    )
    gamma: Real = Field(default=0.99, ge=0, le=1, description="discount (Mnih et al. 2015)")
    replay_size: Whole | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="transitions kept for replay; by default all of the schedule's agent steps, "
        "1,000,000 at most (Mnih et al. 2015)",
    )
    warmup_agent_steps: Whole | None = Field(
        default=None,
        ge=0,
        le=MAX_AGENT_STEPS,
        description="agent steps before the first update; by default 5 % of the schedule, "
        "80,000 at most (CleanRL, dqn_atari: 80,000)",
    )
    epsilon_initial: Real = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of random actions at the start (Mnih et al. 2015)",
    )
    epsilon_final: Real = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of random actions at the end (CleanRL, Dopamine)",
    )
    epsilon_agent_steps: Whole | None = Field(
        default=None,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps from the first share to the last, linearly; by default 10 % of "
        "the schedule (CleanRL, dqn_atari; Stable-Baselines3)",
    )
    epsilon_hold_agent_steps: Whole = Field(
        default=0,
        ge=0,
        le=MAX_AGENT_STEPS,
        description="agent steps at the first share before it begins to fall (CleanRL, dqn_atari: "
        "0; Dopamine: those of the warm-up)",
    )
    target_update_agent_steps: Whole = Field(
        default=1_000,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps from one copy to the target network to the next "
        "(CleanRL, dqn_atari)",
    )
    loss: Literal["huber", "mse"] = Field(
        default="huber",
        description="loss of the temporal difference (Mnih et al. 2015 clip its error)",
    )
    max_grad_norm: Real | None = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="global gradient norm, null for no limit (Stable-Baselines3)",
    )
    double: Switch = Field(default=False, description="double Q-learning (van Hasselt et al. 2016)")
    dueling: Switch = Field(default=False, description="dueling network (Wang et al. 2016)")
    n_step: Whole = Field(
        default=1,
        ge=1,
        le=100,
        description="steps of a return (1: Mnih et al. 2015; 3: Hessel et al. 2018)",
    )
    prioritized: Switch = Field(
        default=False, description="proportional prioritised replay (Schaul et al. 2016)"
    )
    prioritized_alpha: Real = Field(
        default=0.5, ge=0, le=1, description="exponent of the priorities (Hessel et al. 2018)"
    )
    prioritized_beta: Real = Field(
        default=0.4,
        ge=0,
        le=1,
        description="exponent of the importance weights at the start, 1 at the schedule's end "
        "(Hessel et al. 2018)",
    )
