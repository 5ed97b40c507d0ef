"""Any file given as --config is read or refused; no code in it runs."""

import io
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retro_ml import run
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.layers import LayerError, load_config_file, parse_override

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]

GOOD_JSON = ExperimentConfig(game_id="pong", experiment_id="x").model_dump_json(indent=1).encode()
GOOD_YAML = b"game_id: pong\nseed: 3\nppo:\n  clip: 0.2\n  epochs: 4\n# end\n"
MARKER = "planted"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TRAPS = [
    f"seed: !!python/object/apply:os.mkdir [{MARKER}]",
    f"seed: !!python/object/new:os.mkdir [{MARKER}]",
    f"seed: !!python/object/apply:subprocess.check_call [[mkdir, {MARKER}]]",
    f"!!python/object/apply:os.system ['mkdir {MARKER}']",
    "seed: !!python/name:os.system",
    "seed: !!python/module:antigravity",
    f"? !!python/object/apply:os.mkdir [{MARKER}]\n: 1",
]
tokens = (
    st.sampled_from(
        [
            *"[]{},:-?&*!|>%@`#'\"\n \t=<~",
            "a",
            "&a ",
            "*a",
            "<<: ",
            "? ",
            ": ",
            "- ",
            "---\n",
            "...\n",
        ]
    )
    | st.sampled_from(
        [
            "!!int ",
            "!!float ",
            "!!bool ",
            "!!timestamp ",
            "!!binary ",
            "!!set ",
            "!!omap ",
            "!!pairs ",
        ]
    )
    | st.sampled_from(
        [
            "!!str ",
            "!!map ",
            "!!null ",
            "!<x> ",
            "!a%0Ab ",
            "%YAML 1.9\n",
            "%TAG ! x\n",
            "\x00",
            "\x85",
        ]
    )
    | st.sampled_from(
        ["game_id: pong\n", "seed: ", "ppo: ", "1:1", ":1" * 9_000, "0x" + "f" * 9_000, "9" * 9_000]
    )
    | st.sampled_from(
        [
            "[" * 100,
            "{a: " * 100,
            "- " * 500,
            "1e999",
            ".nan",
            "-.inf",
            "2026-13-45",
            "0o9",
            "0b2",
        ]
    )
    | st.sampled_from(['"\\ud800"', '"\\x00"', "null", "true", "\ufeff", "\u2028", "é", *TRAPS])
)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Cut, flipped, doubled in part."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at, to = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        match draw(st.integers(0, 3)):
            case 0:
                del content[at:to]
            case 1:
                content[at:at] = content[at:to]
            case 2:
                content[at:at] = draw(st.binary(max_size=8))
            case 3 if content:
                content[min(at, len(content) - 1)] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["seed", "ppo", "clip", "", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
contents = st.one_of(
    st.binary(max_size=200),
    damaged(GOOD_JSON),
    damaged(GOOD_YAML),
    st.lists(tokens, max_size=12).map("".join).map(str.encode),
    json_values.map(lambda value: json.dumps(value).encode()),
)
names = st.sampled_from(["c.json", "c.yaml", "c.yml", "c", "c.JSON", "c.pkl"])


@given(name=names, content=contents)
@example(
    name="c.json",
    content=b"{" + b",".join(b'"k%d":1' % n for n in range(90_000)) + b',"z":1,"z":2}',
)
@example(name="c.json", content=b'{"seed":' + b"[" * 986 + b"]" * 986 + b"}")
@example(name="c.json", content=b"{}" + b" " * 2**24)
@example(name="c.yaml", content=b"seed: 1" + b":1" * 500_000)
@example(name="c.yaml", content=b"seed: 1" + b":1" * 30_000)
@example(name="c.yaml", content=b"seed: 0x" + b"f" * 9_000)
@example(name="c.yaml", content=b"\n".join(b"k%d: 1" % n for n in range(500)))
@example(name="c.yaml", content=LAUGHS.encode())
@example(name="c.yaml", content=b"seed: !a%0Ab 3")
@example(name="c.yaml", content=b"? [a, {b: c}]\n: 1")
def test_any_file_is_read_or_refused(
    name: str, content: bytes, fresh_folder: Callable[[], Path], bounded: Bounded
) -> None:
    folder = fresh_folder()
    (folder / name).write_bytes(content)
    before = os.getcwd()
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    try:
        with bounded(), redirect_stdout(out), redirect_stderr(err):
            exit_code = run.main(["--config", name, "--print-config"])
    finally:
        os.chdir(before)

    assert [path.name for path in folder.iterdir()] == [name]
    assert exit_code in {0, 2}
    if exit_code == 2:
        *lines, hint = err.getvalue().split("\n")[:-1]
        assert hint.startswith("hint: ")
        assert 1 <= len(lines) <= 102
        for line in lines:
            assert line.startswith("error: ")
            assert line.isprintable()
            assert len(line) < 2_100


@given(text=st.lists(tokens, max_size=8).map("".join))
@example(text="seed" + ".a" * 5_000 + "=1")
@example(text="seed=" + "[" * 100_000)
def test_any_override_is_read_or_refused(text: str, bounded: Bounded) -> None:
    for given_text in (text, f"seed={text}"):
        fault = ""
        with bounded():
            try:
                assert isinstance(parse_override(given_text), dict)
            except LayerError as error:
                fault = str(error)
        assert fault.isprintable()


@pytest.mark.parametrize("text", TRAPS)
@pytest.mark.parametrize("name", ["c.yaml", "c"])
def test_no_tag_runs_code(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)

    with pytest.raises(LayerError, match="could not determine a constructor"):
        load_config_file(name)
    assert not Path(MARKER).exists()


def test_a_pickle_is_no_config(tmp_path: Path, pickle_trap: Callable[[Path], bytes]) -> None:
    for name in ("c.yaml", "c.json", "c.pkl"):
        (tmp_path / name).write_bytes(pickle_trap(tmp_path / MARKER))
        with pytest.raises(LayerError):
            load_config_file(str(tmp_path / name))
    assert not (tmp_path / MARKER).exists()


def test_aliases_that_unfold_to_gigabytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(LAUGHS)

    with pytest.raises(LayerError, match="aliases are not read"):
        load_config_file(str(tmp_path / "c.yaml"))
