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
    before, now = read_fields(stored), read_fields(given)
    ignored = NOT_COMPARED | _find_reckoned(stored, given)
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new or name in ignored or (name == PRECISION and new == "auto"):
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
    if _spans_whole_run(stored) and _spans_whole_run(given):
        fields[stored.algorithm.lower()][SCHEDULE] = given.total_timesteps
    return ExperimentConfig.model_validate(fields)


def _find_reckoned(stored: ExperimentConfig, given: ExperimentConfig) -> set[str]:
    """Fields that neither config was given, but that were reckoned from its number of steps.

    A run that was made longer keeps what was reckoned when it began, for fewer steps than it has.
    """
    reckoned = _reckon(given, given.total_timesteps)
    names = [name for name in reckoned if getattr(given.settings, name) == reckoned[name]]
    at_first = {name: getattr(stored.settings, name, None) for name in names}
    today = _reckon(stored, stored.total_timesteps)
    found = {name for name in at_first if at_first[name] == today.get(name)}
    at_first.pop(SCHEDULE, None)  # it has followed the run's length
    for total in _guess_first_totals(stored):
        if at_first.items() <= _reckon(stored, total).items():
            found |= at_first.keys()
    return {f"{given.algorithm.lower()}.{name}" for name in found}


def _reckon(config: ExperimentConfig, total: int) -> dict[str, Any]:
    """What a run of `total` agent steps gets where nothing is given."""
    settings = config.settings
    names = [name for name in _DERIVED if name in type(settings).model_fields]
    if not _spans_whole_run(config):
        names.remove(SCHEDULE)
    blank = settings.model_copy(update=dict.fromkeys(names))
    filled = fill_settings(blank, total_timesteps=total)
    return {name: getattr(filled, name) for name in names}


def _guess_first_totals(stored: ExperimentConfig) -> set[int]:
    """The numbers of agent steps that a run may have had when it began, today's among them."""
    totals = {stored.total_timesteps}
    if stored.algorithm == "DQN":
        settings = stored.dqn
        for value, parts in ((settings.replay_size, 1), (settings.epsilon_agent_steps, 10),
                             (settings.warmup_agent_steps, 20)):  # fmt: skip
            totals |= set(range(parts * (value or 0), parts * ((value or 0) + 1)))
    return {total for total in totals if 0 < total <= stored.total_timesteps}


def _spans_whole_run(config: ExperimentConfig) -> bool:
    return config.settings.schedule_agent_steps == config.total_timesteps


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
