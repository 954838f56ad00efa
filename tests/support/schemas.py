"""Every document that a command prints is held against its schema."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from jsonschema import Draft202012Validator

from sam3lite_convert.records.schema import DOCUMENTS, json_schema


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """The schema of a document; fields that it does not know are errors here."""
    schema = json_schema(DOCUMENTS[name], name)
    for part in [schema, *schema["$defs"].values()]:
        part["additionalProperties"] = False
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def document_of(arguments: Sequence[str], document: object) -> str:
    """Which document a command line prints."""
    if isinstance(document, dict) and "error" in document:
        return "error"
    command = next(a for a in arguments if not a.startswith("-"))
    if command == "convert" and isinstance(document, dict) and "results" in document:
        return "convert-all"
    if command == "explain" and isinstance(document, dict) and "code" in document:
        return "explain-code"
    if command in ("explain", "tables") and isinstance(document, dict) and "pattern" in document:
        return "keys"
    if command in ("judge", "record") and "--fingerprint" in arguments:
        return f"{command}-fingerprint"
    if command == "judge" and isinstance(document, dict) and "stages" in document:
        return "parity-detector"
    if command in ("parity", "record") and "detector" in arguments and "--self-test" not in arguments:
        return f"{command}-detector"
    if command == "record" and "--script" in arguments:
        return "record-script"
    return "parity-self-test" if command == "parity" and "--self-test" in arguments else command


def check_document(arguments: Sequence[str], document: object) -> None:
    """Raises AssertionError, naming the places, if a document is not what its schema says."""
    name = document_of(arguments, document)
    faults = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in validator(name).iter_errors(document)
    ]
    assert faults == [], f"{name} is not what its schema says: {faults[:5]}"
