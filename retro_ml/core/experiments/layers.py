"""A config's layers: defaults, presets, a file, `--set` overrides, flags; later ones win.

Reading is guarded, because a config file may come from anywhere: bounded size, no aliases (a few
lines of them unfold to gigabytes), no doubled keys, only plain values.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from retro_ml.core.experiments.faults import as_line

# A complete config has 5,000; PyYAML takes a second for this many, and more than that for more.
MAX_FILE_BYTES = 2**16
_MAX_DEPTH = 8  # a field is in a section; deeper ones are refused by name

# Given alone, either decides how long the run is, whatever a lower layer said about the other.
_EXCLUSIVE = {"run_type": "total_timesteps", "total_timesteps": "run_type"}


class LayerError(ValueError):
    """A layer cannot be read; the message, one line, names it and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(as_line(message))


def load_config_file(path: str) -> dict[str, Any]:
    """The mapping in a JSON or YAML file. Raises: LayerError with line and column."""
    text = _read_text(path)
    suffix = Path(path).suffix.lower()
    as_json = suffix == ".json" or (
        suffix not in {".yaml", ".yml"} and text.lstrip().startswith("{")
    )
    try:
        data = _parse_json(text) if as_json else _parse_yaml(text)
    except LayerError as error:
        raise LayerError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise LayerError(f"{path}: holds {found} -> fields and values, e.g. game_id: breakout")
    return data


def parse_override(text: str) -> dict[str, Any]:
    """`ppo.clip=0.2` as `{"ppo": {"clip": 0.2}}`. Raises: LayerError."""
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise LayerError(f"--set {text} -> field=value, e.g. --set ppo.clip=0.2")
    if len(parts) > _MAX_DEPTH or len(value) > MAX_FILE_BYTES:
        raise LayerError(f"--set {as_line(text, longest=60)}: too long -> field=value")
    try:
        data = _parse_yaml(value)
    except LayerError as error:
        raise LayerError(f"--set {text}: {error}") from None
    for part in reversed(parts):
        data = {part: data}
    assert isinstance(data, dict)
    return data


def merge_layers(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, section by section; neither is changed."""
    merged = dict(lower)
    for name, other in _EXCLUSIVE.items():
        if upper.get(name) is not None and other not in upper:
            merged.pop(other, None)
    for name, value in upper.items():
        below = merged.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[name] = merge_layers(below, value)
        elif not isinstance(value, dict) or below is None:
            merged[name] = value
        # Otherwise a lower layer has a plain value where a section belongs: its fault is reported.
    return merged


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError:
        raise LayerError(f"{path}: a folder -> a JSON or YAML file") from None
    except FileNotFoundError:
        raise LayerError(f"{path}: no such file -> a JSON or YAML file") from None
    except OSError as error:
        raise LayerError(f"{path}: {error.strerror} -> a file that can be read") from None
    except ValueError as error:  # a null byte in the path
        raise LayerError(f"{path!r}: {error} -> a JSON or YAML file") from None
    if len(content) > MAX_FILE_BYTES:
        raise LayerError(f"{path}: too big -> at most {MAX_FILE_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1:,}"
        raise LayerError(f"{path}: not UTF-8 at {where} -> a text file in UTF-8") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_refuse_doubles)
    except json.JSONDecodeError as error:
        reason = error.msg[:1].lower() + error.msg[1:]
        where = f"line {error.lineno}, column {error.colno}"
        raise LayerError(f"no valid JSON at {where}: {reason}") from None
    except RecursionError:
        raise LayerError("nested too deeply -> fields and their sections") from None
    except LayerError:
        raise
    except ValueError as error:  # Python's bound on the digits of a whole number
        raise LayerError(f"no valid JSON: {error}") from None


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise LayerError(f"{name} is given twice -> once")
        data[name] = value
    return data


class _GuardedLoader(yaml.SafeLoader):
    """YAML without aliases and doubled keys."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases are not read, write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key.value, str) else None
            if name is not None and name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} is given twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_GuardedLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise LayerError(f"no valid YAML{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise LayerError(f"no valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise LayerError("nested too deeply -> fields and their sections") from None
    except (ValueError, LookupError, AttributeError, OverflowError) as error:
        # PyYAML lets these out for values such as 2026-13-45 or !!int "".
        raise LayerError(f"no valid YAML value: {error}") from None
