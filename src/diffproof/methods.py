"""Methods as texts: "densepure:steps=10,votes=40", "pgd:eot=20", "package.module:Class:kernel=5"."""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from diffproof.catalog import DEFENSES, Method, Setting
from diffproof.catalog_attacks import ATTACKS
from diffproof.catalog_objectives import OBJECTIVES
from diffproof.checks import unknown_name
from diffproof.errors import ArgumentError
from diffproof.own_code import Address, address, failing, find, plugin, plugins
from diffproof.values import Choice, Flag, Integer, Numbers, Optional, Real, Text, Value, written

# By kind; whose base class, with a capital, is public.
KINDS = {"defense": DEFENSES, "attack": ATTACKS, "objective": OBJECTIVES}
# What a defence takes besides its settings.
NETWORKS = ("denoiser", "classifier", "guide")
# One setting: a name, and a value that has commas in brackets only.
_SETTING = re.compile(r"\s*(?P<name>[^=,\[\]]+?)\s*=\s*(?P<value>\[[^\]]*\]|[^,\[\]]*?)\s*(,|$)")


@dataclass(frozen=True)
class MethodSpec:
    """A method and those of its settings that were given, as values.

    Attributes:
        kind: "defense", "attack" or "objective".
        name: in the catalog, or the address of a user's class.
        settings: by name.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]

    def filled(self) -> MethodSpec:
        """The same method with all its settings, those that were not given at their defaults."""
        return MethodSpec(self.kind, self.name, {**self._usual(), **self.settings})

    def unusual(self) -> MethodSpec:
        """The same method without the settings that are at their defaults."""
        usual, nothing = self._usual(), object()
        told = {name: value for name, value in self.settings.items() if usual.get(name, nothing) != value}
        return MethodSpec(self.kind, self.name, told)

    def _usual(self) -> dict[str, Any]:
        own = describe(self.kind, self.name)
        return {setting.name: setting.default for setting in own.settings if not setting.required}

    def __str__(self) -> str:
        """The text that reads as this again."""
        if not self.settings:
            return self.name
        method = describe(self.kind, self.name)
        places = {setting.name: setting for setting in method.settings}
        settings = [f"{key}={written_as(places[key], value)}" for key, value in self.settings.items()]
        return f"{self.name}:{','.join(settings)}"


def parse(kind: str, given: str | Mapping[str, Any]) -> MethodSpec:
    """Read a method and its settings.

    Args:
        kind: "defense", "attack" or "objective".
        given: a text, or a mapping with `name` and settings, whose values may be texts.

    Raises:
        ValueError: an unknown method or setting, a setting given twice, or a value out of its range.
    """
    name, texts = _parts(kind, given)
    method = describe(kind, name)
    settings = {}
    for key, value in texts.items():
        with _setting_of(kind, key):
            setting = method.setting(key)
            if setting is None:
                raise ArgumentError(key, no_setting(kind, method, key))
            try:
                settings[key] = _value(setting, value)
            except ValueError as error:
                raise ArgumentError(key, f"{error} (of {kind} {method.name})") from None
    return MethodSpec(kind, method.name, settings)


@contextmanager
def _setting_of(kind: str, *names: str) -> Iterator[None]:
    """Errors about these arguments say that they are settings of a method."""
    try:
        yield
    except ArgumentError as error:
        if set(error.argument.split(", ")) <= set(names):
            error.method = kind
        raise


def no_setting(kind: str, method: Method, name: str) -> str:
    """What is said of a setting that a method does not have: the nearest that it has, or all."""
    known = [setting.name for setting in method.settings]
    if not known:
        return f"no setting of the {kind} {method.name!r}, which takes none"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"which takes {', '.join(known)}"
    return f"no setting of the {kind} {method.name!r}, {hint}"


def describe(kind: str, name: str) -> Method:
    """A method of the catalog, or of a user's own code or a plug-in, whose class says what it takes.

    Raises:
        ValueError: there is none of this name, or the class is not of this kind.
    """
    table = KINDS[kind]
    if name in table:
        return table[name]
    where = own_class(kind, name)
    if where is None:
        if address(":".join(name.rsplit(".", 1))) is not None:
            raise ArgumentError(kind, f"unknown name {name!r}; a class of your own is package.module:Class")
        raise unknown_name(kind, name, [*table, *plugins(f"diffproof.{kind}s")])
    return _of_class(str(where), load_class(kind, str(where)))


def own_class(kind: str, given: str | Mapping[str, Any]) -> Address | None:
    """Where the class of a user's code or a plug-in is that is meant, not imported; None for others."""
    name, _ = _parts(kind, given)
    if name in KINDS[kind]:
        return None
    return address(name) or plugin(f"diffproof.{kind}s", name)


