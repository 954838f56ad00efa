"""What fuzzing does with one input: ``write(folder, data)`` makes the files that it stands for, in a folder that holds
those of the input before; ``check(folder)`` has them read, and raises AssertionError if they are neither refused in
words nor read soundly."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from sam3lite_convert.errors import Sam3LiteError

NAMES = ("checkpoints", "tables", "activations", "folders")
_LONGEST = 5000


class Target(Protocol):
    """One of ``NAMES``."""

    def write(self, folder: Path, data: bytes) -> None:
        """Make the files that an input stands for."""

    def check(self, folder: Path) -> None:
        """Have them read. Raises AssertionError if what comes out is not sound."""


def load(name: str) -> Target:
    """The target of this name."""
    return importlib.import_module(f"targets.{name}")  # type: ignore[return-value]


def check_refusal(fault: Sam3LiteError, *codes: int) -> None:
    """Raises AssertionError if a refusal has another exit code than these, or an endless message."""
    assert fault.exit_code in codes, fault
    assert len(fault.message) < _LONGEST, "an endless message"
