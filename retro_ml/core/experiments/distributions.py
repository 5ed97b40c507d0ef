"""What the values of a sweep's fields are drawn from, e.g. `{log_uniform: [1e-5, 1e-3]}`.

Draws are seeded by the sweep's seed, the number of the draw and the field's path, so a longer sweep
begins with the draws of a shorter one, and one more field changes no other.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

KINDS = {
    "uniform": "[low, high], any number between",
    "log_uniform": "[low, high] above 0, uniform in the exponent",
    "int_uniform": "[low, high], whole numbers, both included",
    "choice": "[a, b, ...], one of them",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """One field's distribution; `values` are its bounds or, of a choice, all there are."""

    kind: str
    values: tuple[Any, ...]

    def draw(self, rng: random.Random) -> Any:
        """One value."""
        low, high = self.values[0], self.values[-1]
        if self.kind == "uniform":
            return rng.uniform(low, high)
        if self.kind == "log_uniform":
            return self.clip(math.exp(rng.uniform(math.log(low), math.log(high))))
        if self.kind == "int_uniform":
            return rng.randint(low, high)
        return rng.choice(self.values)

    def clip(self, value: Any) -> Any:
        """The nearest value that could be drawn; of a choice, the value itself."""
        if self.kind == "choice":
            return value
        return min(max(value, self.values[0]), self.values[-1])


def parse_distribution(text: Any) -> Distribution:
    """The distribution that a spec names. Raises: ValueError that says what is allowed."""
    if not isinstance(text, dict) or len(text) != 1 or next(iter(text)) not in KINDS:
        kinds = ", ".join(f"{kind}: {values}" for kind, values in KINDS.items())
        raise ValueError(f"one of {kinds}")
    kind, values = next(iter(text.items()))
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{kind} takes {KINDS[kind]}")
    if kind == "choice":
        return Distribution(kind, tuple(values))
    if len(values) != 2:
        raise ValueError(f"{kind} takes {KINDS[kind]}")
    low, high = (_read_number(value, kind) for value in values)
    if not low < high or (kind == "log_uniform" and low <= 0):
        raise ValueError(f"{kind} takes {KINDS[kind]}, low below high")
    return Distribution(kind, (low, high))


def draw_value(distribution: Distribution, *, seed: int, number: int, path: str) -> Any:
    """The value of draw `number` (from 0) of the field `path` in a sweep of this seed."""
    return distribution.draw(random.Random(f"{seed}/{number}/{path}"))


def _read_number(value: Any, kind: str) -> float | int:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-5 as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind == "int_uniform" and number != int(number)):
        raise ValueError(f"{kind} takes {KINDS[kind]}")
    return int(number) if kind == "int_uniform" else number
