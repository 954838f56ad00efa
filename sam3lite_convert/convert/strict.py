"""Values that a conversion refuses: NaN and infinity, and values that a cast turns into infinity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from sam3lite_convert.checkpoint.nonfinite import Counts, words_of
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.errors import Sam3LiteError


class NotFinite(Sam3LiteError):
    """Exit 1: the checkpoint, or the result of a cast, holds values that are refused."""

    exit_code = 1


@dataclass(frozen=True)
class Strict:
    """What a conversion refuses.

    ``nonfinite``: NaN and infinity in the checkpoint.
    ``overflow``: finite values that a cast turns into infinity.
    """

    nonfinite: bool = False
    overflow: bool = True

    def check(self, found: dict[str, Counts], loss: CastLoss, dtype: str | None) -> None:
        """Raises NotFinite if such values were found. ``found``: key -> counts of NaN and infinity in the source."""
        if self.nonfinite and found:
            refuse({key: counts.record() for key, counts in found.items()}, words_of(found))
        if self.overflow and loss.overflowed_values:
            raise NotFinite(
                f"{loss.overflowed_values:,} values are out of range for {dtype} and would become infinite: "
                f"{overflow_words(loss)}. Use bfloat16, which has the range of float32, or --allow-overflow.",
                "overflow",
                loss.record()["overflows"],
            )


def refuse(details: dict[str, Any], words: str) -> NoReturn:
    """Raises NotFinite. ``details``: key -> counts; ``words``: the same in words."""
    raise NotFinite(
        f"{len(details):,} tensors hold NaN or infinity (--fail-on-nonfinite): {words}",
        "not_finite",
        details,
    )


def overflow_words(loss: CastLoss, shown: int = 5) -> str:
    """The tensors by name with their counts, largest value first."""
    worst = sorted(loss.overflows, key=lambda key: -loss.overflows[key][1])
    said = [f"{key}: {loss.overflows[key][0]:,}, largest {loss.overflows[key][1]:.6g}" for key in worst[:shown]]
    return "; ".join(said) + (f"; and {len(worst) - shown:,} more tensors" if len(worst) > shown else "")
