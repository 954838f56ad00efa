"""Values that a conversion refuses: NaN and infinity, and values that a cast turns into infinity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from sam3lite_convert.checkpoint.nonfinite import words_of
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.records.receipt import NonFinite


class NotFinite(Sam3LiteError):
    """Exit 1: the checkpoint or the result of a cast holds values that are refused."""

    exit_code = 1


@dataclass(frozen=True)
class Strict:
    """Which values a conversion refuses.

    nonfinite: NaN and infinity in the checkpoint.
    overflow: finite values that a cast turns into infinity.
    """

    nonfinite: bool = False
    overflow: bool = True

    def check(self, found: Mapping[str, NonFinite], loss: CastLoss, dtype: str | None) -> None:
        """Raises NotFinite if values that are refused were found."""
        if self.nonfinite and found:
            refuse(found)
        if self.overflow and loss.overflowed_values:
            raise NotFinite(
                f"{loss.overflowed_values:,} values are out of range for {dtype} and would become infinite: "
                f"{overflow_words(loss)}. Use bfloat16, which has the range of float32, or --allow-overflow.",
                "overflow",
                loss.record(dtype).overflows,
            )


def refuse(found: Mapping[str, NonFinite]) -> NoReturn:
    """Raises NotFinite. ``found``: the tensors that hold NaN or infinity, by source key."""
    raise NotFinite(
        f"{len(found):,} tensors hold values that are not finite (--fail-on-nonfinite): {words_of(found)}",
        "not_finite",
        found,
    )


def overflow_words(loss: CastLoss, shown: int = 5) -> str:
    """The overflowed tensors with their counts, in words; largest value first, at most ``shown`` of them."""
    worst = sorted(loss.overflows, key=lambda key: -loss.overflows[key][1])
    said = [f"{key}: {loss.overflows[key][0]:,}, largest {loss.overflows[key][1]:.6g}" for key in worst[:shown]]
    return "; ".join(said) + (f"; and {len(worst) - shown:,} more tensors" if len(worst) > shown else "")
