"""A trained model's score by a named protocol: whole games, with intervals.

The intervals are bootstrapped over the episodes of this one model (Agarwal et al. 2021): they say
how well its score is known, not how much training varies from seed to seed; that takes several runs
(`evaluation.statistics`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.core.artifacts.status import installed_versions
from retro_ml.evaluation import human_scores, statistics
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import Episode, Standing, play_episodes
from retro_ml.evaluation.protocols import EvaluationOptions, Protocol, ProtocolName, build_protocol
from retro_ml.evaluation.statistics import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A statistic of the scores with its 95 % interval; on the human scale if there is one."""

    value: float
    interval: Interval
    human_normalised: float | None
    human_normalised_interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate_model` found. Scores are unclipped returns of whole games."""

    model: str
    """The file's path, as it was given."""
    model_sha256: str
    """Of the whole file."""
    algorithm: str
    game: str
    """The ROM's name."""
    trained_agent_steps: int | None
    protocol: Protocol
    seed: int
    mean: Estimate
    median: Estimate
    iqm: Estimate
    standard_error: float | None
    """Of the mean; None for a single game."""
    human_scale: dict[str, Any] | None
    """`random` and `human` scores of the game and their source; None where none are known."""
    capped: int
    """Games that were cut off by the limit of frames."""
    episodes: tuple[Episode, ...]
    versions: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "episodes": [asdict(episode) for episode in self.episodes]}


def evaluate_model(
    model: str | Path,
    *,
    episodes: int = 100,
    protocol: ProtocolName | None = None,
    seed: int = 0,
    deterministic: bool = False,
    num_games: int = 16,
    on_step: Callable[[Standing], None] = lambda standing: None,
) -> Evaluation:
    """Plays `episodes` whole games with a model.zip.

    The same model, options and versions give the same scores on the same kind of CPU, whatever
    `num_games` is.

    Args:
        model: a model.zip.
        episodes: games to play.
        protocol: `machado` or `noop`; by default what the model's game id means.
        seed: of all randomness; training draws its own from other keys (`episodes`).
        deterministic: no action is drawn.
        num_games: games at a time.
        on_step: called after every agent step of the games at hand.

    Raises:
        ArchiveError: it is no usable model.zip.
        pydantic.ValidationError: an option is out of its range; a ValueError.
    """
    options = EvaluationOptions(
        episodes=episodes,
        protocol=protocol,
        seed=seed,
        deterministic=deterministic,
        num_games=num_games,
    )
    agent = Agent.load(model)
    sha256 = _hash_file(Path(model))
    chosen = build_protocol(agent.config, options)
    played = play_episodes(
        agent,
        protocol=chosen,
        episodes=options.episodes,
        seed=options.seed,
        num_games=options.num_games,
        on_step=on_step,
    )
    return _build_evaluation(
        agent, played, model=str(model), sha256=sha256, protocol=chosen, seed=options.seed
    )


def _build_evaluation(
    agent: Agent,
    played: list[Episode],
    *,
    model: str,
    sha256: str,
    protocol: Protocol,
    seed: int,
) -> Evaluation:
    rom = agent.config.game.rom
    scores = [episode.score for episode in played]
    return Evaluation(
        model=model,
        model_sha256=sha256,
        algorithm=agent.config.algorithm,
        game=rom,
        trained_agent_steps=agent.metadata.get("agent_steps"),
        protocol=protocol,
        seed=seed,
        mean=_estimate(statistics.mean, scores, rom),
        median=_estimate(statistics.median_of_scores, scores, rom),
        iqm=_estimate(statistics.interquartile_mean, scores, rom),
        standard_error=statistics.standard_error(scores),
        human_scale=_describe_scale(rom),
        capped=sum(episode.capped for episode in played),
        episodes=tuple(played),
        versions=installed_versions(),
    )


def _estimate(statistic: Callable[..., Any], scores: list[float], rom: str) -> Estimate:
    column = np.array(scores)[:, None]
    value = float(statistic(column))
    interval = statistics.bootstrap_interval(statistic, column)
    # The scale is linear and rises, so it carries an interval's ends over.
    normalised = human_scores.human_normalise(rom, value)
    low = human_scores.human_normalise(rom, interval.low)
    high = human_scores.human_normalise(rom, interval.high)
    return Estimate(
        value=value,
        interval=interval,
        human_normalised=normalised,
        human_normalised_interval=(
            Interval(low=low, high=high) if low is not None and high is not None else None
        ),
    )


def _describe_scale(rom: str) -> dict[str, Any] | None:
    if rom not in human_scores.SCORES:
        return None
    random, human = human_scores.SCORES[rom]
    return {"random": random, "human": human, "source": human_scores.SOURCE}


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
