"""HTML that is escaped by construction: a text becomes markup only by name."""

from __future__ import annotations

import html
from collections.abc import Iterable

from diffproof.errors import escaped

# Elements without an end.
_VOID = {"br", "img", "input", "link", "meta"}


class Html(str):
    """Markup as it is to stand on a page; any other text is escaped when it gets there."""


Child = str | int | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def tag(name: str, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, texts, which are escaped, numbers, lists of these; None is nothing.
        attributes: by name; `for_` and `class_` are for and class, other underscores are hyphens. True gives
            the attribute without a value; False and None leave it out.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    inner = markup(*children)
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inner}</{name}>")


def markup(*children: Child) -> Html:
    """Markup, texts and numbers one after the other; see `tag`."""
    return Html("".join(map(_child, children)))


def _child(child: Child) -> str:
    if isinstance(child, Html):
        return child
    if child is None:
        return ""
    if isinstance(child, str | int):
        # No quotes stand between elements that could end anything.
        return html.escape(_readable(str(child)), quote=False)
    return "".join(map(_child, child))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f" {name}" if value is True else f' {name}="{html.escape(_readable(text))}"'


def _readable(text: str) -> str:
    """The text with what turns its direction, or is no character, written out; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else escaped(c) for c in text)
