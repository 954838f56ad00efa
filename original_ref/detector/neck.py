"""The neck: maps of several resolutions from the trunk's one (section 2), and the whole vision side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from original_ref.detector.constants import USED_LEVELS
from original_ref.detector.positions import PositionMap
from original_ref.detector.trunk import Trunk

UP_4, UP_2, SAME, HALF = "up 4", "up 2", "same", "half"  # what a level does with the trunk's resolution


def level(kind: str, width: int, out: int) -> nn.Sequential:
    """One level of the neck. ``width``: channels of the trunk's map; ``out``: of the level's."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if kind == UP_4:
        parts["dconv_2x2_0"] = nn.ConvTranspose2d(width, width // 2, 2, 2)
        parts["gelu"] = nn.GELU()
        parts["dconv_2x2_1"] = nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        width //= 4
    elif kind == UP_2:
        parts["dconv_2x2"] = nn.ConvTranspose2d(width, width // 2, 2, 2)
        width //= 2
    elif kind == HALF:
        parts["maxpool_2x2"] = nn.MaxPool2d(2)
    parts["conv_1x1"] = nn.Conv2d(width, out, 1)
    parts["conv_3x3"] = nn.Conv2d(out, out, 3, padding=1)
    return nn.Sequential(parts)


class VisionBackbone(nn.Module):
    """Trunk and neck. ``levels``: what each level does; the fourth is loaded, but nothing reads it."""

    def __init__(self, trunk: Trunk, levels: Sequence[str], out: int) -> None:
        super().__init__()
        self.trunk = trunk
        width = trunk.pos_embed.shape[2]
        self.convs = nn.ModuleList(level(kind, width, out) for kind in levels)
        self.position_encoding = PositionMap(out)

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps, finest first, and their position maps: each (B or 1, out, h, w)."""
        features = self.trunk(image)
        maps, positions = [], []
        for conv in self.convs[:USED_LEVELS]:
            maps.append(conv(features))
            positions.append(self.position_encoding(maps[-1]))
        return maps, positions
