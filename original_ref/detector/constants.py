"""The constants of the detector that no weight tells. The sections are those of the specification of the original.

Every module keeps the constants that it uses as attributes, so that a test can change one of them.
"""

from __future__ import annotations

from typing import NamedTuple

EPS = 1e-5  # of every LayerNorm and GroupNorm; section 11. Ports that use 1e-6 in the ViT are wrong.

# Vision trunk, section 1.
ROTARY_BASE = 10000.0

# Sine codes, section 2: of positions, boxes and queries.
TEMPERATURE = 10000.0
SINE_EPS = 1e-6

# Boxes, sections 4 and 6.
ROI_ALIGNED = False
LOGIT_EPS = 1e-3
RPB_SCALE = 8.0  # box relative positions: sign * log2(|8 d| + 1) / log2(8)

# Scores and masks, sections 7 and 8.
SCORE_CLAMP = 12.0
GROUPS = 8

# The processor, section 9.
MEAN = STD = 0.5
THRESHOLD = 0.5

USED_LEVELS = 3  # of the neck; a fourth is computed by the original and thrown away (section 2)


class Heads(NamedTuple):
    """Attention heads that no weight tells; 8 each in every released detector (section 11)."""

    geometry: int = 8
    encoder: int = 8
    mask: int = 8
