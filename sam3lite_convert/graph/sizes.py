"""What a graph needs to know of a folder that its tensors do not tell, as the receipt states it."""

from __future__ import annotations

from dataclasses import dataclass

from sam3lite_convert.errors import Untrusted
from sam3lite_convert.records.record import Json


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a text encoder. context: tokens that it is called with. output, pooled: widths of the two outputs."""

    context: int
    width: int
    layers: int
    heads: int
    output: int
    pooled: int
    causal: bool

    @classmethod
    def of(cls, receipt: Json) -> TextSizes:
        """Read a receipt. Raises Untrusted if it does not state them."""
        return cls(
            context=_number(receipt, "context", "called"),
            width=_number(receipt, "architecture", "hidden_size"),
            layers=_number(receipt, "architecture", "num_hidden_layers"),
            heads=_number(receipt, "architecture", "num_attention_heads"),
            output=_number(receipt, "architecture", "output_dim"),
            pooled=_number(receipt, "architecture", "projection_dim"),
            causal=_stated(receipt, "architecture", "causal_masking") is True,
        )


def _stated(receipt: Json, section: str, name: str) -> object:
    said = receipt.get(section)
    if not isinstance(said, dict) or name not in said:
        raise Untrusted(f"conversion.json does not state {section}.{name}", "bad_receipt")
    return said[name]


def _number(receipt: Json, section: str, name: str) -> int:
    """A whole number above zero."""
    found = _stated(receipt, section, name)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Untrusted(f"conversion.json: {section}.{name} is {found!r}, not a positive number", "bad_receipt")
    return found
