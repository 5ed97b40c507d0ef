"""Seeds derived from a run's seed.

numpy's SeedSequence spreads (seed, key) over its whole range, so neighbouring seeds and keys give
unrelated streams; ale-py takes 31 bits only, so the top bit is dropped.
"""

from __future__ import annotations

MAX_SEED = 2**31 - 1


def derive_seed(seed: int, *key: int) -> int:
    """The seed of the part named by `key`, e.g. (game index, game number); 0 to 2^31-1.

    Raises: ValueError when the seed or a key is negative.
    """
    import numpy  # here, because the command line's --help must not wait for it

    state = numpy.random.SeedSequence(seed, spawn_key=key).generate_state(1)
    return int(state[0]) & MAX_SEED
