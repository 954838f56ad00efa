"""The pictures of the detector's page: what each side found, and where the masks differ, as PNG (extra ``pictures``).

Colours are those of Okabe and Ito, which differ for every common colour blindness.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam3lite_convert.records.detector import Picture

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 640  # pixels of the longer side of a drawing
MOST = 30  # objects drawn
COLOURS = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
)
ORIGINAL_ALONE, CANDIDATE_ALONE = COLOURS[6], COLOURS[1]
NO_PICTURES = "the page has no pictures: they need Pillow: pip install 'sam3lite-convert[pictures]'"

_SAME = 0.5  # two masks show the same object from this IoU on


@dataclass(frozen=True)
class Objects:
    """What one side found.

    ``masks``: bool of shape (objects, height, width), of the picture's size.
    ``boxes``: (objects, 4): left, top, right, bottom in pixels.
    ``scores``: (objects,).
    """

    masks: Tensor
    boxes: Tensor
    scores: Tensor


def can_draw() -> bool:
    """Whether Pillow is installed, which everything here needs but this."""
    return find_spec("PIL") is not None


def pictures_of(picture: Tensor, original: Objects, candidate: Objects, threshold: float) -> tuple[Picture, ...]:
    """The page's three pictures: the objects of both sides, an object in the same colour on both, and the difference.

    ``picture``: uint8 of shape (height, width, 3).
    ``threshold``: the score above which objects were taken, for the caption.
    """
    mine, theirs = _highest(original), _highest(candidate)
    colours = _same_colours(original.masks[mine], candidate.masks[theirs])
    sides = [
        _record(
            title,
            _found(objects, threshold),
            f"The picture with the masks and boxes of the {title.lower()}",
            draw(picture, objects.masks, objects.boxes, objects.scores, chosen),
        )
        for title, objects, chosen in (("Original", original, range(len(mine))), ("Candidate", candidate, colours))
    ]
    alt = "The picture in grey, with the pixels in colour that only one side's masks cover"
    png = draw_difference(picture, original.masks, candidate.masks)
    return (*sides, _record("Difference", _differs(original.masks, candidate.masks), alt, png))


def draw(picture: Tensor, masks: Tensor, boxes: Tensor, scores: Tensor, colours: Sequence[int] | None = None) -> bytes:
    """A picture with the objects of the highest scores, at most ``MOST``: masks half transparent with a contour, boxes,
    scores.

    ``picture``: uint8 of shape (height, width, 3).
    ``masks``: bool of shape (objects, height, width).
    ``boxes``: (objects, 4): left, top, right, bottom in pixels; one that is not finite is left out.
    ``scores``: (objects,).
    ``colours``: places in ``COLOURS``, for the objects from the highest score down; by default one after the other.

    Returns a PNG file of at most ``LONGEST`` pixels a side.
    """
    import numpy
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    order = _highest(Objects(masks, boxes, scores))
    chosen = range(len(order)) if colours is None else colours
    small = _reduced(picture)
    scale = small.width / picture.shape[1], small.height / picture.shape[0]
    line = _line(small.size)
    values = numpy.array(small, numpy.float32)
    drawn = [(k, COLOURS[n % len(COLOURS)]) for k, n in zip(order, chosen, strict=True)][::-1]  # the highest on top
    for k, colour in drawn:
        mask = Image.fromarray(masks[k].cpu().numpy()).convert("L").resize(small.size, Image.Resampling.BOX)
        solid = mask.point(_half)
        covered, inner = numpy.array(solid) > 0, numpy.array(solid.filter(ImageFilter.MinFilter(2 * line + 1))) > 0
        values[covered] = (values[covered] + numpy.array(colour)) / 2
        values[covered & ~inner] = colour
    image = Image.fromarray(values.round().astype(numpy.uint8))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(max(11, max(small.size) // 29))
    for k, colour in drawn:
        box = [float(v) for v in boxes[k]]
        if not all(map(math.isfinite, box)):
            continue
        left, right = (min(max(round(v * scale[0]), 0), image.width - 1) for v in box[::2])
        top, bottom = (min(max(round(v * scale[1]), 0), image.height - 1) for v in box[1::2])
        if right < left or bottom < top:
            continue
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        text = f"{float(scores[k]):.2f}"
        end = pen.textbbox((left + 3, top + 2), text, font=font)[2:]
        pen.rectangle((left, top, end[0] + 2, end[1] + 2), fill=colour)
        pen.text((left + 3, top + 2), text, font=font, fill="white" if _dark(colour) else "black")
    return _png(image)


def draw_difference(picture: Tensor, masks: Tensor, others: Tensor) -> bytes:
    """The picture in grey, in ``ORIGINAL_ALONE`` where ``masks`` alone cover it, in ``CANDIDATE_ALONE`` where
    ``others`` alone do. Both are widened by a pixel or two, so that a single one can be seen.

    ``picture``: uint8 of shape (height, width, 3).
    ``masks``, ``others``: bool of shape (objects, height, width).

    Returns a PNG file of at most ``LONGEST`` pixels a side.
    """
    import numpy
    from PIL import Image

    small = _reduced(picture)
    grey = 110 + numpy.array(small.convert("L"), numpy.float32) / 2  # pale, so that the colours stand out
    values = numpy.repeat(grey.round().astype(numpy.uint8)[..., None], 3, -1)
    size, wider = (small.height, small.width), _line(small.size) - 1
    for alone, colour in zip(_alone(masks, others), (ORIGINAL_ALONE, CANDIDATE_ALONE), strict=True):
        reduced = torch.nn.functional.adaptive_max_pool2d(alone[None].float(), size)
        values[torch.nn.functional.max_pool2d(reduced, 2 * wider + 1, 1, wider)[0].cpu().numpy() > 0] = colour
    return _png(Image.fromarray(values))


def _highest(objects: Objects) -> list[int]:
    """The places of the objects with the highest scores, from the highest down; NaN is the lowest."""
    scores = objects.scores.detach().float().nan_to_num(nan=-math.inf)
    return [int(k) for k in scores.argsort(descending=True, stable=True)[:MOST]]


def _same_colours(masks: Tensor, others: Tensor) -> list[int]:
    """For each of ``others`` the place of the one of ``masks`` that shows the same object, or one that none has."""
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    both = b @ a.T
    iou = both / (b.sum(1)[:, None] + a.sum(1)[None] - both).clamp(min=1)
    found: dict[int, int] = {}
    for place in iou.flatten().argsort(descending=True).tolist():
        theirs, mine = divmod(place, len(a))
        if iou[theirs, mine] < _SAME:
            break
        if theirs not in found and mine not in found.values():
            found[theirs] = mine
    free = iter(range(len(a), len(a) + len(b)))
    return [found[k] if k in found else next(free) for k in range(len(b))]


def _alone(masks: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where one side's masks alone cover the picture: two bool tensors of shape (height, width)."""
    a, b = masks.any(0), others.any(0)
    return a & ~b, b & ~a


