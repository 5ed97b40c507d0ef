"""Suggestions for mistyped names."""

import pytest

from retro_ml.core.experiments.nearest import either, nearest

pytestmark = pytest.mark.unit


def test_one_name_where_it_is_almost_certain() -> None:
    assert nearest("space_invader", ["space_war", "space_invaders", "pong"]) == ["space_invaders"]


def test_up_to_three_names_otherwise() -> None:
    assert nearest("abcd", ["abxx", "abcx", "abcyz", "abcyy", "pong"]) == ["abcx", "abcyz", "abcyy"]
    assert nearest("zzz", ["seed", "pong"]) == []


def test_words_are_joined_for_reading() -> None:
    assert either(["a"]) == "a"
    assert either(["a", "b"]) == "a or b"
    assert either(["a", "b", "c"]) == "a, b or c"
