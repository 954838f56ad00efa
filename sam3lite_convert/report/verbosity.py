"""How much is printed, as ``--quiet`` and ``--verbose`` say. Beside ``terminal``, which imports rich."""

from __future__ import annotations

from enum import Enum


class Verbosity(Enum):
    """quiet: the verdict and errors. normal: a summary. verbose: also what is long."""

    quiet = "quiet"
    normal = "normal"
    verbose = "verbose"


_chosen = Verbosity.normal


def choose(verbosity: Verbosity) -> None:
    """Set how much is printed from here on."""
    global _chosen
    _chosen = verbosity


def chosen() -> Verbosity:
    """How much is printed."""
    return _chosen


def quiet() -> bool:
    """Whether only the verdict and errors are printed."""
    return _chosen is Verbosity.quiet


def verbose() -> bool:
    """Whether long tables and lists are printed as a whole."""
    return _chosen is Verbosity.verbose


def listed(most: int) -> int | None:
    """How many entries of a list are printed; None for all of them."""
    return None if verbose() else most
