"""What a sweep will take, in words: its trials, their agent steps, time and disk."""

from __future__ import annotations

from retro_ml.cluster.plan import plan_run
from retro_ml.core.engine.progress_text import duration, shown_path
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sweep_config import SweepConfig

MOST_SHOWN = 20
"""Trials that are listed."""


def sweep_plan_lines(config: SweepConfig) -> list[str]:
    """Nothing is started for it; the time is that of the trials one after the other."""
    kinds: dict[tuple[str, int], list[ExperimentConfig]] = {}
    for planned in config.trials:
        key = (planned.config.algorithm, planned.config.total_timesteps)
        kinds.setdefault(key, []).append(planned.config)
    plans = {key: plan_run(configs[0]) for key, configs in kinds.items()}
    steps = sum(plans[key].agent_steps * len(configs) for key, configs in kinds.items())
    disk = sum(plans[key].disk_bytes * len(configs) for key, configs in kinds.items())
    times = [plan.time_s for plan in plans.values()]
    time = "no runs of these algorithms beside it to go by"
    if all(one is not None for one in times):
        total = sum((plans[key].time_s or 0) * len(configs) for key, configs in kinds.items())
        time = f"about {duration(total)} of one trial after the other, at the speed of earlier runs"
    free = next(iter(plans.values())).free_disk_bytes
    lines = [
        f"sweep {config.sweep_id}: {len(config.trials):,} trials",
        f"steps: {steps:,} agent steps",
        f"time: {time}",
        f"disk: up to {disk / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free",
        f"scheduler: {config.scheduler}, search: {config.search}",
        f"files: {shown_path(config.paths.sweep_dir)}",
    ]
    lines += [f"  {planned.experiment_id}" for planned in config.trials[:MOST_SHOWN]]
    if len(config.trials) > MOST_SHOWN:
        lines.append(f"  and {len(config.trials) - MOST_SHOWN:,} more")
    return lines
