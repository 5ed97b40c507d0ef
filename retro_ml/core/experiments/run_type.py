"""How long a run is, in words."""

from __future__ import annotations

from enum import Enum


class RunType(str, Enum):
    """How long to train."""

    QUICK = "QUICK"
    SHORT = "SHORT"
    MEDIUM = "MEDIUM"
    LONG = "LONG"
    CUSTOM = "CUSTOM"

    @property
    def agent_steps(self) -> int | None:
        """The agent steps of a run of this type; None for CUSTOM, which takes the user's."""
        return {
            RunType.QUICK: 10_000,
            RunType.SHORT: 500_000,
            RunType.MEDIUM: 2_000_000,
            RunType.LONG: 10_000_000,
        }.get(self)
