"""Pages for the browser, read without the code that makes them."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"br", "img", "input", "link", "meta"}


@dataclass
class Node:
    """An element of a page."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text within, in its order."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def all(self, name: str, **attributes: str) -> list[Node]:
        """The elements within of this name, "" for any, whose attributes have these values."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                fits = all(
                    value in child.classes if key == "class_" else child.attributes.get(key) == value
                    for key, value in attributes.items()
                )
                found += [child] * (name in ("", child.name) and fits) + child.all(name, **attributes)
        return found

    def one(self, name: str, **attributes: str) -> Node:
        """The only one of them."""
        (found,) = self.all(name, **attributes)
        return found

    def rows(self) -> list[list[str]]:
        """The cells of each row of a table."""
        return [
            [cell.text for cell in row.children if isinstance(cell, Node)]
            for part in ("thead", "tbody")
            for body in self.all(part)
            for row in body.all("tr")
        ]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        # Every element ends by itself, the innermost first.
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Node:
    """A page as a tree; what is not closed properly fails."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def policy_of(page: Node) -> dict[str, list[str]]:
    """The policy within a page: what each directive allows."""
    text = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert text is not None
    return {words[0]: words[1:] for words in (part.split() for part in text.split(";"))}


def hash_in_policy(text: str) -> str:
    """What a policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def check_self_contained(page: Node) -> None:
    """A page that loads nothing, and whose policy allows its own style and script alone."""
    policy = policy_of(page)
    assert policy.pop("default-src") == ["'none'"]
    assert policy.pop("style-src") == [hash_in_policy(page.one("style").text)]
    assert policy.pop("script-src") == [hash_in_policy(page.one("script").text)]
    assert policy == {"img-src": ["data:"], "base-uri": ["'none'"], "form-action": ["'none'"]}
    for node in page.all(""):
        for name, value in node.attributes.items():
            # The policy would let neither work.
            assert name != "style"
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith(("#", "data:image/png;base64,", "data:,"))
    assert not re.search(r"url\(|@import", page.one("style").text)
    assert not re.search(r"fetch|XMLHttp|import\(|eval|innerHTML", page.one("script").text)
