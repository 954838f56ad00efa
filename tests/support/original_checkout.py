"""The stand-in for a user's clone of the original: where its files are, and edits of a copy."""

from __future__ import annotations

from pathlib import Path

STAND_IN = Path(__file__).parents[1] / "stand_in"
OUTER = "sam3/__init__.py"
STUDENT = "sam3/sam3/model/text_encoder_student.py"
CLIP = "sam3/sam3/backbones/mobile_clip.py"
TOKENIZER = "sam3/sam3/model/tokenizer_ve.py"
TIMM = "from timm.models.layers import DropPath, trunc_normal_\n"
TORCHVISION = "from torchvision.ops import StochasticDepth\n"
LIBRARIES = ("timm.models.layers.DropPath", "timm.models.layers.trunc_normal_", "torchvision.ops.StochasticDepth")
TOKENIZED = "sam3.model.tokenizer_ve.SimpleTokenizer"


def edit(checkout: Path, file: str, *changes: tuple[str, str]) -> Path:
    text = (checkout / file).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (checkout / file).write_text(text)
    return checkout
