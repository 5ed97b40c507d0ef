"""The names that a mistyped one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_ALMOST_CERTAIN = 0.85  # of difflib's ratio: one or two letters of a dozen differ
_WORTH_NAMING = 0.6


def nearest(word: str, words: Collection[str]) -> list[str]:
    """The nearest of `words`, best first: one if it is almost certain, else three at most."""
    sure = difflib.get_close_matches(word, words, n=1, cutoff=_ALMOST_CERTAIN)
    return sure or difflib.get_close_matches(word, words, n=3, cutoff=_WORTH_NAMING)


def either(words: Collection[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
