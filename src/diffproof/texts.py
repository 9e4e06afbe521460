"""JSON and YAML that somebody else may have written: bounded, without aliases, each name once."""

from __future__ import annotations

import json
from typing import Any

# Characters of a text in a store, and how deep lists and mappings may be nested in one: settings and
# certificates need a handful.
MOST_JSON = 2**24
DEEPEST = 16


def parse_json(text: object, most: int = MOST_JSON) -> Any:
    """What a JSON text says.

    Args:
        text: of at most `most` characters, nested at most DEEPEST deep.
        most: see there.

    Raises:
        ValueError: no text, a longer or deeper one, no JSON, a name twice in an object, or a number that is
            not finite.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected a text, got {type(text).__name__}")
    if len(text) > most:
        raise ValueError(f"expected at most {most:,} characters, got {len(text):,}")
    try:
        parsed = json.loads(text, object_pairs_hook=once, parse_constant=_no_number)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deeper(parsed):
        raise _too_deep()
    return parsed


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names with their values; ValueError where one is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{twice!r:.80} is given twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"expected finite numbers, got {name}")


def _too_deep() -> ValueError:
    return ValueError(f"expected lists and mappings at most {DEEPEST} deep")


def _is_deeper(parsed: Any) -> bool:
    """Whether something is nested deeper than DEEPEST, found without recursion."""
    level = [parsed]
    for _ in range(DEEPEST):
        inner = [one for one in level if isinstance(one, dict | list) and one]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, dict | list) for one in level)


def plain(loader: type[Any]) -> type[Any]:
    """A loader of PyYAML that refuses names given twice, and aliases: they can stand for gigabytes."""
    import yaml

    class Plain(loader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found, seen = super().construct_mapping(node, deep), set()
            for key, _ in node.value if len(found) < len(node.value) else ():
                if key.value in seen:
                    problem = f"{key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                seen.add(key.value)
            return found

    return Plain
