"""What is wrong with a config, one line per fault: field, value, what is allowed.

Pydantic finds the faults; this module words them for whoever typed the values.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from retro_ml.core.experiments.locations import hide_credentials
from retro_ml.core.experiments.nearest import either, nearest

_LONGEST_VALUE = 60  # characters of a value that are shown
_LONGEST_LINE = 2_000
_MOST_FAULTS = 100  # more than a config has fields: what has more is no config
_SENTENCES = {"value_error", "fault"}  # errors whose message says already what is allowed
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    datetime: "a date and time with its zone, e.g. 2026-11-22T10:15:00+00:00",
}


def raise_faults(faults: Sequence[tuple[str, Any, str]]) -> None:
    """Raise all `(field, value, what is allowed)` at once, or nothing when there is none.

    To be called in a field validator; the fields are those inside the validated one.

    Raises: ValidationError, which pydantic joins with the faults of other fields.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("fault", "{allowed}", {"allowed": allowed}),
            loc=tuple(field.split(".")),
            input=value,
        )
        for field, value, allowed in faults
    ]
    if details:
        raise ValidationError.from_exception_data("faults", details)


def raise_lines(lines: Sequence[str]) -> None:
    """Raise faults that were worded already, all at once, or nothing when there is none.

    Raises: ValidationError, as `raise_faults`.
    """
    details = [
        InitErrorDetails(type=PydanticCustomError("worded", "{line}", {"line": line}), input=None)
        for line in lines
    ]
    if details:
        raise ValidationError.from_exception_data("faults", details)


def describe_faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per fault of `error`, which came from validating `model`."""
    faults = error.errors(include_url=False)
    lines = [_describe(details, model) for details in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"and {len(faults) - _MOST_FAULTS:,} more faults -> is this a config?")
    return lines


def as_line(text: str, *, longest: int = _LONGEST_LINE) -> str:
    """`text` fit for one line of a terminal: escaped what cannot be seen there, cut to `longest`.

    What users type and files hold may have line breaks, control sequences, half characters.
    """
    shown = text if len(text) <= longest else text[: longest - 3] + "..."
    if shown.isprintable():
        return shown
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in shown
    )


def nearest_names(name: str, names: Sequence[str], *, prefix: str = "") -> str:
    """`did you mean a or b?`, or all the names where none is near."""
    by_key = {other.lower().replace("-", "_"): other for other in names}
    key = name.lower().replace("-", "_")
    near = [prefix + by_key[other] for other in nearest(key, by_key)]
    if not near:
        return "one of " + ", ".join(prefix + other for other in names)
    return f"did you mean {either(near)}?"


def describe_allowed(field: FieldInfo) -> str:
    """The values that `field` takes, e.g. `a whole number from 0 up to 10`."""
    kinds = _kinds(field.annotation)
    words = [_describe_kind(kind, field.metadata) for kind in kinds if kind is not type(None)]
    if type(None) in kinds:
        words.append("null")
    return " or ".join(words)


def _kinds(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {Union, types.UnionType}:
        return [kind for member in get_args(annotation) for kind in _kinds(member)]
    if hasattr(annotation, "__metadata__"):  # Annotated[...] inside a union
        return _kinds(annotation.__origin__)
    return [annotation]


def _describe_kind(kind: Any, metadata: Sequence[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(kind))
    if get_origin(kind) is tuple:  # of names, as many as one likes
        return "some of " + ", ".join(str(name) for name in get_args(get_args(kind)[0]))
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return "one of " + ", ".join(str(member.value) for member in kind)
        if issubclass(kind, BaseModel):
            return "a section with " + ", ".join(kind.model_fields)
    return _KINDS[kind] + (_describe_bounds(metadata) if kind in {int, float} else "")


def _describe_bounds(metadata: Sequence[Any]) -> str:
    bounds = {
        key: getattr(item, key)
        for item in metadata
        for key in ("ge", "gt", "le", "lt")
        if getattr(item, key, None) is not None
    }
    words = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}
    parts = [f"{words[key]} {bounds[key]:,}" for key in words if key in bounds]
    separator = " " if {"ge", "le"} <= bounds.keys() else ", "
    return " " + separator.join(parts) if parts else ""


def _describe(details: ErrorDetails, model: type[BaseModel]) -> str:
    if details["type"] == "worded":
        return details["msg"]
    path = [str(part) for part in details["loc"]]
    name = as_line(".".join(path), longest=_LONGEST_VALUE) or "config"
    if details["type"] in {"extra_forbidden", "invalid_key"}:
        return f"{name}: {_suggest(path, model)}"
    if details["type"] == "missing":
        return f"{name}: missing -> {_what_is_missing(_find_field(path, model))}"
    return f"{name}: {_shorten(details['input'])} -> {_allowed(details, path, model)}"


def _allowed(details: ErrorDetails, path: list[str], model: type[BaseModel]) -> str:
    field = _find_field(path, model)
    if field is None or details["type"] in _SENTENCES:
        return details["msg"].removeprefix("Value error, ")
    allowed = describe_allowed(field)
    if details["type"] == "finite_number":
        return allowed.replace("a number", "a finite number")
    empty = isinstance(details["input"], str) and not details["input"]
    return allowed.replace("text", "text that is not empty") if empty else allowed


def _find_field(path: list[str], model: type[BaseModel]) -> FieldInfo | None:
    field: FieldInfo | None = None
    for part in path:
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[part]
        inner = [kind for kind in _kinds(field.annotation) if isinstance(kind, type)]
        model = next((kind for kind in inner if issubclass(kind, BaseModel)), BaseModel)
    return field


def _what_is_missing(field: FieldInfo | None) -> str:
    return (field.description if field is not None else None) or "a value is needed"


def _suggest(path: list[str], model: type[BaseModel]) -> str:
    """Where the unknown field `path` may have been meant to go."""
    section, prefix = model, ""
    for part in path[:-1]:
        kinds = _kinds(section.model_fields[part].annotation)
        section = next(kind for kind in kinds if issubclass(kind, BaseModel))
        prefix += part + "."
    # A section's field at the top, e.g. learning_rate, is meant for one of the sections.
    homes = [
        f"{other}.{path[-1]}"
        for other, field in model.model_fields.items()
        for kind in _kinds(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and path[-1] in kind.model_fields
    ]
    if homes:
        return f"unknown field -> did you mean {either(homes)}?"
    return f"unknown field -> {nearest_names(path[-1], list(section.model_fields), prefix=prefix)}"


def _shorten(value: Any) -> str:
    value = value.value if isinstance(value, Enum) else value
    try:
        text = str(value) or '""'
    except (ValueError, RecursionError):  # more digits, or deeper, than Python cares to write
        text = f"({type(value).__name__}, too long to be shown)"
    return as_line(hide_credentials(text), longest=_LONGEST_VALUE)
