"""What a graph needs to know of a folder that its tensors do not tell, as the receipt states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from sam3lite_convert.convert.packed_config import GROUPS
from sam3lite_convert.errors import CannotRun, Untrusted
from sam3lite_convert.records.record import Json

_Listed = TypeVar("_Listed", int, float)


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


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the ViT and its neck.

    head: width of a head. patch, image: in pixels. pretrain: side of the position table, and window: of a window, in
    patches. global_blocks: blocks that attend to the whole grid. hidden: width of the neck's maps. factors: sizes of
    its levels that are read, relative to the grid, finest first.
    """

    width: int
    layers: int
    heads: int
    channels: int
    patch: int
    image: int
    pretrain: int
    window: int
    global_blocks: frozenset[int]
    hidden: int
    factors: tuple[float, ...]

    @classmethod
    def of(cls, receipt: Json) -> VisionSizes:
        """Read a receipt. Raises Untrusted if it does not state them, or if they do not fit each other."""

        def number(name: str) -> int:
            return _number(receipt, *_DETECTOR, name)

        found = cls(
            width=number("vit_hidden"),
            layers=number("vit_blocks"),
            heads=number("vit_heads"),
            channels=number("channels"),
            patch=number("patch"),
            image=number("image_size"),
            pretrain=number("pretrain_image_size") // number("patch"),
            window=number("window_size"),
            global_blocks=frozenset(_listed(receipt, int, *_DETECTOR, "global_attn_indexes")),
            hidden=number("fpn_hidden"),
            factors=tuple(f for f in _listed(receipt, float, *_DETECTOR, "scale_factors") if f >= 1),
        )
        if found.width % (4 * found.heads) or not {4.0, 2.0, 1.0}.issuperset(found.factors):
            raise Untrusted("conversion.json: the sizes of the ViT and its neck do not fit each other", "bad_receipt")
        return found

    @property
    def head(self) -> int:
        return self.width // self.heads

    def grid(self, size: int) -> int:
        """Patches along a side of a picture of ``size`` pixels. Raises CannotRun if it is not a multiple of them."""
        if size < self.patch or size % self.patch:
            raise CannotRun(f"--size must be a multiple of {self.patch}, the detector's patches", "usage")
        return size // self.patch


@dataclass(frozen=True)
class DetectorSizes:
    """Sizes of what is behind the two encoders, at one size of the images.

    context: tokens of a text. width: of every sequence and map. sides: of the images' maps, in cells, finest first.
    roi: bins along a side of a box. The heads are those of attentions.
    """

    context: int
    width: int
    sides: tuple[int, ...]
    queries: int
    roi: int
    geometry_layers: int
    encoder_layers: int
    decoder_layers: int
    geometry_heads: int
    encoder_heads: int
    decoder_heads: int
    mask_heads: int

    @classmethod
    def of(cls, receipt: Json, size: int) -> DetectorSizes:
        """Read a receipt, for images of ``size`` pixels.

        Raises Untrusted if it does not state the sizes, CannotRun if ``size`` is not a multiple of the patch.
        """

        def number(name: str) -> int:
            return _number(receipt, *_DETECTOR, name)

        vision = VisionSizes.of(receipt)
        grid = vision.grid(size)
        heads = number("detr_heads")  # the decoder's; that the others have as many is stated there as assumed
        found = cls(
            context=_number(receipt, "context", "called"),
            width=number("hidden"),
            sides=tuple(int(grid * factor) for factor in vision.factors),
            queries=number("queries"),
            roi=number("roi"),
            geometry_layers=number("geometry_layers"),
            encoder_layers=number("detr_encoder_layers"),
            decoder_layers=number("detr_decoder_layers"),
            geometry_heads=heads,
            encoder_heads=heads,
            decoder_heads=heads,
            mask_heads=heads,
        )
        if found.width != vision.hidden or found.width % heads or found.width % GROUPS or found.sides[-1:] != (grid,):
            raise Untrusted("conversion.json: the sizes of the detector do not fit each other", "bad_receipt")
        return found

    @property
    def grid(self) -> int:
        """Patches along a side of the image, which are the cells of the coarsest map."""
        return self.sides[-1]

    @property
    def cells(self) -> int:
        """Cells of the coarsest map."""
        return self.grid * self.grid


_DETECTOR = ("architecture", "detector")


def _stated(receipt: Json, *path: str) -> object:
    said: object = receipt
    for name in path:
        if not isinstance(said, dict) or name not in said:
            raise Untrusted(f"conversion.json does not state {'.'.join(path)}", "bad_receipt")
        said = said[name]
    return said


def _number(receipt: Json, *path: str) -> int:
    """A whole number above zero."""
    found = _stated(receipt, *path)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Untrusted(f"conversion.json: {'.'.join(path)} is {found!r}, not a positive number", "bad_receipt")
    return found


def _listed(receipt: Json, kind: type[_Listed], *path: str) -> list[_Listed]:
    """A list of values of a kind."""
    found = _stated(receipt, *path)
    if not isinstance(found, list) or not all(type(value) is kind for value in found):
        raise Untrusted(f"conversion.json: {'.'.join(path)} is {found!r}, not a list of numbers", "bad_receipt")
    return list(found)