def told(kind: str, text: str) -> str:
    """A method without what is at its default; one of the user's own as it is: it is not imported to tell."""
    return text if own_class(kind, text) is not None else str(parse(kind, text).unusual())


def load_class(kind: str, name: str) -> type[Any]:
    """The class of a method.

    Raises:
        ValueError: there is none of this name, or it is not of this kind.
    """
    method = KINDS[kind].get(name)
    if method is not None:
        module, _, attribute = method.home.partition(":")
        found = find(kind, Address(f"diffproof.{module}", attribute), "class")
    else:
        where = address(name)
        if where is None:
            raise unknown_name(kind, name, KINDS[kind])
        found = find(kind, where, "class")
    if not (isinstance(found, type) and getattr(found, "kind", None) == kind):
        raise ArgumentError(
            kind, f"expected {name} to be a class of diffproof.{kind.capitalize()}, got {found!r}"
        )
    return found


def build(spec: MethodSpec, networks: Mapping[str, Any], further: Mapping[str, Any]) -> Any:
    """What a method's class makes of its networks and settings.

    Args:
        spec: the method with its settings.
        networks: by the constructor's names.
        further: settings beside the spec's, as Python's values.

    Raises:
        ValueError: a setting that is unknown, given twice, missing or out of range, or any exception in the
            constructor of a user's class.
    """
    method = describe(spec.kind, spec.name)
    for name in further:
        if method.setting(name) is None:
            raise ArgumentError(name, no_setting(spec.kind, method, name))
        if name in spec.settings:
            raise ArgumentError(name, f"given twice, in {str(spec)!r} and beside it")
    settings = {**spec.settings, **further}
    of = load_class(spec.kind, spec.name)
    with _setting_of(spec.kind, *(setting.name for setting in method.settings)):
        for setting in method.settings:
            if setting.required and setting.name not in settings:
                raise ArgumentError(setting.name, f"the {spec.kind} {method.name!r} needs one, got None")
        if address(method.name) is None:
            return of(**networks, **settings)
        with failing(spec.kind, f"{method.name}()"):
            return of(**networks, **settings)


