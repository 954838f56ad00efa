"""Which values a conversion refuses: those that are not finite, and those that a cast makes infinite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from sam3lite_convert.checkpoint.nonfinite import words_of
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.records.receipt import NonFinite


class NotFinite(Sam3LiteError):
    """Exit 1: there are values that are not finite, and there were to be none."""

    exit_code = 1


@dataclass(frozen=True)
class Strict:
    """What a conversion refuses: values that are not finite already, and those that a cast makes so."""

    nonfinite: bool = False
    overflow: bool = True

    def check(self, found: Mapping[str, NonFinite], loss: CastLoss, dtype: str | None) -> None:
        """Raises NotFinite for the first of them that was found."""
        if self.nonfinite and found:
            refuse(found)
        if self.overflow and loss.overflowed_values:
            raise NotFinite(
                f"{loss.overflowed_values:,} values do not fit into {dtype} and would become infinite: "
                f"{overflow_words(loss)}. bfloat16 has the range of float32; --allow-overflow takes them as they are.",
                "overflow",
                loss.record(dtype).overflows,
            )


def refuse(found: Mapping[str, NonFinite]) -> NoReturn:
    """Raises NotFinite for tensors that hold such values, by source key."""
    raise NotFinite(
        f"{len(found):,} tensors hold values that are not finite (--fail-on-nonfinite): {words_of(found)}",
        "not_finite",
        found,
    )


def overflow_words(loss: CastLoss, shown: int = 5) -> str:
    """The tensors by name, the greatest value first."""
    worst = sorted(loss.overflows, key=lambda key: -loss.overflows[key][1])
    said = [f"{key}: {loss.overflows[key][0]:,}, the greatest {loss.overflows[key][1]:.6g}" for key in worst[:shown]]
    return "; ".join(said) + (f"; and {len(worst) - shown:,} more tensors" if len(worst) > shown else "")
