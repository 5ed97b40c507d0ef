"""How far a trial has come: its own counters, which are saved with it and go on after a resume."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from retro_ml.rllib.rollout import Rollout

SCORE_WINDOW = 100
"""Games over which the reported score is the mean (Machado et al. 2018, section 4.2)."""


@dataclass(slots=True)
class Progress:
    """Counted over the whole run, resumes included."""

    iteration: int = 0
    agent_steps: int = 0
    frames: int = 0
    games: int = 0
    time_total_s: float = 0.0
    evaluation: float | None = None
    """Mean score of the evaluation that followed the last iteration; None where none did."""
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=SCORE_WINDOW))
    finished: list[dict[str, float]] = field(default_factory=list)
    """Rows of the games that ended since the last result; handed on with the next one."""

    @property
    def score(self) -> float | None:
        """Mean score of the last 100 games; None before the first."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else None

    def add(self, rollouts: list[Rollout]) -> None:
        """Counts what the env runners played side by side."""
        ended = []
        for rollout in rollouts:
            for played, game in rollout.finished:
                ended.append((self.agent_steps + played * len(rollouts), game))
            self.frames += rollout.frames_played
        for step, game in sorted(ended, key=lambda pair: pair[0]):
            self.games += 1
            self.scores.append(game.score)
            self.finished.append(
                {
                    "step": step,
                    "reward": game.score,
                    "length": game.agent_steps,
                    "frames": game.frames,
                }
            )
        self.agent_steps += sum(len(rollout) for rollout in rollouts)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        return {
            "iteration": self.iteration,
            "agent_steps": self.agent_steps,
            "frames": self.frames,
            "games": self.games,
            "time_total_s": self.time_total_s,
            "evaluation": self.evaluation,
            "scores": list(self.scores),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The inverse of `to_dict`."""
        progress = cls(**{key: value for key, value in values.items() if key != "scores"})
        progress.scores.extend(values["scores"])
        return progress
