"""The sweep that `retro-ml run` is asked for by several games, algorithms or seeds."""

from __future__ import annotations

from typing import Any

from retro_ml.core.experiments.command_line import CommandLine

MAX_SEEDS = 10_000


def sweep_fields(call: CommandLine, fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of a SweepConfig, and what is wrong with them, one line each.

    Args:
        call: what is swept.
        fields: of the experiment, all layers merged.
    """
    faults = []
    base = {name: value for name, value in fields.items() if name not in call.grid}
    spec: dict[str, Any] = {"name": base.pop("experiment_id", None)}
    if "output_dir" in base:
        spec["output_dir"] = base.pop("output_dir")
    base.pop("created_at", None)
    grid: dict[str, Any] = {name: list(values) for name, values in call.grid.items()}
    if call.num_seeds is not None:
        first = _read_whole(base.pop("seed", 0), least=0)
        count = _read_whole(call.num_seeds, least=1)
        if count is None or count > MAX_SEEDS:
            allowed = f"how many seeds, from 1 up to {MAX_SEEDS:,}"
            faults.append(f"--seeds: {call.num_seeds} -> {allowed}")
        elif first is None:
            faults.append(f"seed: {fields['seed']} -> a whole number, the first of --seeds")
        else:
            grid["seed"] = list(range(first, first + count))
    return spec | {"base": base, "grid": grid}, faults


def _read_whole(text: Any, *, least: int) -> int | None:
    try:
        number = int(text)
    except (TypeError, ValueError):
        return None
    return number if number >= least else None
