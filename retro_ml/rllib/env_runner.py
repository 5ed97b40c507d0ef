"""EnvRunner: batched steps of one vector of Atari games, no Python object per step.

A subclass of RLlib's SingleAgentEnvRunner that replaces what is slow there, the environment and the
inner loop; `sample`, weights, spaces and metrics stay RLlib's. `sample()` returns a list of one
`Rollout` instead of episodes.

The same class serves policies (PPO, A2C: actions sampled from the softmax of the scores) and
action values (DQN: epsilon-greedy); which one is a field of the config's `env_config`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.envs.atari import AtariGames, FinishedGame, GameSettings, Step
from retro_ml.envs.frames import FRAME_CHANNELS, PACKED_FRAME_SHAPE, PACKED_STACK_SHAPE, push_frames
from retro_ml.envs.game_groups import GameGroups
from retro_ml.rllib.exploration import (
    Exploration,
    draw_epsilon_greedy,
    draw_softmax,
    draw_uniform,
)
from retro_ml.rllib.module import Actor
from retro_ml.rllib.rollout import HISTORY, Rollout

Finished = tuple[int, FinishedGame]
"""The agent steps (all games') that a rollout had played when a game ended, and that game."""
ACTION_SEEDS = 2
"""First word of the key from which the generators of actions are derived."""


class AtariEnvRunner(SingleAgentEnvRunner):
    """Plays `config.num_envs_per_env_runner` games side by side.

    `config.env_config` holds `settings` (GameSettings' fields), `clip_rewards`,
    `terminal_on_life_loss`, `num_threads`, and `exploration`: "softmax", or the schedule of epsilon
    as `[[agent_steps, epsilon], ...]`, linear between.
    """

    num_env_steps_sampled_lifetime: int
    env: Any  # GameGroups; None before `make_env`

    def make_env(self) -> None:
        """Builds the games of this runner; they start with the first sample."""
        if self.env is not None:
            self.env.close()
        env_config = dict(self.config.env_config)
        self.num_envs = self.config.num_envs_per_env_runner
        runner = max((self.worker_index or 0) - 1, 0)
        seed = self.config.run_seed
        self.env = GameGroups(
            GameSettings(**env_config["settings"]),
            num_games=self.num_envs,
            num_threads=env_config["num_threads"],
            seed=seed,
            first_game=runner * self.num_envs,
        )
        self._clip_rewards = env_config["clip_rewards"]
        self._terminal_on_life_loss = env_config["terminal_on_life_loss"]
        self._exploration = env_config["exploration"]
        self._has_values = self._exploration == "softmax"
        self._rng = np.random.default_rng(derive_seed(seed, ACTION_SEEDS, runner))
        self._stacks = np.zeros((self.num_envs, *PACKED_STACK_SHAPE), np.uint8)
        self._ages = np.zeros(self.num_envs, np.uint8)
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env,
                "env_context": EnvContext(env_config, worker_index=self.worker_index or 0),
            },
        )

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Rollout]:
        if num_timesteps is None:
            raise ValueError("AtariEnvRunner samples agent steps, not episodes: give num_timesteps")
        if self._needs_initial_reset or force_reset:
            self._start()
        rollout = self._play(-(-num_timesteps // self.num_envs), explore, random_actions)
        # RLlib corrects this count at the end of each iteration; all runners play in step.
        self.num_env_steps_sampled_lifetime += len(rollout) * max(self.num_workers, 1)
        self._increase_sampled_metrics(len(rollout), len(rollout.finished))
        for _, game in rollout.finished:
            self._log_episode_metrics(game.agent_steps, game.score, 0.0)
        return [rollout]

    def get_games_state(self) -> dict[str, Any]:
        """All that decides what this runner plays next, apart from the weights."""
        if self._needs_initial_reset:
            self._start()
        return {
            "emulators": self.env.get_state(),
            "stacks": self._stacks,
            "ages": self._ages,
            "rng": self._rng.bit_generator.state,
            "agent_steps": self.num_env_steps_sampled_lifetime,
        }

    def set_games_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_games_state` was taken."""
        self.env.set_state(state["emulators"])
        self._stacks = np.array(state["stacks"], np.uint8)
        self._ages = np.array(state["ages"], np.uint8)
        self._rng.bit_generator.state = state["rng"]
        self._needs_initial_reset = False
        self.set_agent_steps(int(state["agent_steps"]))

    def set_agent_steps(self, agent_steps: int) -> None:
        """Counts the run's agent steps from here, those of all env runners together."""
        # RLlib adds up the env runners' counts with their next metrics (and resets them on a
        # restore otherwise: ray issues 53877 and 28289).
        before = self.num_env_steps_sampled_lifetime
        self.num_env_steps_sampled_lifetime = agent_steps
        self.metrics.log_value(
            NUM_ENV_STEPS_SAMPLED_LIFETIME,
            (agent_steps - before) // max(self.num_workers, 1),
            reduce="lifetime_sum",
            with_throughput=True,
        )

    def forget_weights(self) -> None:
        """Takes the next weights whatever their number is."""
        self._weights_seq_no = 0

    def _start(self) -> None:
        push_frames(self._stacks, self.env.reset(), np.ones(self.num_envs, np.bool_))
        self._ages[:] = 0
        self._needs_initial_reset = False

    def _play(self, steps: int, explore: bool, random_actions: bool) -> Rollout:
        rollout = self._build_rollout(steps)
        exploration = self._draw_exploration(steps, explore, random_actions)
        actor = self.module.build_actor()
        frames_before = self.env.frames_played
        threads = torch.get_num_threads()

        def play(games: AtariGames, part: slice) -> list[Finished]:
            # Threads have counts of their own, but new ones begin with the last that was set.
            torch.set_num_threads(self.env.threads_per_group)
            return self._play_group(games, part, rollout, exploration, actor)

        try:
            finished = self.env.side_by_side(play)
        finally:
            torch.set_num_threads(threads)
        rollout.finished = sorted(chain(*finished), key=lambda pair: pair[0])
        rollout.frames_played = self.env.frames_played - frames_before
        return rollout

    def _play_group(
        self,
        games: AtariGames,
        part: slice,
        rollout: Rollout,
        exploration: Exploration,
        actor: Actor,
    ) -> list[Finished]:
        """Plays one group's share of a rollout. Returns its games that ended."""
        finished: list[Finished] = []
        stacks = torch.from_numpy(self._stacks[part])  # moves on with every step
        steps = len(rollout.actions)
        for t in range(steps):
            scores, values = actor(stacks)
            rollout.scores[t, part] = scores.numpy()
            if values is not None:
                rollout.values[t, part] = values.numpy()
            actions = exploration.choose(rollout.scores[t, part], t, part)
            rollout.actions[t, part] = actions
            step = games.step(actions)
            self._take(rollout, t, step, part, actor)
            played = (t + 1) * self.num_envs
            finished.extend((played, game) for _, game in step.finished)
        _, values = actor(stacks) if len(rollout.values) else (None, None)
        if values is not None:
            rollout.values[steps, part] = values.numpy()
        return finished

    def _build_rollout(self, steps: int) -> Rollout:
        games, num_actions = self.num_envs, int(self.env.single_action_space.n)
        frames = np.empty((HISTORY + steps + 1, games, *PACKED_FRAME_SHAPE), np.uint8)
        for row in range(HISTORY + 1):
            frames[row] = self._stacks[..., row * FRAME_CHANNELS : (row + 1) * FRAME_CHANNELS]
        rollout = Rollout(
            frames=frames,
            ages=np.empty((steps + 1, games), np.uint8),
            actions=np.empty((steps, games), np.int64),
            scores=np.empty((steps, games, num_actions), np.float32),
            values=np.empty((steps + 1 if self._has_values else 0, games), np.float32),
            rewards=np.empty((steps, games), np.float32),
            terminated=np.empty((steps, games), np.bool_),
            truncated=np.empty((steps, games), np.bool_),
            final_values=np.zeros((steps, games), np.float32),
        )
        rollout.ages[0] = self._ages
        return rollout

    def _draw_exploration(self, steps: int, explore: bool, random_actions: bool) -> Exploration:
        shape = (steps, self.num_envs, int(self.env.single_action_space.n))
        if random_actions:
            return draw_uniform(self._rng, shape)
        if not explore:
            return Exploration()
        if self._exploration == "softmax":
            return draw_softmax(self._rng, shape)
        return draw_epsilon_greedy(self._rng, shape, self.epsilons(steps))

    def epsilons(self, steps: int) -> NDArray[np.float64]:
        """`[steps]`: epsilon at the agent steps of the run at which the next sample is played."""
        moments, shares = zip(*self._exploration, strict=True)
        taken = np.arange(steps) * self.num_envs * max(self.num_workers, 1)
        return np.interp(self.num_env_steps_sampled_lifetime + taken, moments, shares)

    def _take(self, rollout: Rollout, t: int, step: Step, part: slice, actor: Actor) -> None:
        """Notes what step `t` gave one group, and moves its stacks on."""
        rollout.rewards[t, part] = np.sign(step.rewards) if self._clip_rewards else step.rewards
        ended_life = step.life_lost if self._terminal_on_life_loss else False
        rollout.terminated[t, part] = step.terminated | ended_life
        rollout.truncated[t, part] = step.truncated
        stacks = self._stacks[part]
        for index, frame in step.final_frames.items():
            game = part.start + index
            rollout.final_frames[t, game] = frame
            last = np.concatenate([stacks[index, ..., FRAME_CHANNELS:], frame], axis=-1)
            values = actor(torch.from_numpy(last[None]))[1]
            if values is not None:
                rollout.final_values[t, game] = float(values[0])
        push_frames(stacks, step.frames, step.started)
        ages = np.where(step.started, 0, np.minimum(self._ages[part] + 1, HISTORY))
        self._ages[part] = rollout.ages[t + 1, part] = ages
        rollout.frames[HISTORY + t + 1, part] = step.frames
