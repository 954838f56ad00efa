"""The context length that the original is called with, beside the number of rows of the text position table.

The two can differ: the original builds its encoder at 77 positions, loads, and then keeps the first rows that it is
called with (``set_context_length``). So a file with a table of 77 rows may be called with 16 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.records.shared import ContextOrigin, ContextRecord

META_KEY = "text_context_length"
_LONGEST = 1024  # tokens; a greater number in a file is not a context
_IN_NAME = re.compile(r"(?:^|[\W_])ctx(\d{1,5})(?=$|[\W_])", re.IGNORECASE)
_SAYS = {
    "meta": "the file's meta says that the model is called with {} tokens",
    "name": "the file's name says that the model is called with {} tokens",
}


@dataclass(frozen=True)
class CalledContext:
    """What is known about the context of a checkpoint.

    called: tokens that the original is called with; the table's rows if nothing states it.
    rows: of the file's text position table.
    origin: what states ``called``.
    meta: what the file's ``meta`` entry states; None if it states nothing.
    name: what the file's name states; None if it states nothing.
    """

    called: int
    rows: int
    origin: ContextOrigin
    meta: int | None = None
    name: int | None = None

    @property
    def held(self) -> int:
        """Rows of the table that the original reads, and that a folder holds. A shorter table is never stretched."""
        return min(self.called, self.rows)

    @property
    def stated(self) -> int | None:
        """What the file itself states: its meta, else its name; None if neither does."""
        return self.name if self.meta is None else self.meta

    @property
    def says(self) -> str:
        """What in the file states the context, as the beginning of a sentence; empty if something else does."""
        return _SAYS[self.origin].format(self.called) if self.origin in _SAYS else ""

    @property
    def file_says(self) -> str:
        """The same of the file alone, whatever ``--context`` says."""
        return _SAYS["name" if self.meta is None else "meta"].format(self.stated) if self.stated else ""

    def record(self) -> ContextRecord:
        """For documents."""
        return ContextRecord(called=self.called, rows=self.rows, origin=self.origin)

    def note(self, released: Sequence[int]) -> str | None:
        """What a user has to know of it, in one line; None if the context is that of the table's rows.

        released: contexts of released files; a table of so many rows needs no doubt if its context is not stated.
        """
        if self.origin == "unknown":
            if self.rows in released:
                return None
            return (
                f"the context that the model is called with is not stated; its table has {self.rows} rows, which are "
                "all kept (--context N keeps the first N)"
            )
        if self.origin == "option":
            return self._note_on_option()
        other = self.origin == "meta" and self.name not in (None, self.meta)
        said = f"{self.says} (its name says {self.name})" if other else self.says
        if self.called == self.rows:
            return f"{said}, so all {self.rows} rows of its position table are kept" if other else None
        if self.called > self.rows:
            return (
                f"{said}; its position table has only {self.rows} rows, which are kept as they are: the original "
                f"stretches them to {self.called} in each call"
            )
        said += (
            f"; its position table has {self.rows} rows, of which the original reads the first {self.called}, and only "
            f"these are kept (--context {self.rows} keeps all)"
        )
        if self.origin == "name":
            said += ". If it was trained with all rows interpolated, only a meta entry could tell; none does"
        return said

    def _note_on_option(self) -> str | None:
        if self.stated is None and self.called == self.rows:
            return None
        said = f"--context {self.called} is followed" + (f", although {self.file_says}" if self.stated else "")
        kept = "all of" if self.called == self.rows else f"the first {self.called} of"
        return f"{said}: {kept} the {self.rows} rows of the position table are kept"

    def beside(self, rows: int) -> str | None:
        """What to say of a folder that holds so many rows of this table; None if the original reads just these."""
        if self.stated is None or rows == min(self.stated, self.rows):
            return None
        if rows < min(self.stated, self.rows):
            return f"{self.file_says}; the folder holds only the first {rows} of the {self.rows} rows of its table"
        return (
            f"{self.file_says}: the original reads the first {min(self.stated, self.rows)} rows of its table, the "
            f"folder holds {rows}. A call of the folder with fewer tokens resizes all {rows} (the stock call, with 32 "
            "tokens, too), where the original reads its first rows as they are"
        )


def called_context(checkpoint: Checkpoint, rows: int, option: int | None = None) -> CalledContext:
    """The context that a checkpoint is called with: by ``--context``, else its meta, else its name, else its rows.

    rows: of its text position table.
    Raises CannotRun if the option is not from 1 to ``rows``: a table is never stretched.
    """
    if option is not None and not 1 <= option <= rows:
        raise CannotRun(
            f"--context {option}: must be from 1 to {rows}, the number of rows of the text position table",
            "context_too_long",
        )
    path = Path(checkpoint.hub.path) if checkpoint.hub else checkpoint.path
    meta, name = _length(checkpoint.meta.get(META_KEY)), context_in_name(path)
    by: ContextOrigin = "meta" if meta is not None else "name" if name is not None else "unknown"
    stated = name if meta is None else meta
    if option is not None and option != stated:
        return CalledContext(option, rows, "option", meta, name)
    return CalledContext(rows if stated is None else stated, rows, by, meta, name)


def context_in_name(path: Path) -> int | None:
    """The N of ``ctxN``, a word of its own in the file's name; None if there is none, or two that differ."""
    found = {_length(int(n)) for n in _IN_NAME.findall(path.stem)}
    return found.pop() if len(found) == 1 else None


def _length(value: int | None) -> int | None:
    return value if value is not None and 1 <= value <= _LONGEST else None
