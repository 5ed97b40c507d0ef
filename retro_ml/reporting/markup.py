"""HTML without a way around escaping: words are text unless they were built here.

What stands in a run's files is somebody's input: ids, settings and errors come into a page as text
only.
"""

from __future__ import annotations

import html
from typing import Any

_VOID = frozenset({"meta", "col", "br", "img"})


class Markup(str):
    """A piece of finished HTML."""

    __slots__ = ()


def tag(element: str, *children: Any, **attributes: Any) -> Markup:
    """An element; children that are no Markup are escaped, None and None attributes left out.

    `class_` is class, `data_x` is data-x; True gives an attribute without a value.
    """
    head = element
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        head += " " + name.rstrip("_").replace("_", "-")
        if value is not True:
            head += f'="{html.escape(_visible(str(value)), quote=True)}"'
    if element in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(*children)}</{element}>")


def join(*children: Any) -> Markup:
    """Children one after the other, escaped as in `tag`; lists are opened."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        else:
            parts.append(child if isinstance(child, Markup) else html.escape(_visible(str(child))))
    return Markup("".join(parts))


def _visible(text: str) -> str:
    """Half characters, which cannot be encoded, and control characters as question marks."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(sign if sign >= " " or sign in "\n\t" else "?" for sign in text)
