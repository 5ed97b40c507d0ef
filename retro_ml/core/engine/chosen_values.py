"""The values of a trial's fields that the sweep itself does not tell.

A search chooses them when the trial begins, and PBT changes them meanwhile: the trial's own
config.json tells, here or in storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retro_ml.core.engine.run_folder import load_config, parse_config
from retro_ml.core.experiments.sweep_config import SweepConfig
from retro_ml.core.experiments.sweep_trials import PlannedTrial, read_value


class ChosenValues:
    """Reads them.

    Args:
        config: of the sweep.
        stored_configs: config.json of trials that only storage knows, by name.
    """

    def __init__(self, config: SweepConfig, stored_configs: Mapping[str, bytes]) -> None:
        self._config = config
        self._stored_configs = stored_configs

    def paths(self, planned: PlannedTrial) -> list[str]:
        """The fields that they are of."""
        if self._config.scheduler == "pbt":
            return [path for path in self._config.distributions if path in planned.values]
        return list(planned.open)

    def read(self, planned: PlannedTrial) -> dict[str, Any] | None:
        """Their values by path; None where the trial has not begun. Raises: BadRunFolder."""
        stored = self._stored_configs.get(planned.experiment_id)
        if planned.config.paths.config_path.exists():
            config = load_config(planned.config)
        elif stored is not None:
            config = parse_config(stored, planned.config)
        else:
            return None
        return {path: read_value(config, path) for path in self.paths(planned)}
