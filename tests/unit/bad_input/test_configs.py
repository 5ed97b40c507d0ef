"""Any mapping is a config or is refused line by line."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from retro_ml.core.experiments.config import ExperimentConfig, config_faults
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.core.experiments.options import RunOptions
from retro_ml.evaluation.protocols import EvaluationOptions

pytestmark = pytest.mark.unit

SECTIONS = {
    name: list(field.annotation.model_fields)
    for name, field in ExperimentConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
FIELDS = list(ExperimentConfig.model_fields)
# hypothesis shows the values it tries, which Python refuses for these.
DEEP: Any = []
for _ in range(5_000):
    DEEP = [DEEP]
HUGE = 10**5_000

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**4_000, -(10**400), 2**63, -1, 0, 1e308, float("nan"), float("inf"), True]),
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.sampled_from(
        ["", "null", "1e7", "1_0", "9" * 5_000, "-0", "0x10", "nan", "1e999999999", "\0", "../x"]
    )
    | st.sampled_from(
        ["PPO", "dqn", "QUICK", "sb3", "dopamine", "Pong-v4", "ALE/Pong-v5", "auto", "2026-11-22"]
    )
    | st.sampled_from(
        ["pong" * 10_000, "pong-v" + "1" * 9_000, "\udcff", "a\nb", "\x1b[2J", "9999-12-31T23Z"]
    ),
)
odd = (
    st.sampled_from(
        [None, b"\xff", {}, [], (), {1}, {1: 2}, {(): 3}, {"\udcff": 1}, object(), int, RunOptions]
    )
    | st.sampled_from(
        [datetime.now(UTC), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23))), datetime.max]
    )
    | st.sampled_from(
        [np.zeros(2), np.int64(3), np.float32("nan"), np.array(3), np.zeros((2, 2), np.int64)]
    )
)
values = st.recursive(
    st.one_of(numbers, texts, odd),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
misspelt = st.sampled_from(
    ["sed", "gamma", "learning_rate", "ppo.clip", "PPO", "game", " seed", ""]
)


def mapping(names: list[str]) -> st.SearchStrategy[dict[Any, Any]]:
    keys = st.one_of(st.sampled_from(names), st.sampled_from(names), misspelt, texts, numbers)
    return st.dictionaries(keys, values, max_size=5)


section = st.sampled_from(sorted(SECTIONS)).flatmap(
    lambda name: mapping(SECTIONS[name]).map(lambda fields: {name: fields})
)
configs = st.builds(
    lambda top, inner, game: top | inner | game,
    mapping(FIELDS),
    section | st.just({}),
    st.sampled_from([{"game_id": "pong"}, {"game_id": "pong", "algorithm": "dqn"}, {}]),
)


def check_lines(lines: list[str]) -> None:
    assert 1 <= len(lines) <= 101
    for line in lines:
        assert line.isprintable()
        assert " -> " in line
        assert len(line) < 1_500


@given(fields=configs)
@example(fields={"game_id": "pong", "seed": np.zeros(2)})
@example(fields={"game_id": "pong", "seed": int})
@example(fields={"game_id": "po\udcffng"})
@example(fields={"game_id": "pong", "output_dir": "\udcff"})
@example(fields={f"field{n}": n for n in range(5_000)})
@example(fields={"a\nerror: b": 1})
@example(fields={"x" * 100_000: 1})
def test_any_config_is_saved_or_refused(
    fields: dict[Any, Any], bounded: Callable[[], AbstractContextManager[None]]
) -> None:
    with bounded():
        try:
            config = ExperimentConfig.model_validate(fields)
        except ValidationError as error:
            check_lines(config_faults(error))
            return
        saved = config.model_dump_json().encode()
        assert ExperimentConfig.model_validate_json(saved) == config


@given(fields=mapping([*RunOptions.model_fields, *EvaluationOptions.model_fields]))
def test_any_options_are_taken_or_refused(
    fields: dict[Any, Any], bounded: Callable[[], AbstractContextManager[None]]
) -> None:
    for model in (RunOptions, EvaluationOptions):
        with bounded():
            try:
                model.model_validate(fields)
            except ValidationError as error:
                check_lines(describe_faults(error, model))


@pytest.mark.parametrize("value", [DEEP, HUGE], ids=["deep", "huge"])
@pytest.mark.parametrize("section", [None, "ppo", "environment"])
def test_what_python_cannot_write_is_refused_by_its_kind(section: str | None, value: Any) -> None:
    name = {"ppo": "clip", "environment": "max_frames", None: "seed"}[section]
    given_fields = {"game_id": "pong"} | ({section: {name: value}} if section else {name: value})
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate(given_fields)

    (line,) = config_faults(caught.value)
    assert f"{name}: ({type(value).__name__}, too long to be shown) -> " in line


def test_more_faults_than_a_config_has_fields_are_counted() -> None:
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate({"game_id": "pong"} | {f"x{n}": n for n in range(2_000)})

    lines = config_faults(caught.value)
    assert len(lines) == 101
    assert lines[-1] == "and 1,900 more faults -> is this a config?"