def checked_settings(kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a method's settings as its constructor was given them, each of its type and in its range.

    Args:
        kind: "defense", "attack" or "objective".
        name: in the catalog; of others nothing is known and nothing checked.
        given: values by name.

    Raises:
        ValueError: one is out of its range.
    """
    method = KINDS[kind].get(name)
    checked = {}
    for setting in () if method is None else method.settings:
        try:
            checked[setting.name] = _value(setting, given[setting.name])
        except ValueError as error:
            raise ArgumentError(setting.name, str(error)) from None
    return checked


def _parts(kind: str, given: Any) -> tuple[str, dict[str, Any]]:
    """The name of a method and its settings, texts or values, of any way to give them."""
    if isinstance(given, str):
        return _split(kind, given)
    if not isinstance(given, Mapping):
        raise ArgumentError(kind, f"expected a text, or a mapping with name and settings, got {given!r}")
    settings = {str(key): value for key, value in given.items()}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ArgumentError(kind, f"expected its name as a text under name, got {name!r}")
    if name in KINDS[kind] or _split(kind, name)[1] == {}:
        return name, settings
    raise ArgumentError(kind, f"expected name to be a name alone beside other settings, got {name!r}")


def _value(setting: Setting, given: Any) -> Any:
    """What a text or a value is as a setting.

    Raises:
        ValueError: it is none; the message says what was expected.
    """
    if given is None and isinstance(setting.value, Optional):
        return None
    if isinstance(given, Mapping):
        raise ValueError(f"expected {setting.value.says()}, got {dict(given)}")
    return setting.value.read(given if isinstance(given, str) else written(given))


def _split(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the texts of the settings."""
    name, colon, rest = text.partition(":")
    # The second part of an address is a name, of settings it has an equals sign.
    first, more, others = rest.partition(":")
    if colon and name not in KINDS[kind] and "=" not in first:
        name, colon, rest = f"{name}:{first}", more, others
    settings: dict[str, Any] = {}
    position = 0
    while colon and position < len(rest):
        match = _SETTING.match(rest, position)
        if match is None:
            raise ArgumentError(
                kind,
                f"expected NAME:setting=value,setting=[value,value], got {rest[position:]!r} in {text!r}",
            )
        if match["name"] in settings:
            raise ArgumentError(kind, f"{match['name']} is given twice in {text!r}")
        settings[match["name"]] = match["value"]
        position = match.end()
        if position == len(rest) and rest.endswith(","):
            raise ArgumentError(kind, f"expected a setting behind the last comma, got {text!r}")
    if colon and not settings:
        raise ArgumentError(kind, f"expected settings behind the colon, got {text!r}")
    return name.strip(), settings


def _of_class(name: str, of: type[Any]) -> Method:
    """What a user's class takes, by the signature of its constructor."""
    try:
        signature = inspect.signature(of, eval_str=True)
    except NameError:
        # Of types that are imported for type checkers only, annotations stay texts.
        signature = inspect.signature(of)
    # A class that inherits from several can do what any of them can.
    can = frozenset[str]().union(*(vars(base).get("can", ()) for base in of.__mro__))
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [one for one in signature.parameters.values() if one.kind in usual]
    settings = tuple(
        Setting(
            one.name,
            _value_of(one.annotation, one.default),
            None if one.default is one.empty else one.default,
            "",
            required=one.default is one.empty,
            # The noise of calling a certifiable defence, see CertifiableDefense.
            idle=frozenset({"certify"} if one.name == "sigma" and "certify" in can else ()),
        )
        for one in parameters
        if one.name not in NETWORKS
    )
    places = [one for one in parameters if one.name in NETWORKS]
    networks = tuple(one.name for one in places if one.default is one.empty)
    optional = tuple(one.name for one in places if one.default is not one.empty)
    line = (inspect.getdoc(of) or "").partition("\n")[0]
    return Method(name, name, line, settings, networks, can, optional)


def check_networks(method: str, **networks: object) -> None:
    """Raise ValueError for a network that a known method needs and is None, or that it has no use for.

    Args:
        method: a name of the catalog, or the address of a class.
        networks: any of classifier, denoiser and guide, or their specs.
    """
    own = describe("defense", method)
    for name, network in networks.items():
        if name in own.networks and network is None:
            raise ArgumentError(name, f"the method {method!r} needs one, got None")
        if name not in own.takes and network is not None:
            raise ArgumentError(name, f"the method {method!r} takes none")


def check_not_idle(spec: MethodSpec, use: str) -> None:
    """Raise ValueError for a setting, not at its default, that does nothing in one use: "certify"."""
    method = describe(spec.kind, spec.name)
    for name in spec.unusual().settings:
        setting = method.setting(name)
        if setting is not None and use in setting.idle:
            with _setting_of(spec.kind, name):
                raise ArgumentError(
                    name, f"this setting of {method.name!r} does nothing to {use}; leave it out"
                )


class _InPython(Value):
    """What has no text."""

    def read(self, text: str) -> Any:
        """See Value."""
        raise ValueError(f"its type has no text, expected it from Python, got {text!r}")

    def says(self) -> str:
        """See Value."""
        return "a value from Python"


def _value_of(annotation: Any, default: Any = inspect.Parameter.empty) -> Value:
    """What an argument takes as a text, by its annotation; without one, by its default."""
    plain = {int: Integer(None), float: Real(""), bool: Flag(), str: Text("a text")}
    nothing = default is None
    if annotation is inspect.Parameter.empty:
        numbers = isinstance(default, list | tuple) and {*map(type, default)} <= {int, float}
        return Numbers() if numbers else plain.get(type(default), _InPython())
    if annotation in plain:
        # As many write "n: int = None".
        return Optional(plain[annotation]) if nothing else plain[annotation]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return Choice(*annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        some = [one for one in inner if one is not types.NoneType]
        # An enum or its text is the enum.
        some = [one for one in some if one is not str] or some
        # A whole number is a number.
        some = [float] if set(some) == {int, float} else some
        if len(some) == 1:
            value = _value_of(some[0])
            return Optional(value) if types.NoneType in inner else value
    if origin is typing.Literal and {*map(type, inner)} == {str}:
        return Choice(*inner)
    if origin in (list, tuple, Sequence) and set(inner) <= {int, float, Ellipsis}:
        return Numbers(whole=float not in inner)
    return _InPython()


def written_as(setting: Setting, value: Any) -> str:
    """A setting's value as a text that reads as it again."""
    if value is None and isinstance(setting.value, Optional):
        return setting.value.word
    return written(value)