def _found(objects: Objects, threshold: float) -> str:
    count = len(objects.scores)
    if not count:
        return f"No object above {threshold:g}."
    words = f"{count:,} object{'s' * (count > 1)} above {threshold:g}"
    return f"{words}, the {MOST} of the highest scores drawn." if count > MOST else f"{words}."


def _differs(masks: Tensor, others: Tensor) -> str:
    alone, other = (int(side.sum()) for side in _alone(masks, others))
    if not len(masks) + len(others):
        return "Neither side found an object."
    if not alone + other:
        return "The masks of both sides cover the same pixels."
    sides = [
        f"{colour}: {count:,} pixel{'s' * (count > 1)} that the {side}'s masks alone cover"
        for colour, count, side in (("orange", alone, "original"), ("blue", other, "candidate"))
        if count
    ]
    words = "; ".join(sides)
    return f"{words[0].upper()}{words[1:]}. Drawn wider than they are, so that a single pixel can be seen."


def _record(title: str, caption: str, alt: str, png: bytes) -> Picture:
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of the header
    text = base64.b64encode(png).decode("ascii")
    return Picture(title=title, caption=caption, alt=alt, width=width, height=height, png=text)


def _reduced(picture: Tensor) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(picture.cpu().numpy())
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return image


def _line(size: tuple[int, int]) -> int:
    """Pixels of a contour and of a box: a page shows large drawings at half their size."""
    return max(2, round(max(size) / 240))


def _half(value: int) -> int:
    return 255 if value > 127 else 0


def _dark(colour: tuple[int, int, int]) -> bool:
    red, green, blue = ((part / 255) ** 2.2 for part in colour)
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18)  # white then has the greater contrast


def _png(image: Image.Image) -> bytes:
    """The file, in a palette of 256 colours: a third of the size, and hardly seen."""
    from PIL import Image

    out = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
