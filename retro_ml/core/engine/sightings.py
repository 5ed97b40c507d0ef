"""Since when another driver's signs of life stand still, as this process has seen them.

Whoever may have to take over from a driver in many places at once looks at all of them first: then
the time that each is given to move passes for all together.
"""

from __future__ import annotations

import time

_seen: dict[str, tuple[object, float]] = {}


def find_first_seen_s(where: str, sign: object) -> float:
    """When the sign was first seen there as it is now, in seconds of time.monotonic.

    Args:
        where: a path or a URI.
        sign: what its holder changes as long as it is alive.
    """
    seen = _seen.get(where)
    if seen is None or seen[0] != sign:
        seen = _seen[where] = (sign, time.monotonic())
    return seen[1]
