"""Any command line is understood or refused; nothing is made, nothing is thrown."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retro_ml import cli, evaluate, run
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.sections import PPOSettings
from retro_ml.evaluation.protocols import EvaluationOptions

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]

LAUNCHED = 77


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_trained() -> Iterator[None]:
    api = ModuleType("retro_ml.api")
    api.run_experiment = (  # type: ignore[attr-defined]
        lambda config, *, options: SimpleNamespace(
            exit_code=LAUNCHED, error="not in a test", as_dict=dict
        )
    )
    before = sys.modules.get("retro_ml.api")
    sys.modules["retro_ml.api"] = api
    yield
    if before is None:
        del sys.modules["retro_ml.api"]
    else:
        sys.modules["retro_ml.api"] = before


run_flags = (
    st.sampled_from(
        ["--env", "-n", "--config", "--set", "--quiet", "--json", "--print-config", "--help", "-h"]
    )
    | st.sampled_from(
        ["--no-use-gpu", "--algo", "--ray-address", "--max-hours", "--stop-score", "--ppo", "--"]
    )
    | st.sampled_from([f"--{name.replace('_', '-')}" for name in ExperimentConfig.model_fields])
    | st.sampled_from([f"--ppo.{name}" for name in PPOSettings.model_fields])
)
evaluate_flags = st.sampled_from(["--quiet", "--json", "--help", "--", "-"]) | st.sampled_from(
    [f"--{name.replace('_', '-')}" for name in EvaluationOptions.model_fields]
)
texts = st.text(st.characters(exclude_categories=()), max_size=15)
words = st.one_of(
    texts,
    texts.map(lambda text: "--" + text),
    st.sampled_from(
        ["pong", "breakout", "1", "-1", "1e4", "null", "nan", "{", "[1", "[1]", '"', '{"a": 1}', ""]
    )
    | st.sampled_from(
        ["a,b", "\0", "\udcff", "x" * 70_000, "--" + "y" * 70_000, "-", "=", "--=", "--=x", "@x"]
    )
    | st.sampled_from(
        [
            "a=" + "[" * 3_000,
            "seed" + ".a" * 5_000 + "=1",
            "ppo={clip: *x}",
            "/",
            "..",
            "/dev/null",
        ]
    )
    | st.sampled_from(
        ["ppo.clip=!!python/object/apply:os.mkdir [planted]", "seed=0x" + "f" * 9_000]
    )
    | st.sampled_from(
        ["\u202e", "\x1b[2J", "line\nbreak", "a" * 300, "/proc/self/mem", "~", "~nobody-here/x"]
    ),
)


def command_line(flags: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    one = st.one_of(
        st.tuples(flags, words),
        st.tuples(flags, words).map(lambda pair: ("=".join(pair),)),
        st.tuples(flags),
        st.tuples(words),
    )
    return st.lists(one, max_size=8).map(lambda parts: [word for part in parts for word in part])


def call(
    main: Callable[[Sequence[str]], int], argv: list[str], folder: Path, bounded: Bounded
) -> tuple[int, str]:
    """Exit code and stderr of a call from an empty folder, in which nothing may be made."""
    before = os.getcwd()
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    try:
        with bounded(), redirect_stdout(out), redirect_stderr(err):
            exit_code = main(argv)
    except SystemExit as stop:  # --help
        exit_code = int(stop.code or 0)
    finally:
        os.chdir(before)
    assert list(folder.iterdir()) == []
    if exit_code == 2:
        assert out.getvalue() == ""
    return exit_code, err.getvalue()


def check_refusal(text: str) -> None:
    *lines, hint = text.split("\n")[:-1]
    assert hint.startswith("hint: ")
    assert 1 <= len(lines) < 200
    for line in lines:
        assert line.startswith("error: ")
        assert line.isprintable()
        assert len(line) < 2_100


@given(argv=command_line(run_flags))
@example(argv=["--set", "seed" + ".a" * 5_000 + "=1", "--set", "seed" + ".a" * 5_000 + "=2"])
@example(argv=["--env", "pong", "--set", "seed=0x" + "f" * 9_000])
@example(argv=["--env", "pong", "--fo\nerror: x=1"])
@example(argv=["--env", "pong", "--set", "seed=1" + ":1" * 30_000])
@example(argv=["--env", "pong", "--set", '"'])
def test_any_words_after_run(
    argv: list[str], fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    exit_code, text = call(run.main, argv, fresh_folder(), bounded)

    assert exit_code in {0, 2, LAUNCHED}
    if exit_code == 2:
        check_refusal(text)


@given(argv=command_line(evaluate_flags))
@example(argv=["a" * 5_000])
@example(argv=["a\0b"])
def test_any_words_after_evaluate(
    argv: list[str], fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    exit_code, text = call(evaluate.main, argv, fresh_folder(), bounded)

    assert exit_code in {0, 2}
    if exit_code == 2:
        check_refusal(text)


@given(argv=st.lists(words, max_size=3))
def test_any_words_at_first(
    argv: list[str], fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    exit_code, text = call(cli.main, argv, fresh_folder(), bounded)

    helped = argv[:1] in (["-h"], ["--help"])
    assert exit_code == (0 if helped else 2)
    assert "usage: retro-ml COMMAND" in text
