"""Published scores beside which a run's are shown.

Two tables hold what was published and where, row by row: scores along a learning curve, and scores
at the end of a full training, 4 frames being an agent step. How they were scored differs from row
to row.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.games import GameNotFound, find_game

CURVES, SCORES = "reference_curves.csv", "reference_scores.csv"
FRAMES_PER_AGENT_STEP = 4
NEAR = 0.1
"""Share by which agent steps may differ where scores are shown side by side (our choice)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One published figure."""

    game: str
    algorithm: str
    implementation: str
    agent_steps: int
    score: float
    std: float | None
    """Over what the source says: games or seeds."""
    seeds: int
    protocol: str
    source: str
    url: str = ""
    """Where the source can be looked at."""
    is_final: bool = False
    """The end of a full training, not a point on the way."""

    @property
    def rom(self) -> str | None:
        """The game's ROM; None where the installed ale-py has none."""
        return _find_rom(self.game)

    @property
    def is_sticky(self) -> bool:
        """Whether its games had sticky actions."""
        return self.protocol.lower().startswith("sticky")


def load_references(
    folder: Traversable | None = None,
) -> tuple[list[Reference], list[Reference]]:
    """Points of learning curves, and final scores.

    Args:
        folder: of the two tables; by default the package's own.
    """
    home = files("retro_ml.reporting") / "data" if folder is None else folder
    curves = _load(home / CURVES, steps="agent_steps", per_agent_step=1, final=False)
    scores = _load(home / SCORES, steps="frames", per_agent_step=FRAMES_PER_AGENT_STEP, final=True)
    return curves, scores


def select_references(config: ExperimentConfig) -> list[Reference]:
    """Those of the config's game and algorithm, played with sticky actions or without as there."""
    game = config.game
    return [
        reference
        for reference in _own_references()
        if reference.rom == game.rom
        and reference.algorithm == config.algorithm
        and reference.is_sticky == (game.protocol == "v5")
    ]


def comparable_references(
    references: Sequence[Reference], *, agent_steps: float
) -> list[Reference]:
    """Those at about as many agent steps: the nearest of each implementation."""
    near = [r for r in references if abs(r.agent_steps - agent_steps) <= NEAR * agent_steps]
    best: dict[tuple[str, str], Reference] = {}
    for reference in sorted(near, key=lambda r: abs(r.agent_steps - agent_steps)):
        best.setdefault((reference.implementation, reference.algorithm), reference)
    return list(best.values())


@cache
def _own_references() -> tuple[Reference, ...]:
    curves, scores = load_references()
    return (*curves, *scores)


@cache
def _find_rom(game: str) -> str | None:
    try:
        return find_game(game).rom
    except GameNotFound:
        return None


def _load(path: Traversable, *, steps: str, per_agent_step: int, final: bool) -> list[Reference]:
    return [
        Reference(
            game=row["game"],
            algorithm=row["algorithm"],
            implementation=row["implementation"],
            agent_steps=int(row[steps]) // per_agent_step,
            score=float(row["score"]),
            std=float(row["std"]) if row["std"] else None,
            seeds=int(row["seeds"]),
            protocol=row["protocol"],
            source=row["source"],
            url=row.get("url", ""),
            is_final=final,
        )
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    ]
