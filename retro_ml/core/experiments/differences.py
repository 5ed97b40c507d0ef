"""What tells two configs of one experiment apart, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.derived import fill_settings

# How and where a run is executed, not what it computes. run_type follows from total_timesteps.
NOT_COMPARED = frozenset({"created_at", "output_dir", "use_gpu", "run_type", "video_every"})
TOTAL = "total_timesteps"
PRECISION = "resources.precision"
INIT_SHA256 = "init_sha256"
SCHEDULE = "schedule_agent_steps"
# Reckoned from total_timesteps where they are not given.
_DERIVED = (SCHEDULE, "replay_size", "warmup_agent_steps", "epsilon_agent_steps")


def describe_differences(stored: ExperimentConfig, given: ExperimentConfig) -> list[str]:
    """One line for each field in which `given` would make another run than `stored`.

    A higher total_timesteps only makes it longer. `resources.precision: auto` is whatever the run
    began with, which is stored; so is init_sha256.
    """
    longer = given.total_timesteps > stored.total_timesteps
    before, now = (_read_fields(config, but_derived=longer) for config in (stored, given))
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new or name in NOT_COMPARED or (name == PRECISION and new == "auto"):
            continue
        if name == INIT_SHA256 and new is None:
            continue
        if name == TOTAL and longer:
            continue
        lines.append(f"{name}: {_show(old)} there, {_show(new)} now")
    return lines


def read_fields(config: ExperimentConfig) -> dict[str, Any]:
    """Every value of the config by its path, e.g. `ppo.clip`."""
    return dict(_flatten(config.model_dump(mode="json")))


def continue_config(stored: ExperimentConfig, given: ExperimentConfig) -> ExperimentConfig:
    """`stored` with what `given` may change of it.

    A schedule over the whole run goes over the whole of the longer one.
    """
    fields = stored.model_dump(mode="json")
    new = given.model_dump(mode="json")
    taken = ("output_dir", "use_gpu", "run_type", "video_every", TOTAL)
    fields |= {name: new[name] for name in taken}
    whole = all(one.settings.schedule_agent_steps == one.total_timesteps for one in (stored, given))
    if whole:
        fields[stored.algorithm.lower()][SCHEDULE] = given.total_timesteps
    return ExperimentConfig.model_validate(fields)


def _read_fields(config: ExperimentConfig, *, but_derived: bool) -> dict[str, Any]:
    """Values by path; None for those reckoned from total_timesteps, where these do not count."""
    fields = read_fields(config)
    if not but_derived:
        return fields
    settings, total = config.settings, config.total_timesteps
    names = [name for name in _DERIVED if name in type(settings).model_fields]
    if settings.schedule_agent_steps != total:
        names.remove(SCHEDULE)
    blank = settings.model_copy(update=dict.fromkeys(names))
    reckoned = fill_settings(blank, total_timesteps=total)
    section = config.algorithm.lower()
    same = (name for name in names if getattr(reckoned, name) == getattr(settings, name))
    return fields | {f"{section}.{name}": None for name in same}


def _flatten(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
