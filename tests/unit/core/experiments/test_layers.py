"""Config files, overrides, and which layer wins."""

from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.experiments.layers import (
    MAX_FILE_BYTES,
    LayerError,
    load_config_file,
    merge_layers,
    parse_override,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"game_id": "pong", "ppo": {"clip": 0.2}}'),
        ("c.yaml", "game_id: pong\nppo:\n  clip: 0.2\n"),
        ("c.yml", '{"game_id": "pong", "ppo": {"clip": 0.2}}'),
        ("c", '  {"game_id": "pong", "ppo": {"clip": 0.2}}'),
        ("c.conf", "\ufeffgame_id: pong\nppo: {clip: 0.2}\n"),
    ],
)
def test_json_and_yaml_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")

    assert load_config_file(str(tmp_path / name)) == {"game_id": "pong", "ppo": {"clip": 0.2}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.json", b'{"game_id": "pong",\n "seed": }', "no valid JSON at line 2, column 10: "),
        ("c.json", b'{"ppo": {"clip": 1, "clip": 2}}', "clip is given twice"),
        ("c.json", b"[1, 2]", "holds a list -> fields and values"),
        ("c.json", b"[" * 60_000, "nested too deeply"),
        ("c.json", b'{"seed": ' + b"9" * 5_000 + b"}", "no valid JSON: "),
        ("c.yaml", b"ppo: [1\nx: 2", "no valid YAML at line 2, column 2: "),
        ("c.yaml", b"seed: 1\nseed: 2\n", "no valid YAML at line 2, column 1: seed is given twice"),
        ("c.yaml", b"a: &x [1]\nb: *x\n", "no valid YAML at line 2, column 4: aliases are not"),
        ("c.yaml", b"x: !!python/object/apply:os.getcwd []\n", "no valid YAML at line 1, column 4"),
        ("c.yaml", b"x: " + b"[" * 5_000, "nested too deeply"),
        ("c.yaml", b"x: 2026-13-45\n", "no valid YAML value: "),
        ("c.yaml", b'x: !!int ""\n', "no valid YAML value: "),
        ("c.yaml", b"x: \x01\n", "no valid YAML: "),
        ("c.yaml", b"", "holds nothing -> fields and values"),
        ("c.yaml", b"game_id: p\xffng\n", "not UTF-8 at byte 11"),
        ("c.yaml", b"#" * (MAX_FILE_BYTES + 1), "too big -> at most 65,536 bytes"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(LayerError) as refusal:
        load_config_file(str(path))

    assert str(refusal.value).startswith(f"{path}: {words}")
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path, "a folder"),
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(LayerError) as refusal:
            load_config_file(str(path))
        assert str(refusal.value).startswith(f"{path}: {words} -> ")
    with pytest.raises(LayerError, match="null byte"):
        load_config_file("a\0b")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("seed=3", {"seed": 3}),
        ("ppo.clip=0.2", {"ppo": {"clip": 0.2}}),
        ("dqn.max_grad_norm=null", {"dqn": {"max_grad_norm": None}}),
        ("use_gpu=false", {"use_gpu": False}),
        ("output_dir=a=b", {"output_dir": "a=b"}),
        ("ppo={clip: 0.2}", {"ppo": {"clip": 0.2}}),
        ("experiment_id=", {"experiment_id": None}),
    ],
)
def test_overrides_are_read_as_yaml(text: str, data: dict[str, Any]) -> None:
    assert parse_override(text) == data


@pytest.mark.parametrize("text", ["", "seed", "=3", "a..b=3", ".a=3", "a.=1", "seed=[1"])
def test_a_broken_override_is_refused(text: str) -> None:
    with pytest.raises(LayerError) as refusal:
        parse_override(text)

    assert str(refusal.value).startswith(f"--set {text}")


def test_later_layers_win_field_by_field() -> None:
    lower = {"seed": 1, "ppo": {"clip": 0.2, "epochs": 3}}
    upper = {"seed": 2, "ppo": {"clip": 0.3}, "a2c": {"gamma": 1}}

    merged = merge_layers(lower, upper)

    assert merged == {"seed": 2, "ppo": {"clip": 0.3, "epochs": 3}, "a2c": {"gamma": 1}}
    assert lower == {"seed": 1, "ppo": {"clip": 0.2, "epochs": 3}}


def test_length_given_alone_displaces_the_other_one_below() -> None:
    saved = {"run_type": "QUICK", "total_timesteps": 10_000}

    assert merge_layers(saved, {"total_timesteps": 20_000}) == {"total_timesteps": 20_000}
    assert merge_layers(saved, {"run_type": "SHORT"}) == {"run_type": "SHORT"}
    both = {"run_type": "QUICK", "total_timesteps": 5}
    assert merge_layers(saved, both) == both
    assert merge_layers(saved, {"seed": 1}) == saved | {"seed": 1}


def test_a_fault_below_is_not_hidden_by_a_section_above() -> None:
    assert merge_layers({"ppo": 3}, {"ppo": {"clip": 0.2}}) == {"ppo": 3}
