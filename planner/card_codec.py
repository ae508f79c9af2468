"""Cards and goals as plain data (YAML, JSON), both ways. Files, the catalogue's store and the REST API share it.

The schema is closed and is the records themselves: their fields, types and defaults. A port is written flat:

    name: read-digit
    version: "1"
    source: models:/read-digit@champion
    inputs: [{name: image, type: image/digit, datatype: FP32, shape: [8, 8]}]
    outputs: [{name: digit, type: label/digit, datatype: INT64}]

Ports may also be written by name, as the classes do: `outputs: {digit: {type: label/digit, datatype: INT64}}`.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from planner.cards import Card
from planner.errors import BadCard, BadRequest, near
from planner.features import Feature, Port
from planner.goals import Goal, Terms

_DEPTH = 32
_PORTS = "Write for example [{name: image, type: image/digit, datatype: FP32, shape: [8, 8]}]."


def parse_card(given: Any, where: str) -> Card:
    """A card from plain data. `where` (a file name, say) begins every error message.

    Raises BadCard that names the place (`cards.yaml: outputs[0].shape`), what is wrong and what is near.
    """
    card: Card = _record(Card, given, _At(where))
    return card


def parse_goal(given: Any, where: str) -> Goal:
    """A goal from plain data; raises BadCard like `parse_card`."""
    goal: Goal = _record(Goal, given, _At(where))
    return goal


def parse_card_fields(given: Any, where: str) -> dict[str, Any]:
    """The fields of a card that are given, none being required: what an operator changes with `Card.but(**fields)`.

    Raises BadCard like `parse_card`; rules that span several fields are checked by `Card.but`.
    """
    return _fields(_types(Card), "card", given, _At(where))


def card_to_dict(card: Card) -> dict[str, Any]:
    """Every field as plain data that JSON can hold; `parse_card` makes an equal card of it. Bytes become base64."""
    plain: dict[str, Any] = _plain(card)
    return plain


def goal_to_dict(goal: Goal) -> dict[str, Any]:
    """Every field as plain data that JSON can hold; `parse_goal` makes an equal goal of it."""
    plain: dict[str, Any] = _plain(goal)
    return plain


class _At:
    """A place in the given data, for messages: `cards.yaml: outputs[0].shape`."""

    __slots__ = ("path", "where")

    def __init__(self, where: str, path: str = "") -> None:
        self.where = where
        self.path = path

    def key(self, name: str) -> _At:
        return _At(self.where, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> _At:
        return _At(self.where, f"{self.path}[{index}]")

    def wrong(self, message: str, hint: str = "") -> BadCard:
        return BadCard(": ".join(part for part in (self.where, self.path, message) if part), hint=hint)


@cache
def _types(record: type) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {f.name: hints[f.name] for f in fields(record)}


@cache
def _required(record: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(record) if f.default is MISSING and f.default_factory is MISSING)


def _fields(known: Mapping[str, Any], what: str, given: Any, at: _At) -> dict[str, Any]:
    values = {}
    for name, value in _mapping(given, at, f"the fields of a {what}").items():
        if name not in known:
            raise at.wrong(f"there is no field {name!r}.", near(name, known))
        values[name] = _read(known[name], value, at.key(name))
    return values


def _demand(required: tuple[str, ...], what: str, values: Mapping[str, Any], at: _At) -> None:
    for name in required:
        if name not in values:
            raise at.wrong(f"{name!r} is missing.", f"A {what} needs {', '.join(required)}.")


def _record(record: type, given: Any, at: _At) -> Any:
    what = record.__name__.lower()
    values = _fields(_types(record), what, given, at)
    _demand(_required(record), what, values, at)
    return _made(record, values, at)


def _made(record: Any, values: dict[str, Any], at: _At) -> Any:
    try:
        return record(**values)
    except BadRequest as error:  # the record's own rules (BadCard, BadTerms) do not know where they are read
        raise at.wrong(error.message, error.hint) from None


def _port(given: Any, at: _At) -> Port:
    """A port is written flat: its feature's fields beside its own."""
    values = _fields({"name": str, **_types(Feature), "many": int}, "port", given, at)
    _demand(("name", "type"), "port", values, at)
    feature = _made(Feature, {k: values.pop(k) for k in _types(Feature) if k in values}, at)
    port: Port = _made(Port, {**values, "feature": feature}, at)
    return port


