"""What a call of `retro-ml watch` may choose. Imports no PyTorch, so that --help is quick."""

from __future__ import annotations

from pydantic import Field

from retro_ml.core.experiments.fields import FrozenModel, Switch, Whole
from retro_ml.core.experiments.seeds import MAX_SEED
from retro_ml.evaluation.protocols import DQN_EPSILON, EvaluationOptions, ProtocolName


class FilmOptions(FrozenModel):
    """How the games are played and shown. Raises pydantic's ValidationError with all faults."""

    episodes: Whole = Field(
        default=1, ge=1, le=10_000, description="whole games to show (this project's choice)"
    )
    scale: Whole = Field(
        default=3,
        ge=1,
        le=10,
        description="how many times the picture's height is enlarged; its width follows, so that "
        "it comes to a television's 4:3, exactly so with 4 and 8 (this project's choice)",
    )
    strip: Switch = Field(
        default=True,
        description="show score, value estimate and action probabilities beside the game",
    )
    protocol: ProtocolName | None = Field(
        default=None,
        description="machado: sticky actions of 0.25; noop: 1 to 30 no-ops at the start; by "
        "default machado for ALE/...-v5, otherwise noop; as retro-ml evaluate",
    )
    seed: Whole = Field(
        default=0,
        ge=0,
        le=MAX_SEED,
        description="the seed of all randomness; the games are those of retro-ml evaluate's seed",
    )
    deterministic: Switch = Field(
        default=False,
        description="always the likeliest action, or the one of highest value; otherwise PPO and "
        f"A2C draw from their policy and {DQN_EPSILON:.1%} of DQN's actions are random (Dopamine)",
    )

    @property
    def of_evaluation(self) -> EvaluationOptions:
        """The evaluation whose first games these are."""
        return EvaluationOptions(
            episodes=self.episodes,
            protocol=self.protocol,
            seed=self.seed,
            deterministic=self.deterministic,
        )
