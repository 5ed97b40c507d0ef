"""Published scores beside which a run's are shown.

The two tables in `data/` hold what was published and where, row by row: scores along a learning
curve, and scores at the end of a full training. How they were scored differs from row to row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.games import GameNotFound, find_game

FRAMES_PER_AGENT_STEP = 4


@dataclass(frozen=True, slots=True)
class Reference:
    """One published figure."""

    rom: str
    algorithm: str
    implementation: str
    agent_steps: int
    score: float
    std: float | None
    """Over what the protocol says: games or seeds."""
    seeds: int
    protocol: str
    source: str
    along_the_way: bool
    """A point of a learning curve, not the end of a full training."""

    @property
    def is_sticky(self) -> bool:
        """Whether its games had sticky actions."""
        return self.protocol.lower().startswith("sticky")


def select_references(config: ExperimentConfig) -> list[Reference]:
    """Those of the config's game and algorithm, played with sticky actions or without as there."""
    game = config.game
    return [
        reference
        for reference in load_references()
        if reference.rom == game.rom
        and reference.algorithm == config.algorithm
        and reference.is_sticky == (game.protocol == "v5")
    ]


def comparable_references(
    references: Sequence[Reference], *, agent_steps: float
) -> list[Reference]:
    """Those at about as many agent steps, within a tenth: the nearest of each implementation."""
    near = [r for r in references if abs(r.agent_steps - agent_steps) <= 0.1 * agent_steps]
    best: dict[tuple[str, str], Reference] = {}
    for reference in sorted(near, key=lambda r: abs(r.agent_steps - agent_steps)):
        best.setdefault((reference.implementation, reference.algorithm), reference)
    return list(best.values())


@cache
def load_references() -> tuple[Reference, ...]:
    """All of them, those along the way first."""
    folder = files("retro_ml.reporting") / "data"
    texts = [
        (folder / name).read_text(encoding="utf-8")
        for name in ("reference_curves.csv", "reference_scores.csv")
    ]
    along, final = (csv.DictReader(text.splitlines()) for text in texts)
    return (
        *_read(along, "agent_steps", 1, along_the_way=True),
        *_read(final, "frames", FRAMES_PER_AGENT_STEP, along_the_way=False),
    )


def _read(
    rows: Iterable[dict[str, str]], steps: str, per_agent_step: int, *, along_the_way: bool
) -> Iterable[Reference]:
    for row in rows:
        try:
            rom = find_game(row["game"]).rom
        except GameNotFound:  # an ale-py without that ROM
            continue
        yield Reference(
            rom=rom,
            algorithm=row["algorithm"],
            implementation=row["implementation"],
            agent_steps=int(row[steps]) // per_agent_step,
            score=float(row["score"]),
            std=float(row["std"]) if row["std"] else None,
            seeds=int(row["seeds"]),
            protocol=row["protocol"],
            source=row["source"],
            along_the_way=along_the_way,
        )