def _ports(given: Any, at: _At) -> tuple[Port, ...]:
    if isinstance(given, Mapping):
        return tuple(
            _port(_named(name, port, at.key(name)), at.key(name))
            for name, port in _mapping(given, at, "ports by name").items()
        )
    if not isinstance(given, list | tuple):
        raise at.wrong(f"{_shown(given)} is not a list of ports.", _PORTS)
    return tuple(_port(port, at.item(i)) for i, port in enumerate(given))


def _named(name: str, port: Any, at: _At) -> Mapping[str, Any]:
    if not isinstance(port, Mapping):
        raise at.wrong(f"{_shown(port)} is not a port.", _PORTS)
    if port.get("name", name) != name:
        raise at.wrong(f"a port {name!r} is named {_shown(port['name'])}.", "Name it once.")
    return {**port, "name": name}


def _terms(given: Any, at: _At) -> Terms:
    try:
        return Terms.parse(_mapping(given, at, "terms by name"))
    except BadRequest as error:
        raise at.wrong(error.message, error.hint) from None


def _mapping(given: Any, at: _At, what: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise at.wrong(f"{_shown(given)} where {what} should be.")
    for key in given:
        if not isinstance(key, str):
            raise at.wrong(f"the key {_shown(key)} is not a text.", "Put it in quotes.")
    return given


def _read(kind: Any, given: Any, at: _At) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # the records only have `X | None`
        return None if given is None else _read(arguments[0], given, at)
    if kind is Port:
        return _port(given, at)
    if kind is Terms:
        return _terms(given, at)
    if is_dataclass(kind):
        return _record(kind, given, at)  # type: ignore[arg-type]
    if origin in (tuple, frozenset):
        if arguments[0] is Port:
            return _ports(given, at)
        if not isinstance(given, list | tuple):
            raise at.wrong(f"{_shown(given)} is not a list.", "Write it in square brackets.")
        return origin(_read(arguments[0], item, at.item(i)) for i, item in enumerate(given))
    if origin is Literal:
        if given is False and "off" in arguments:  # YAML takes a bare `off` for a boolean
            return "off"
        if given not in arguments:
            raise at.wrong(f"{_shown(given)} is unknown.", near(str(given), arguments))
        return given
    if kind is bytes:
        return _bytes(given, at)
    if kind in (str, bool, int, float):
        return _scalar(kind, given, at)
    return _json(_mapping(given, at, "options by name"), at)


_SCALARS = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number"}


def _scalar(kind: type, given: Any, at: _At) -> Any:
    if kind is float and type(given) in (int, float) and abs(given) <= sys.float_info.max:
        return float(given)
    if kind is not float and type(given) is kind:
        return given
    hint = "Put it in quotes." if kind is str and type(given) in (int, float, bool) else ""
    raise at.wrong(f"{_shown(given)} is not {_SCALARS[kind]}.", hint)


def _bytes(given: Any, at: _At) -> bytes:
    try:
        if isinstance(given, str):
            return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise at.wrong(f"{_shown(given)} is not a text in base64.")


def _json(given: Any, at: _At, depth: int = 0) -> Any:
    if depth > _DEPTH:
        raise BadCard(f"{at.where}: options are nested more than {_DEPTH} deep.")
    if isinstance(given, Mapping):
        return {
            key: _json(value, at.key(key), depth + 1) for key, value in _mapping(given, at, "values by name").items()
        }
    if isinstance(given, list | tuple):
        return [_json(value, at.item(i), depth + 1) for i, value in enumerate(given)]
    if given is None or type(given) in (str, bool, int) or (type(given) is float and math.isfinite(given)):
        return given
    raise at.wrong(f"{_shown(given)} cannot be written as JSON.")


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    if isinstance(value, Port):
        plain = {"name": value.name, **_plain(value.feature)}
        return {**plain, "many": value.many} if value.many != 1 else plain
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value
