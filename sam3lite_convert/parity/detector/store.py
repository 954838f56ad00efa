"""Activations on disk, one file a tap, so that no more than one of them is in memory."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class TapStore:
    """A folder of activations by tap. ``folder``: an existing, empty folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, Path] = {}

    def write(self, tap: str, value: Tensor) -> None:
        """Keep an activation; one of the same tap is replaced."""
        path = self._folder / f"{len(self._names)}.safetensors" if tap not in self._names else self._names[tap]
        path.unlink(missing_ok=True)  # a file that is mapped is never written into
        save_file({"value": value.detach().cpu().contiguous()}, path)
        self._names[tap] = path

    def read(self, tap: str) -> Tensor:
        """The activation of a tap. Raises KeyError if it was not written."""
        return load_file(self._names[tap])["value"]

    def __contains__(self, tap: str) -> bool:
        return tap in self._names

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps that were written, in that order."""
        return tuple(self._names)
