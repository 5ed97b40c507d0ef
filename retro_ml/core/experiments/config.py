"""ExperimentConfig: the single source of truth about a run. Frozen, explicit, exact as JSON.

What the user leaves out is filled in when the config is built, from the game's id, the algorithm,
the preset and the number of steps; the saved config.json therefore says all, and a run that is
extended later keeps the schedule it began with. Validators sit on the last field that they look
at: pydantic then still reports the faults of all other fields in the same error.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from retro_ml.core.experiments.derived import (
    build_experiment_id,
    check_environment,
    check_resources,
    check_settings,
    fill_environment,
    fill_resources,
    fill_settings,
)
from retro_ml.core.experiments.faults import describe_faults, raise_faults
from retro_ml.core.experiments.fields import FrozenModel, Moment, Real, Switch, Text, Whole
from retro_ml.core.experiments.games import GameSpec, find_game
from retro_ml.core.experiments.locations import is_uri, normalize_uri
from retro_ml.core.experiments.presets import find_preset
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.core.experiments.run_type import RunType
from retro_ml.core.experiments.sections import (
    MAX_AGENT_STEPS,
    A2CSettings,
    CheckpointingConfig,
    DQNSettings,
    EnvironmentConfig,
    EvaluationConfig,
    PPOSettings,
    ResourcesConfig,
)
from retro_ml.core.experiments.seeds import MAX_SEED

# A2C and DQN update so often that one `train()` must hold many updates: its own cost is fixed. DQN
# is the slowest, and a run that is to stop does so at an iteration's end.
_MIN_ITERATION_AGENT_STEPS = {"A2C": 1_000, "DQN": 250}

# The default of fields that a validator fills; their type is what everybody else sees.
_TO_BE_FILLED: Any = None

_SHA256 = re.compile("[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class ExperimentConfig(FrozenModel):
    """One run, completely described. Raises pydantic's ValidationError with all faults at once."""

    experiment_id: str = Field(
        default=_TO_BE_FILLED,
        validate_default=False,
        description="the run's name and folder; by default made of game, algorithm, seed, time "
        "and four random characters",
    )
    game_id: Text = Field(
        description="the game, in any spelling: BreakoutNoFrameskip-v4, ALE/Breakout-v5, breakout"
    )
    algorithm: Literal["PPO", "A2C", "DQN"] = Field(
        default="PPO", description="the algorithm, in any case"
    )
    run_type: RunType = Field(
        default=RunType.QUICK,
        description="how long: QUICK 10,000, SHORT 500,000, MEDIUM 2,000,000, LONG 10,000,000 "
        "agent steps, or CUSTOM, which total_timesteps alone means too",
    )
    total_timesteps: Whole = Field(
        default=_TO_BE_FILLED,
        ge=1,
        le=MAX_AGENT_STEPS,
        description="agent steps to train for; by default those of run_type",
    )
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED, description="the seed of all randomness")
    output_dir: Text = Field(
        default="runs",
        description="the folder that the run's own folder is made in, or storage: "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, file:///FOLDER",
    )
    use_gpu: Switch = Field(default=True, description="use a GPU if there is one")
    created_at: Moment = Field(
        default_factory=lambda: datetime.now(UTC),
        description="when the config was made, ISO 8601 with a time zone; by default now",
    )
    preset: str | None = Field(
        default=None,
        description="published settings: sb3 or nnabla for A2C, dopamine for DQN; "
        "they fill what is not set otherwise",
    )
    init_from: Text | None = Field(
        default=None,
        description="a model.zip, or a zip of Stable-Baselines3 (CnnPolicy), whose weights the run "
        "begins with; by default they are drawn",
    )
    init_sha256: Text | None = Field(
        default=None,
        description="sha256 of that file: another one is refused; by default taken at the start",
    )
    environment: EnvironmentConfig = Field(
        default=EnvironmentConfig(), description="how the game is played"
    )
    resources: ResourcesConfig = Field(
        default=ResourcesConfig(), description="what the run takes of the machine"
    )
    checkpointing: CheckpointingConfig = Field(
        default=CheckpointingConfig(), description="when training is saved"
    )
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="how the agent is scored during training"
    )
    video_every: Real | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the run from one film of the agent to the next, e.g. 0.1; "
        "checkpoints are then saved at least as often; needs retro_ml[video]; by default nothing "
        "is filmed",
    )
    ppo: PPOSettings = Field(default=PPOSettings(), description="PPO's hyperparameters")
    a2c: A2CSettings = Field(default=A2CSettings(), description="A2C's hyperparameters")
    dqn: DQNSettings = Field(default=DQNSettings(), description="DQN's hyperparameters")

    # What follows from the fields.

    @property
    def game(self) -> GameSpec:
        """The ROM and protocol that `game_id` means."""
        return find_game(self.game_id)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the run begins, a sentence each."""
        notes = [self.game.note] if self.game.note else []
        warmup = self.dqn.warmup_agent_steps
        if self.algorithm == "DQN" and warmup is not None and warmup >= self.total_timesteps:
            notes.append(
                f"nothing is learned in {self.total_timesteps:,} agent steps: the warm-up, "
                f"dqn.warmup_agent_steps, takes {warmup:,}"
            )
        return tuple(notes)

    @property
    def settings(self) -> PPOSettings | A2CSettings | DQNSettings:
        """The chosen algorithm's section."""
        if self.algorithm == "PPO":
            return self.ppo
        return self.a2c if self.algorithm == "A2C" else self.dqn

    @property
    def schedule_agent_steps(self) -> int:
        """Agent steps over which the chosen algorithm's schedules run."""
        return self.settings.schedule_agent_steps or self.total_timesteps

    @property
    def num_games(self) -> int:
        """Games played at a time, by all env runners together."""
        return max(1, self.resources.num_env_runners) * (self.resources.games_per_env_runner or 1)

    @property
    def iteration_agent_steps(self) -> int:
        """Agent steps of one iteration, i.e. of one `train()`; a run ends with a whole one."""
        rollout_agent_steps = self.num_games * self.settings.rollout_length
        if self.algorithm == "PPO":
            return rollout_agent_steps
        least = _MIN_ITERATION_AGENT_STEPS[self.algorithm]
        return -(-least // rollout_agent_steps) * rollout_agent_steps

    @property
    def checkpoint_iterations(self) -> int:
        """Iterations from one checkpoint to the next, no more than from one film to the next."""
        iterations = round(self.checkpointing.every_steps / self.iteration_agent_steps)
        if self.video_every is not None:
            film_agent_steps = self.video_every * self.total_timesteps
            iterations = min(iterations, int(film_agent_steps / self.iteration_agent_steps))
        return max(1, iterations)

    @property
    def paths(self) -> RunPaths:
        """Every file of the run."""
        return RunPaths(output_dir=self.output_dir, experiment_id=self.experiment_id)

    @property
    def experiment_dir(self) -> Path:
        """The run's folder."""
        return self.paths.experiment_dir

    @property
    def config_path(self) -> Path:
        """config.json."""
        return self.paths.config_path

    @property
    def status_path(self) -> Path:
        """status.json."""
        return self.paths.status_path

    @property
    def metrics_path(self) -> Path:
        """metrics.json."""
        return self.paths.metrics_json_path

    @property
    def events_path(self) -> Path:
        """events.log."""
        return self.paths.events_path

    @property
    def log_path(self) -> Path:
        """training.log."""
        return self.paths.log_path

    @property
    def model_path(self) -> Path:
        """model.zip."""
        return self.paths.model_path

    @property
    def checkpoints_dir(self) -> Path:
        """checkpoints/."""
        return self.paths.checkpoints_dir

    # Validation, in the order of the fields; `info.data` holds the valid ones before.

    @model_validator(mode="before")
    @classmethod
    def _choose_run_type(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("run_type") is None:
            alone = data.get("total_timesteps") is not None
            return data | {"run_type": RunType.CUSTOM if alone else RunType.QUICK}
        return data

    @field_validator("experiment_id")
    @classmethod
    def _check_experiment_id(cls, name: str) -> str:
        if not _PLAIN_NAME.fullmatch(name) or name.endswith("."):
            raise ValueError(
                "a plain name of 1 to 100 letters, digits, '.', '_' or '-', "
                "with a letter or digit first and no '.' last"
            )
        return name

    @field_validator("game_id")
    @classmethod
    def _check_game_id(cls, game_id: str) -> str:
        find_game(game_id)
        return game_id.strip()

    @field_validator("algorithm", "run_type", mode="before")
    @classmethod
    def _read_any_case(cls, name: Any) -> Any:
        return name.strip().upper() if isinstance(name, str) else name

    @field_validator("total_timesteps", mode="before")
    @classmethod
    def _fill_total_timesteps(cls, total: Any, info: ValidationInfo) -> Any:
        if total is not None:
            return total
        agent_steps = info.data.get("run_type", RunType.QUICK).agent_steps
        if agent_steps is None:
            raise ValueError("a run of type CUSTOM needs a number of agent steps")
        return agent_steps

    @field_validator("total_timesteps")
    @classmethod
    def _check_total_timesteps(cls, total: int, info: ValidationInfo) -> int:
        run_type = info.data.get("run_type", RunType.CUSTOM)
        if run_type.agent_steps not in {None, total}:
            raise ValueError(
                f"run_type {run_type.value} means {run_type.agent_steps:,} agent steps; "
                "leave one of the two out, or set run_type to CUSTOM"
            )
        return total

    @field_validator("output_dir", mode="before")
    @classmethod
    def _read_output_dir(cls, path: Any) -> Any:
        return os.fspath(path) if isinstance(path, os.PathLike) else path

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, path: str) -> str:
        if not path.strip() or "\0" in path:
            raise ValueError("a folder's path, e.g. runs")
        if is_uri(path.strip()):
            return normalize_uri(path)
        return os.path.expanduser(path)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and "algorithm" in info.data:
            find_preset(name, algorithm=info.data["algorithm"])
        return name.lower() if name is not None else None

    @field_validator("init_from", mode="before")
    @classmethod
    def _read_init_from(cls, path: Any) -> Any:
        return os.fspath(path) if isinstance(path, os.PathLike) else path

    @field_validator("init_from")
    @classmethod
    def _check_init_from(cls, path: str | None) -> str | None:
        if path is None:
            return None
        if not path.strip() or "\0" in path:
            raise ValueError("a file's path, e.g. runs/my-run/model.zip")
        return os.path.abspath(os.path.expanduser(path))

    @field_validator("init_sha256")
    @classmethod
    def _check_init_sha256(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        if sha256 is not None and info.data.get("init_from", "") is None:
            raise ValueError("the sum of init_from, which is not given")
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            raise ValueError("64 hexadecimal digits in lower case, as sha256sum prints them")
        return sha256

    @field_validator("environment")
    @classmethod
    def _fill_environment(
        cls, environment: EnvironmentConfig, info: ValidationInfo
    ) -> EnvironmentConfig:
        raise_faults(check_environment(environment))
        if "game_id" not in info.data:
            return environment
        return fill_environment(environment, find_game(info.data["game_id"]))

    @field_validator("resources")
    @classmethod
    def _fill_resources(cls, resources: ResourcesConfig, info: ValidationInfo) -> ResourcesConfig:
        given = info.data
        raise_faults(
            check_resources(
                resources, algorithm=given.get("algorithm"), use_gpu=given.get("use_gpu")
            )
        )
        if "algorithm" not in given:
            return resources
        return fill_resources(resources, algorithm=given["algorithm"])

    @field_validator("ppo", "a2c", "dqn", mode="before")
    @classmethod
    def _apply_preset(cls, section: Any, info: ValidationInfo) -> Any:
        algorithm, preset = info.data.get("algorithm"), info.data.get("preset")
        if preset is None or algorithm is None or algorithm.lower() != info.field_name:
            return section
        if isinstance(section, PPOSettings | A2CSettings | DQNSettings):
            section = section.model_dump(exclude_unset=True)
        values = find_preset(preset, algorithm=algorithm).values
        return values | section if isinstance(section, dict) else section

    @field_validator("ppo", "a2c", "dqn")
    @classmethod
    def _fill_settings(
        cls, settings: PPOSettings | A2CSettings | DQNSettings, info: ValidationInfo
    ) -> PPOSettings | A2CSettings | DQNSettings:
        given = info.data
        if given.get("algorithm", "").lower() != info.field_name or "total_timesteps" not in given:
            return settings
        settings = fill_settings(settings, total_timesteps=given["total_timesteps"])
        if "resources" in given:
            raise_faults(check_settings(settings, given["resources"]))
        return settings

    @model_validator(mode="after")
    def _fill_experiment_id(self) -> ExperimentConfig:
        if self.experiment_id is None:
            # The only field that needs later ones; a frozen model has no other way in.
            experiment_id = build_experiment_id(
                self.game, self.algorithm, seed=self.seed, created_at=self.created_at
            )
            object.__setattr__(self, "experiment_id", experiment_id)
        return self


def config_faults(error: ValidationError) -> list[str]:
    """One line per fault of a config: `field: value -> what is allowed`."""
    return describe_faults(error, ExperimentConfig)
