"""The special ids of CLIP's tokenizer."""

from __future__ import annotations

START, END, PAD = 49406, 49407, 0
