"""What a record is: a frozen dataclass that turns itself into JSON and can be read back."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Literal, NamedTuple, TypeVar, Union

SCHEMA_VERSION = 1

JsonValue = Union[None, bool, int, float, str, "list[JsonValue]", "dict[str, JsonValue]"]
Json = dict[str, JsonValue]
R = TypeVar("R", bound="Record")

_FLAT, _OPTIONAL = "flat", "optional"


class AnyJson:
    """Stands for JsonValue where the types of fields are looked up."""


def flat() -> dict[str, bool]:
    """Metadata of a field whose own fields stand directly in the JSON object that holds it; nothing if it is None."""
    return {_FLAT: True}


def optional() -> dict[str, bool]:
    """Metadata of a field that is left out of the JSON if it is None."""
    return {_OPTIONAL: True}


class Record:
    """Base of all records. Subclasses are dataclasses."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__repr__ = Record.__repr__  # type: ignore[method-assign]  # or the dataclass makes one of all values

    def __repr__(self) -> str:
        """One line, without empty fields and defaults: a document may hold thousands of values; ``to_json`` has all."""
        values = [(item, getattr(self, item.name)) for item in fields(self)]  # type: ignore[arg-type]
        told = [(item.name, value) for item, value in values if value not in (None, "", (), {}, item.default)]
        shown = [f"{name}={_in_short(value)}" for name, value in told]
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_json(self) -> Json:
        """The record as JSON values. NaN and infinity become null: JSON has neither."""
        out: Json = {}
        for item in _items(type(self)):
            value = getattr(self, item.name)
            if value is None and (item.optional or item.flat):
                continue
            if item.flat:
                out |= value.to_json()
            else:
                out[item.name] = json_value(value)
        return out

    @classmethod
    def from_json(cls: type[R], data: JsonValue) -> R:
        """Read a record back. Fields that this version does not know are left out.

        Raises ValueError, naming the place, if a field is missing or holds a value of another type.
        """
        return _read_record(cls, data, "")


@dataclass(frozen=True, kw_only=True)
class Document(Record):
    """A record that is one JSON document on stdout."""

    schema_version: int = SCHEMA_VERSION


def json_value(value: object) -> JsonValue:
    """Anything that a record holds as JSON values; NaN and infinity become null."""
    if type(value) in _PLAIN:
        return value  # type: ignore[return-value]  # most values, and the tests below take their time
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Iterable):
        return [json_value(v) for v in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} has no place in JSON")


_SHORT = 160  # characters of a value in __repr__


def _in_short(value: object) -> str:
    """What ``__repr__`` shows of a field: a nested record by its name, a long collection by its length."""
    if isinstance(value, Record):
        return f"{type(value).__name__}(...)"
    text = repr(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    if any(isinstance(item, Record) for item in items) or (items and len(text) > _SHORT):
        return f"<{len(items)} items>" if len(items) > 1 else "<1 item>"
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}...{text[0]}"


def is_flat(item: Field[object]) -> bool:
    """Whether a field's own fields stand directly in the JSON object that holds it."""
    return bool(item.metadata.get(_FLAT))


def is_optional(item: Field[object]) -> bool:
    """Whether a field is left out of the JSON if it is None."""
    return bool(item.metadata.get(_OPTIONAL))


def field_types(cls: type, names: Mapping[str, object] | None = None) -> dict[str, object]:
    """The type of every field of a record. ``names``: classes that its module imports for type checkers alone."""
    return typing.get_type_hints(cls, localns={"JsonValue": AnyJson, **(names or {})})


# ---- what is looked up once for each record: a receipt holds 1,300 of one kind

_PLAIN = frozenset({str, bool, int, type(None)})


class _Item(NamedTuple):
    name: str
    flat: bool
    optional: bool


_ITEMS: dict[type, tuple[_Item, ...]] = {}
_TYPES: dict[type, dict[str, object]] = {}


def _items(cls: type) -> tuple[_Item, ...]:
    if cls not in _ITEMS:
        _ITEMS[cls] = tuple(_Item(item.name, is_flat(item), is_optional(item)) for item in fields(cls))
    return _ITEMS[cls]


def _types(cls: type) -> dict[str, object]:
    if cls not in _TYPES:
        _TYPES[cls] = field_types(cls)
    return _TYPES[cls]


@cache
def _parts(hint: object) -> tuple[object, tuple[object, ...]]:
    """A generic type and its arguments."""
    return typing.get_origin(hint), typing.get_args(hint)


# ---- reading back


def _read_record(cls: type[R], data: JsonValue, where: str) -> R:
    if not isinstance(data, dict):
        raise ValueError(f"{where or cls.__name__} is not an object")
    hints, values = _types(cls), {}
    for name, flat, optional in _items(cls):
        place = f"{where}.{name}" if where else name
        if flat:
            values[name] = _read_flat(hints[name], data, where)
        elif name in data:
            values[name] = _read(hints[name], data[name], place)
        elif optional:
            values[name] = None
        else:
            raise ValueError(f"{place} is missing")
    return cls(**values)


def _read_flat(hint: object, data: JsonValue, where: str) -> object:
    if type(None) not in _parts(hint)[1]:
        return _read(hint, data, where)
    try:
        return _read(hint, data, where)
    except ValueError:  # its fields are not there
        return None


def _read(hint: object, value: JsonValue, where: str) -> object:
    if hint is AnyJson or (type(value) is hint and hint in _PLAIN):
        return value
    origin, arguments = _parts(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        faults = []
        for option in arguments:
            try:
                return _read(option, value, where)
            except ValueError as fault:
                faults.append(fault)
        raise faults[0]
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if hint is type(None) and value is None:
        return None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and value is None:
        return math.inf
    if isinstance(hint, type) and issubclass(hint, Record):
        return _read_record(hint, value, where)
    raise ValueError(f"{where} has a value of another type")
