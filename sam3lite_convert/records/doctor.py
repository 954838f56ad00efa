"""What ``doctor`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.records.record import Document, Record, optional

Status = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One line of the examination.

    name: within its group: a fact such as python or memory, a package, an extra, a folder, a variable.
    group: tool, packages, extras, imports, disk, memory or hub.
    status: ok: the check passed. note: a fact that is neither good nor bad, such as an extra that is not installed.
        warning: works, but is not tested or may run out. problem: a check failed, and something that is needed does not
        work.
    found: what was found, without secrets, names of users and the path of the home folder.
    advice: what to do.
    """

    name: str
    group: Literal["tool", "packages", "extras", "imports", "disk", "memory", "hub"]
    status: Status
    found: str
    advice: str | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class DoctorDocument(Document):
    """The surroundings that the tool runs in, and what is wrong with them.

    version: of sam3lite-convert.
    tables_sha256: hash of the built-in mapping tables, as in a receipt; null if they cannot be read.
    python: its version.
    platform: system, kernel, processor and C library.
    packages: version of each package that the tool or one of its extras uses; null for one that is not installed.
    verdict: the worst status of ``checks``, where a note counts as ok.
    """

    version: str
    tables_sha256: str | None
    python: str
    platform: str
    packages: dict[str, str | None]
    verdict: Literal["ok", "warning", "problem"]
    checks: tuple[Check, ...]
