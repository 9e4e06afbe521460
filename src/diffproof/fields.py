"""Values read from files, held against what the fields of a dataclass declare."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from diffproof.checks import unknown_name

# How a file's values of a type are told of; a JSON file has lists for tuples.
_TYPES: dict[Any, str] = {
    int: "an integer",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
    dict: "names with values",
    tuple: "a list",
    type(None): "null",
}


def check_fields(kind: type[Any], values: object) -> dict[str, Any]:
    """What was read from a file, if it is what the fields of a dataclass declare.

    Args:
        kind: the dataclass.
        values: its fields by name; lists stand for tuples.

    Returns:
        the values, with tuples.

    Raises:
        ValueError: no mapping, a field that is unknown or missing, or one of another type, which is named;
            integers beyond 64 bits and numbers that are not finite are of no type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected names with values, got {reprlib.repr(values)}")
    declared = _declared(kind)  # type: ignore[arg-type]
    if unknown := sorted(map(str, values.keys() - declared.keys())):
        raise ValueError(unknown_name("field", unknown[0], declared).problem)
    if missing := [name for name, one in declared.items() if one.required and name not in values]:
        raise ValueError(f"{missing[0]} is missing")
    for name, value in values.items():
        if not declared[name].fits(value):
            hint = declared[name].hint
            kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
            wanted = " or ".join(_TYPES.get(get_origin(one) or one, "another value") for one in kinds)
            raise ValueError(f"{name}: expected {wanted}, got {reprlib.repr(value)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@dataclass(frozen=True)
class _Declared:
    """What a dataclass declares of a field: its type, whether a value is of it, whether there must be one."""

    hint: Any
    fits: Callable[[object], bool]
    required: bool


@functools.cache
def _declared(kind: type[Any]) -> dict[str, _Declared]:
    hints = get_type_hints(kind)
    return {
        one.name: _Declared(hints[one.name], _fits(hints[one.name]), one.default is MISSING)
        for one in fields(kind)
    }


def _fits(hint: Any) -> Callable[[object], bool]:
    """Whether a value is of a type, looked into once for the thousands of values of a run."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is UnionType:
        kinds = [_fits(one) for one in inner]
        return lambda value: any(fits(value) for fits in kinds)
    if origin is tuple:
        item, length = _fits(inner[0]), None if inner[-1] is ... else len(inner)
        return lambda value: (
            isinstance(value, list | tuple) and length in (None, len(value)) and all(map(item, value))
        )
    if origin is dict:
        item = _fits(inner[1])
        return lambda value: isinstance(value, dict) and all(map(item, value.values()))
    if origin in (int, float):
        return functools.partial(_is_number, kinds=(int, origin))
    return lambda value: hint is Any or isinstance(value, hint)


def _is_number(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return -(2**63) <= value < 2**64 if isinstance(value, int) else math.isfinite(cast("float", value))
