"""Published figures, from docs/data/reference_curves.csv and reference_scores.csv.

Both hold their sources row by row. Scores at small budgets are those of a learning curve at so many
agent steps; final scores are those after a full training.
"""

from __future__ import annotations

from learning.matrix import Entry
from retro_ml.core.experiments.games import find_game
from retro_ml.reporting.references import Reference, load_references

__all__ = ["Reference", "load_references", "select_references"]


def select_references(rows: list[Reference], entry: Entry) -> list[Reference]:
    """Those of the entry's game and algorithm, played by the same protocol."""
    game = find_game(entry.game)
    sticky = game.protocol == "v5"
    return [
        row
        for row in rows
        if row.rom == game.rom and row.algorithm == entry.algorithm and row.is_sticky == sticky
    ]
