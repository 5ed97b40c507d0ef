"""Published figures, from docs/data/reference_curves.csv and reference_scores.csv.

Both hold their sources row by row. Scores at small budgets are those of a learning curve at so many
agent steps; final scores are those after a full training, 4 frames being an agent step.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from learning.matrix import Entry
from retro_ml.core.experiments.games import find_game

CURVES, SCORES = "reference_curves.csv", "reference_scores.csv"
FRAMES_PER_AGENT_STEP = 4


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

    @property
    def is_sticky(self) -> bool:
        """Whether its games had sticky actions."""
        return self.protocol.lower().startswith("sticky")


def load_references(folder: Path) -> tuple[list[Reference], list[Reference]]:
    """Points of learning curves, and final scores."""
    return _load(folder / CURVES, "agent_steps", 1), _load(
        folder / SCORES, "frames", FRAMES_PER_AGENT_STEP
    )


def select_references(rows: list[Reference], entry: Entry) -> list[Reference]:
    """Those of the entry's game and algorithm, played by the same protocol."""
    game = find_game(entry.game)
    sticky = game.protocol == "v5"
    return [
        row
        for row in rows
        if find_game(row.game).rom == game.rom
        and row.algorithm == entry.algorithm
        and row.is_sticky == sticky
    ]


def _load(path: Path, steps: str, per_agent_step: int) -> list[Reference]:
    with open(path, encoding="utf-8", newline="") as file:
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
            )
            for row in csv.DictReader(file)
        ]
