"""The benchmark suites that come with retro_ml, each a sweep's spec that names its source."""

from __future__ import annotations

from pathlib import Path

SUITES = ("atari-5", "atari-57")


def suite_path(name: str) -> Path:
    """The spec of a suite, by its name in SUITES."""
    return Path(__file__).with_name(f"{name}.yaml")
