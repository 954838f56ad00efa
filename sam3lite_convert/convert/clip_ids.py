"""The special ids of CLIP's tokenizer."""

from __future__ import annotations

START, END, PAD = 49406, 49407, 0


def framing_ids(vocab: int) -> tuple[int, int]:
    """Start and end id: CLIP's own, or the last two of a smaller vocabulary."""
    return (START, END) if vocab > END else (vocab - 2, vocab - 1)
