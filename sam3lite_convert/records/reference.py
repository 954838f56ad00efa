"""docs/json.md: every document of ``--json`` and conversion.json, field by field."""

from __future__ import annotations

import json

from sam3lite_convert.records.record import SCHEMA_VERSION, Json, JsonValue
from sam3lite_convert.records.schema import DOCUMENTS, json_schema

_HEAD = f"""# JSON

Every command takes `--json` and then prints one JSON document on stdout and nothing else there. A failure is a
document too, [error](#error), with the exit code of the command. NaN and infinity are null, since JSON has neither.
Each document has a `schema_version`, now {SCHEMA_VERSION}; it grows when a field goes or changes its meaning, not when
one is added.
`conversion.json` in a converted folder is the document [conversion](#conversion).

The JSON schemas are in the package: `sam3lite_convert/records/schemas/NAME.schema.json`. This page and they are written
by `python -m sam3lite_convert.records`.
"""
_WHEN = {
    "inspect": "`sam3lite inspect CHECKPOINT --json`",
    "convert": "`sam3lite convert CHECKPOINT --json`, also with `--dry-run`",
    "convert-all": "`sam3lite convert --all --json`, and `sam3lite convert` of several checkpoints",
    "explain": "`sam3lite explain CHECKPOINT KEY --json`",
    "explain-code": "`sam3lite explain CODE --json`",
    "tables": "`sam3lite tables --json`, also with CHECKPOINT",
    "keys": "`sam3lite tables CHECKPOINT GLOB --json`, and `sam3lite explain CHECKPOINT GLOB --json`",
    "verify": "`sam3lite verify DIR CHECKPOINT --json`",
    "diff": "`sam3lite diff A B --json`",
    "restore": "`sam3lite restore DIR --output FILE --json`",
    "export": "`sam3lite export onnx DIR --json`",
    "parity": "`sam3lite parity CHECKPOINT --json`, also with `--judge`",
    "parity-detector": "`sam3lite parity CHECKPOINT --component detector --json`, and `sam3lite judge FILE "
    "CHECKPOINT --json` where FILE holds taps of a whole detector",
    "judge": "`sam3lite judge FILE CHECKPOINT --json`: a parity document about what a port computed",
    "record": "`sam3lite record CHECKPOINT --output FILE --json`",
    "parity-self-test": "`sam3lite parity CHECKPOINT --self-test --json`",
    "demo": "`sam3lite demo --json`",
    "doctor": "`sam3lite doctor --json`",
    "judge-fingerprint": "`sam3lite judge FILE --fingerprint JSON --json`",
    "record-fingerprint": "`sam3lite record CHECKPOINT --fingerprint --json`",
    "record-detector": "`sam3lite record CHECKPOINT --component detector --output FILE --json`",
    "record-script": "`sam3lite record --script FILE.py --json`",
    "fingerprint": "`fingerprint.json` in a converted folder",
    "error": "any command that failed",
    "conversion": "`conversion.json`, the receipt in a converted folder",
}


def reference() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    shared: dict[str, Json] = {}
    for name, cls in DOCUMENTS.items():
        schema = json_schema(cls, name)
        definitions = schema["$defs"]
        assert isinstance(definitions, dict)
        shared |= {key: _object(value) for key, value in definitions.items()}
        parts += [f"## {name}\n", f"{_WHEN[name]}.\n", _fields(schema)]
    parts.append("# Objects in them\n")
    for name in sorted(shared):
        parts += [f"## {name}\n", _fields(shared[name])]
    return "\n".join(parts)


def _object(value: JsonValue) -> Json:
    assert isinstance(value, dict)
    return value


def _fields(schema: Json) -> str:
    required = schema["required"]
    assert isinstance(required, list)
    rows = [f"{schema['description']}\n", "| field | type | |", "|---|---|---|"]
    for name, value in _object(schema["properties"]).items():
        field = _object(value)
        absent = "" if name in required else " (may be absent)"
        rows.append(f"| `{name}` | {_type(field)}{absent} | {field.get('description', '')} |")
    return "\n".join(rows) + "\n"


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        options = schema["anyOf"]
        assert isinstance(options, list)
        return " or ".join(_type(_object(option)) for option in options)
    if "enum" in schema:
        values = schema["enum"]
        assert isinstance(values, list)
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(_object(schema['items']))}"
    if "additionalProperties" in schema:
        return f"name to {_type(_object(schema['additionalProperties']))}"
    kind = schema.get("type", "any JSON")
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
