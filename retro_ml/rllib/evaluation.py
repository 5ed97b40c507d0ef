"""A trial's evaluation: whole games under a named protocol, between two iterations.

It plays on emulators of its own, with generators of its own, and on a copy of the network in
float32, so training goes on as if it had not been; only the time passes, which `time_total_s` and
`steps_per_s` leave out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID

from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import play_episodes
from retro_ml.evaluation.protocols import EvaluationOptions, build_protocol
from retro_ml.evaluation.statistics import standard_error
from retro_ml.rllib.checkpoints import NETWORK_PREFIX

EVALUATION_SEEDS = 7
"""First word of the key from which a run's evaluations derive their seed: their games are others
than those of `retro-ml evaluate`, since the best model was chosen by these."""

if TYPE_CHECKING:
    from retro_ml.rllib.algorithm import AtariAlgorithm


def is_due(algorithm: AtariAlgorithm) -> bool:
    """Whether this iteration has passed a multiple of `evaluation.every_steps`."""
    every = algorithm.experiment.evaluation.every_steps
    if every is None:
        return False
    return algorithm.progress.agent_steps // every > algorithm.agent_steps_before // every


def evaluate_trial(algorithm: AtariAlgorithm) -> dict[str, Any]:
    """The data of an evaluation_finished record: step, reward (mean score), games and more."""
    experiment = algorithm.experiment
    settings = experiment.evaluation
    options = EvaluationOptions(
        episodes=settings.episodes,
        protocol=settings.protocol,
        seed=derive_seed(experiment.seed, EVALUATION_SEEDS),
    )
    protocol = build_protocol(experiment, options)
    weights = algorithm.learner_group.get_weights([DEFAULT_MODULE_ID])[DEFAULT_MODULE_ID]
    own = {
        name.removeprefix(NETWORK_PREFIX): np.array(array)
        for name, array in weights.items()
        if name.startswith(NETWORK_PREFIX)
    }
    played = play_episodes(
        Agent.from_weights(own, config=experiment),
        protocol=protocol,
        episodes=options.episodes,
        seed=options.seed,
        num_games=options.num_games,
    )
    scores = [episode.score for episode in played]
    return {
        "step": algorithm.progress.agent_steps,
        "reward": float(np.mean(scores)),
        "games": len(scores),
        "standard_error": standard_error(scores),
        "protocol": protocol.name,
        "scores": scores,
    }
