"""The JSON schema of every document, from the fields, types and docstrings of its record."""

from __future__ import annotations

import json
import re
import types
import typing
from dataclasses import fields
from typing import Literal, Union

from sam3lite_convert.records import (
    convert,
    demo,
    detector,
    diff,
    doctor,
    explain,
    export,
    fingerprint,
    inspect,
    parity,
    receipt,
    restore,
    shared,
    tables,
    verify,
)
from sam3lite_convert.records.record import AnyJson, Json, JsonValue, Record, field_types, is_flat, is_optional

DOCUMENTS: dict[str, type[Record]] = {
    "inspect": inspect.InspectDocument,
    "convert": convert.ConvertDocument,
    "convert-all": convert.ConvertAllDocument,
    "explain": explain.ExplainDocument,
    "explain-code": explain.CodeDocument,
    "tables": tables.TablesDocument,
    "keys": tables.KeysDocument,
    "verify": verify.VerifyDocument,
    "diff": diff.DiffDocument,
    "restore": restore.RestoreDocument,
    "export": export.ExportDocument,
    "parity": parity.ParityDocument,
    "parity-detector": detector.DetectorDocument,
    "judge": parity.ParityDocument,
    "record": parity.RecordDocument,
    "parity-self-test": parity.SelfTestDocument,
    "demo": demo.DemoDocument,
    "doctor": doctor.DoctorDocument,
    "judge-fingerprint": fingerprint.FingerprintDocument,
    "record-fingerprint": fingerprint.FingerprintWritten,
    "record-detector": detector.DetectorRecordDocument,
    "record-script": parity.ScriptWritten,
    "fingerprint": fingerprint.Fingerprint,
    "error": shared.ErrorDocument,
    "conversion": receipt.Receipt,
}
_NAMES: dict[str, object] = {
    name: cls
    for module in (convert, detector, diff, fingerprint, inspect, parity, restore, verify)
    for name, cls in vars(module).items()
}


def json_schema(cls: type[Record], title: str) -> Json:
    """JSON schema (draft 2020-12) of a document, from the fields and types of its record."""
    definitions: Json = {}
    schema = _object(cls, definitions)
    head: Json = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | schema | {"$defs": dict(sorted(definitions.items()))}


def schema_files() -> dict[str, str]:
    """The shipped schemas by file name."""
    return {
        f"{name}.schema.json": json.dumps(json_schema(cls, name), indent=1) + "\n" for name, cls in DOCUMENTS.items()
    }


def _object(cls: type, definitions: Json) -> Json:
    summary, meanings = _described(cls)
    hints = field_types(cls, _NAMES)
    properties: Json = {}
    required: list[JsonValue] = []
    for item in fields(cls):
        inner = _schema(hints[item.name], definitions)
        if is_flat(item):
            nested, maybe = _record_of(hints[item.name])
            merged = _object(nested, definitions)
            properties |= typing.cast(Json, merged["properties"])
            required += [] if maybe else typing.cast("list[JsonValue]", merged["required"])
            continue
        properties[item.name] = inner | ({"description": meanings[item.name]} if item.name in meanings else {})
        if not is_optional(item):
            required.append(item.name)
    return {"description": summary, "type": "object", "properties": properties, "required": required}


def _described(cls: type) -> tuple[str, dict[str, str]]:
    """The summary of a record's docstring, and what it says of each field: a paragraph ``name: meaning`` each."""
    names = {item.name for item in fields(cls)}
    summary: list[str] = []
    meanings: dict[str, list[str]] = {}
    current = summary
    for line in (cls.__doc__ or "").splitlines():
        if (match := re.match(r"\s*(\w+): (.+)", line)) and match[1] in names:
            current = meanings.setdefault(match[1], [])
            current.append(match[2])
        elif line.strip():
            current.append(line.strip())
        else:
            current = summary
    return " ".join(summary), {name: " ".join(said) for name, said in meanings.items()}


def _record_of(hint: object) -> tuple[type[Record], bool]:
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    return (options[0], True) if options else (typing.cast("type[Record]", hint), False)


_PLAIN: dict[object, Json] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},
    type(None): {"type": "null"},
}


def _schema(hint: object, definitions: Json) -> Json:
    if hint is AnyJson:
        return {}
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(a, definitions) for a in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(hint, type) and issubclass(hint, Record):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # a record that holds its own kind ends here
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"no schema for {hint}")
