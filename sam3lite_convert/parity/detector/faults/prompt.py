"""Faults of the geometry encoder, and of how the prompt is put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from original_ref import Detector
from original_ref.detector.boxes import corners
from original_ref.detector.geometry import BoxCode, GeometryEncoder, GeometryLayer, RoiAlign, TokenSequence
from original_ref.detector.model import Prompt
from original_ref.text_reference import PAD
from sam3lite_convert.parity.detector.faults.changes import (
    NOTHING,
    Change,
    DetectorFault,
    Inputs,
    Need,
    computing,
    part,
    replacing,
    setting,
)
from sam3lite_convert.parity.detector.faults.parts import (
    attention_faults,
    eps_faults,
    exchanged,
    feed_forward_faults,
    norm_faults,
    other_layer_faults,
)
from sam3lite_convert.parity.detector.faults.vision import sine_faults

_PATH = "geometry_encoder"


def _count(inputs: Inputs) -> int:
    return inputs["boxes"].shape[1] if "boxes" in inputs else 0


def _has_padded_boxes(model: Detector, layer: int, inputs: Inputs) -> bool:
    return "box_mask" in inputs and bool(inputs["box_mask"].any())


def _has_negative(model: Detector, layer: int, inputs: Inputs) -> bool:
    return "box_labels" in inputs and bool((inputs["box_labels"] == 0).any())


def _cells(model: Detector, inputs: Inputs) -> Tensor:
    """Corners of the boxes in cells of the coarsest map."""
    patch = model.get_parameter("backbone.vision_backbone.trunk.patch_embed.proj.weight").shape[2]
    return corners(inputs["boxes"]) * (model.image_size // patch)


def _has_beyond(model: Detector, layer: int, inputs: Inputs) -> bool:
    if not _count(inputs):
        return False
    cells = _cells(model, inputs)
    size = model.image_size // model.get_parameter("backbone.vision_backbone.trunk.patch_embed.proj.weight").shape[2]
    return bool(((cells < -1) | (cells > size)).any())


BOXES = Need("a box", lambda model, layer, inputs: _count(inputs) > 0)
PADDED_BOXES = Need("prompts with different numbers of boxes", _has_padded_boxes)
NEGATIVE = Need("a box with the label 0", _has_negative)
BEYOND = Need("a box that sticks out by more than a cell", _has_beyond)
PADDED_TEXT = Need("padding in the ids", lambda model, layer, inputs: bool((inputs["input_ids"] == PAD).any()))


def prompt_faults() -> Iterator[DetectorFault]:
    """All of them, in the order of the rows."""
    yield from _box_numbers()
    yield from _pooled()
    yield from _box_codes()
    yield from _labels()
    yield from _sequence()
    yield from eps_faults("geometry.norm", "the geometry encoder's norm", f"{_PATH}.norm", "")
    yield from norm_faults("geometry.norm", "the geometry encoder's norm", f"{_PATH}.norm")
    yield from _layers()
    yield from eps_faults("geometry.output", "the geometry encoder's encode_norm", f"{_PATH}.encode_norm", "")
    yield from norm_faults("geometry.output", "the geometry encoder's encode_norm", f"{_PATH}.encode_norm")
    yield from _put_together()


def _geometry(model: Detector) -> GeometryEncoder:
    return part(model, _PATH, 0, GeometryEncoder)


# ---- views of a box


def _xywh(boxes: Tensor) -> Tensor:
    centre, size = boxes.split(2, -1)
    return torch.cat((centre - size / 2, size), -1)


_FORMATS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "xyxy": ("x0 y0 x1 y1", corners),
    "xywh": ("x0 y0 w h", _xywh),
    "y_first": ("centre y, centre x, h, w", lambda boxes: boxes[..., [1, 0, 3, 2]]),
}


def _box_numbers() -> Iterator[DetectorFault]:
    row = "geometry.box_direct"

    def given_as(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            geometry = _geometry(model)
            own = geometry.box_tokens
            return setting(geometry, box_tokens=lambda boxes, labels, features: own(change(boxes), labels, features))

        return made

    def direct(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            project = _geometry(model).boxes_direct_project
            own = project.forward
            return computing(project, lambda boxes: own(change(boxes)))

        return made

    for name, (said, change) in _FORMATS.items():
        words = f"boxes are given as {said}; the original reads centre x, centre y, w, h"
        yield DetectorFault(f"geometry.box_direct.format:{name}", words, row, given_as(change), BOXES)
        words = f"boxes_direct_project reads {said}; the original's reads centre x, centre y, w, h"
        yield DetectorFault(f"geometry.box_direct.reads:{name}", words, row, direct(change), BOXES)

    def in_pixels(model: Detector, layer: int) -> Change:
        return given_as(lambda boxes: boxes * model.image_size)(model, layer)

    words = "boxes are given in pixels; the original's are relative to the picture"
    yield DetectorFault("geometry.box_direct.pixels", words, row, in_pixels, BOXES)


def _pooled() -> Iterator[DetectorFault]:
    row, path = "geometry.box_pooled", f"{_PATH}.img_pre_norm"

    def boxes_as(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        """``change``: features and corners in cells -> corners in cells, before roi_align."""

        def made(model: Detector, layer: int) -> Change:
            align = _geometry(model).roi_align
            own = align.forward
            return computing(align, lambda features, boxes: own(features, change(features, boxes)))

        return made

    def as_given(features: Tensor, boxes: Tensor) -> Tensor:
        low, high = boxes.split(2, -1)
        return torch.cat(((low + high) / 2, high - low), -1)

    def size(features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        return features.new_tensor([width, height, width, height])

    words = "roi_align reads centre and size as two corners: the boxes are not turned into corners"
    yield DetectorFault("geometry.box_pooled.not_corners", words, row, boxes_as(as_given), BOXES)
    words = "roi_align reads boxes relative to the picture; the original's are in cells of the map"
    yield DetectorFault("geometry.box_pooled.not_cells", words, row, boxes_as(lambda f, b: b / size(f)), BOXES)

    def pixels(model: Detector, layer: int) -> Change:
        return boxes_as(lambda f, b: b / size(f) * model.image_size)(model, layer)

    words = "roi_align reads boxes in pixels; the original's are in cells of the map"
    yield DetectorFault("geometry.box_pooled.pixels", words, row, pixels, BOXES)
    words = "roi_align reads y before x"
    yield DetectorFault("geometry.box_pooled.y_first", words, row, boxes_as(lambda f, b: b[..., [1, 0, 3, 2]]), BOXES)
    words = "roi_align cuts boxes to the picture; the original's does not"

    def cut(features: Tensor, boxes: Tensor) -> Tensor:
        return torch.minimum(boxes.clamp(min=0), size(features))

    outside = Need("a box that sticks out of the picture", _sticks_out)
    yield DetectorFault("geometry.box_pooled.cut", words, row, boxes_as(cut), outside)

    def aligned(model: Detector, layer: int) -> Change:
        return setting(_geometry(model).roi_align, aligned=True)

    words = "roi_align is aligned (half a cell is taken off); the original's is not"
    yield DetectorFault("geometry.box_pooled.aligned", words, row, aligned, BOXES)

    def sampling(
        each: Callable[[Tensor, int], int], least: float = 1.0, border: bool = False
    ) -> Callable[[Detector, int], Change]:
        """``each``: of a box's length in cells and the number of bins: samples in a bin."""

        def made(model: Detector, layer: int) -> Change:
            align = part(model, f"{_PATH}.roi_align", 0, RoiAlign)

            def samples(start: Tensor, end: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
                length = (end - start).clamp(min=least)
                count = each(length, align.size)
                index = torch.arange(align.size * count, device=start.device)
                step = length / align.size
                at = start + index.div(count, rounding_mode="floor") * step + (index % count + 0.5) * step / count
                inside = torch.ones_like(at, dtype=torch.bool) if border else (at >= -1) & (at <= cells)
                at = at.clamp(0, cells - 1)
                low = at.floor().long()
                return inside, low, (low + 1).clamp(max=cells - 1), at - low

            return setting(align, _samples=samples)

        return made

    def usual(length: Tensor, bins: int) -> int:
        return max(int(torch.ceil(length / bins)), 1)

    large = Need("a box of more cells than roi_align has bins", _is_large)
    words = "roi_align takes one sample in a bin; the original as many as the bin has cells"
    yield DetectorFault("geometry.box_pooled.sampling:1", words, row, sampling(lambda length, bins: 1), large)
    words = "roi_align takes two samples in a bin; the original as many as the bin has cells"
    yield DetectorFault("geometry.box_pooled.sampling:2", words, row, sampling(lambda length, bins: 2), BOXES)
    words = (
        "roi_align reads the nearest cell beyond the map, as torchvision's fallback in Python does; the original's "
        "compiled one reads zero"
    )
    yield DetectorFault("geometry.box_pooled.border", words, row, sampling(usual, border=True), BEYOND)
    words = "roi_align does not widen boxes to one cell"
    yield DetectorFault(
        "geometry.box_pooled.not_widened", words, row, sampling(usual, least=0.0), Need("a box below a cell", _is_tiny)
    )

    def transposed(model: Detector, layer: int) -> Change:
        align = _geometry(model).roi_align
        own = align.forward
        return computing(align, lambda features, boxes: own(features, boxes).mT)

    words = "rows and columns of what lies under a box are exchanged"
    yield DetectorFault("geometry.box_pooled.bins_transposed", words, row, transposed, BOXES)
    yield from eps_faults(row, "the geometry encoder's img_pre_norm", path, "", needs=BOXES)
    yield from norm_faults(row, "the geometry encoder's img_pre_norm", path, BOXES)


def _sticks_out(model: Detector, layer: int, inputs: Inputs) -> bool:
    if not _count(inputs):
        return False
    boxes = corners(inputs["boxes"])
    return bool(((boxes < 0) | (boxes > 1)).any())


def _is_large(model: Detector, layer: int, inputs: Inputs) -> bool:
    if not _count(inputs):
        return False
    low, high = _cells(model, inputs).split(2, -1)
    return bool((high - low > part(model, f"{_PATH}.roi_align", 0, RoiAlign).size).any())


def _is_tiny(model: Detector, layer: int, inputs: Inputs) -> bool:
    if not _count(inputs):
        return False
    low, high = _cells(model, inputs).split(2, -1)
    return bool((high - low < 1).any())


def _box_codes() -> Iterator[DetectorFault]:
    row = "geometry.box_position"

    def coded(order: Callable[[BoxCode, Tensor], list[Tensor]]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            code = part(model, f"{_PATH}.encode_boxes", 0, BoxCode)
            return computing(code, lambda boxes: torch.cat(order(code, boxes), -1))

        return made

    def parts(code: BoxCode, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y, w, h = boxes.unbind(-1)
        return code.code(x), code.code(y), w[..., None], h[..., None]

    def x_first(code: BoxCode, boxes: Tensor) -> list[Tensor]:
        x, y, w, h = parts(code, boxes)
        return [x, y, h, w]

    def width_first(code: BoxCode, boxes: Tensor) -> list[Tensor]:
        x, y, w, h = parts(code, boxes)
        return [y, x, w, h]

    def size_first(code: BoxCode, boxes: Tensor) -> list[Tensor]:
        x, y, w, h = parts(code, boxes)
        return [h, w, y, x]

    words = "the box's code has x before y; the original's has y first"
    yield DetectorFault("geometry.box_position.x_first", words, row, coded(x_first), BOXES)
    words = "the box's code has its width before its height; the original's has the height first"
    yield DetectorFault("geometry.box_position.width_first", words, row, coded(width_first), BOXES)
    words = "the box's code has its size before its centre; the original's has the centre first"
    yield DetectorFault("geometry.box_position.size_first", words, row, coded(size_first), BOXES)
    words = "the code of a box is made from its corner; the original's from its centre"
    corner = coded(lambda code, boxes: _as_original(code, _xywh(boxes)))
    yield DetectorFault("geometry.box_position.corner", words, row, corner, BOXES)
    yield from sine_faults(row, "a box's centre", lambda model: _geometry(model).encode_boxes.code, BOXES)


def _as_original(code: BoxCode, boxes: Tensor) -> list[Tensor]:
    x, y, w, h = boxes.unbind(-1)
    return [code.code(y), code.code(x), h[..., None], w[..., None]]


def _labels() -> Iterator[DetectorFault]:
    row = "geometry.box_label"

    def swapped(model: Detector, layer: int) -> Change:
        table = _geometry(model).label_embed
        return replacing(table, {"weight": table.weight.flip(0)})

    words = "the label embeddings are exchanged: 0 is what is wanted"
    yield DetectorFault("geometry.box_label.swapped", words, row, swapped, BOXES)

    def constant(model: Detector, layer: int) -> Change:
        table = _geometry(model).label_embed
        return replacing(table, {"weight": table.weight[1:].expand_as(table.weight)})

    words = "every box has the label 1"
    yield DetectorFault("geometry.box_label.all_1", words, row, constant, NEGATIVE)


# ---- the sequence

# What a box token is the sum of, in the order of the reference.
_VIEWS = {
    "boxes_direct_project": "its four numbers",
    "boxes_pool_project": "what lies under it",
    "boxes_pos_enc_project": "its sine code",
    "label_embed": "its label",
}


def _sequence() -> Iterator[DetectorFault]:
    row = "geometry.final_proj"

    def arranged(
        order: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            return computing(part(model, f"{_PATH}.sequence", 0, TokenSequence), order)

        return made

    def class_first(boxes: Tensor, mask: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((token.expand(len(boxes), 1, -1), boxes), 1)
        return x, torch.cat((torch.zeros_like(mask[:, :1]) if mask.shape[1] else mask.new_zeros(len(mask), 1), mask), 1)

    def class_last(boxes: Tensor, mask: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((boxes, token.expand(len(boxes), 1, -1)), 1)
        return x, torch.cat((mask, mask.new_zeros(len(mask), 1)), 1)

    words = "the class token comes before the boxes; the original's comes behind the last valid one"
    yield DetectorFault("geometry.final_proj.class_first", words, row, arranged(class_first), BOXES)
    words = "the class token comes behind padded boxes; the original's comes behind the last valid one"
    yield DetectorFault("geometry.final_proj.class_last", words, row, arranged(class_last), PADDED_BOXES)
    words = "the class token is missing"
    yield DetectorFault("geometry.final_proj.no_class", words, row, arranged(lambda boxes, mask, token: (boxes, mask)))

    def zero_class(model: Detector, layer: int) -> Change:
        table = _geometry(model).cls_embed
        return replacing(table, {"weight": torch.zeros_like(table.weight)})

    yield DetectorFault("geometry.final_proj.zero_class", "the class token is zero", row, zero_class)
    for name, said in _VIEWS.items():

        def without(model: Detector, layer: int, name: str = name) -> Change:
            geometry = _geometry(model)
            own = geometry.box_tokens

            def box_tokens(boxes: Tensor, labels: Tensor, features: Tensor) -> Tensor:
                seen: dict[str, Tensor] = {}
                with ExitStack() as stack:
                    for view in _VIEWS:

                        def noted(module: object, args: object, output: Tensor, view: str = view) -> None:
                            seen[view] = output.flatten(1).unflatten(0, labels.shape) if output.dim() == 4 else output

                        handle = geometry.get_submodule(view).register_forward_hook(noted)
                        stack.callback(handle.remove)
                    own(boxes, labels, features)
                seen[name] = torch.zeros_like(seen[name])
                direct, pooled, position, label = (seen[view] for view in _VIEWS)
                return label + ((direct + pooled) + position)

            return setting(geometry, box_tokens=box_tokens)

        words = f"a box token lacks one of its four views: {said} ({name})"
        yield DetectorFault(f"geometry.final_proj.without:{name}", words, row, without, BOXES)

    def not_projected(model: Detector, layer: int) -> Change:
        return computing(_geometry(model).final_proj, lambda x: x)

    words = "final_proj is left out of the geometry encoder"
    yield DetectorFault("geometry.final_proj.left_out", words, row, not_projected)


# ---- layers


def _layers() -> Iterator[DetectorFault]:
    row, path, key = "geometry.layers.{i}", f"{_PATH}.encode.{{i}}", "geometry.layers"
    yield from eps_faults(row, "the geometry layer's norms", path, "norm1", "norm2", "norm3")
    for name in ("norm1", "norm2", "norm3"):
        yield from norm_faults(row, f"the geometry layer's {name}", f"{path}.{name}", name=name)
    for a, b in (("norm1", "norm2"), ("norm2", "norm3")):
        words = f"the geometry layer's {a} and {b} are exchanged"
        yield DetectorFault(f"{key}.exchanged:{a},{b}", words, row, exchanged(path, a, b))
    yield from attention_faults(row, "attention among geometry tokens", f"{path}.self_attn", BOXES)
    yield from attention_faults(row, "the geometry tokens' attention to the picture", f"{path}.cross_attn_image")
    yield from feed_forward_faults(row, "the geometry layer", path)
    yield from other_layer_faults(row, "the geometry layer", f"{_PATH}.encode")

    Forward = Callable[[GeometryLayer, Tensor, Tensor, Tensor, Tensor], Tensor]

    def wired(forward: Forward) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = part(model, path, layer, GeometryLayer)
            return computing(own, lambda x, mask, features, where: forward(own, x, mask, features, where))

        return made

    def usual(
        own: GeometryLayer, x: Tensor, mask: Tensor | None, query: Tensor | float, keys: Tensor, values: Tensor
    ) -> Tensor:
        t = own.norm1(x)
        x = x + own.self_attn(t, t, t, mask)
        x = x + own.cross_attn_image(own.norm2(x) + query, keys, values)
        out: Tensor = x + own.feed_forward(own.norm3(x))
        return out

    def post_norm(own: GeometryLayer, x: Tensor, mask: Tensor, features: Tensor, where: Tensor) -> Tensor:
        x = own.norm1(x + own.self_attn(x, x, x, mask))
        x = own.norm2(x + own.cross_attn_image(x, features + where, features))
        out: Tensor = own.norm3(x + own.feed_forward(x))
        return out

    def picture_first(own: GeometryLayer, x: Tensor, mask: Tensor, features: Tensor, where: Tensor) -> Tensor:
        x = x + own.cross_attn_image(own.norm2(x), features + where, features)
        t = own.norm1(x)
        x = x + own.self_attn(t, t, t, mask)
        out: Tensor = x + own.feed_forward(own.norm3(x))
        return out

    wirings: dict[str, tuple[str, Need, Forward]] = {
        "post_norm": ("the geometry layer is post-norm; the original's is pre-norm", NOTHING, post_norm),
        "picture_first": (
            "the geometry tokens attend to the picture before they attend to one another", BOXES, picture_first,
        ),
        "no_positions": (
            "positions are not added to the keys of the geometry tokens' attention to the picture", NOTHING,
            lambda own, x, mask, f, where: usual(own, x, mask, 0.0, f, f),
        ),
        "positions_in_values": (
            "positions are added to the values of the geometry tokens' attention to the picture too", NOTHING,
            lambda own, x, mask, f, where: usual(own, x, mask, 0.0, f + where, f + where),
        ),
        "mask_ignored": (
            "padded boxes are not masked", PADDED_BOXES,
            lambda own, x, mask, f, where: usual(own, x, None, 0.0, f + where, f),
        ),
    }  # fmt: skip
    for name, (words, need, forward) in wirings.items():
        yield DetectorFault(f"{key}.{name}", words, row, wired(forward), need)

    def normed_picture(model: Detector, layer: int) -> Change:
        own, norm = part(model, path, layer, GeometryLayer), _geometry(model).img_pre_norm
        compute = own.forward

        def forward(x: Tensor, mask: Tensor, features: Tensor, where: Tensor) -> Tensor:
            return compute(x, mask, norm.forward(features), where)

        return computing(own, forward)

    words = "the geometry tokens attend to the picture behind img_pre_norm; the original's attend to the neck's map"
    yield DetectorFault(f"{key}.picture_normed", words, row, normed_picture)


# ---- the prompt


def _put_together() -> Iterator[DetectorFault]:
    row = "encoder.layers.{i}"

    def prompted(
        change: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Callable[[Detector, int], Change]:
        return lambda model, layer: computing(part(model, "prompt", 0, Prompt), change)

    def joined(
        mask_of: Callable[[Tensor, Tensor], Tensor],
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        return lambda text, text_mask, tokens, mask: (torch.cat((text, tokens), 1), mask_of(text_mask, mask))

    masks: dict[str, tuple[str, Need, Callable[[Tensor, Tensor], Tensor]]] = {
        "text_inverted": (
            "the text mask is inverted in the prompt: words are masked, padding is read", NOTHING,
            lambda text, mask: torch.cat((~text, mask), 1),
        ),
        "text_ignored": (
            "the padding of the text is not masked in the prompt", PADDED_TEXT,
            lambda text, mask: torch.cat((torch.zeros_like(text), mask), 1),
        ),
        "geometry_ignored": (
            "padded boxes are not masked in the prompt", PADDED_BOXES,
            lambda text, mask: torch.cat((text, torch.zeros_like(mask)), 1),
        ),
        "geometry_masked": (
            "the geometry tokens are masked in the prompt", NOTHING,
            lambda text, mask: torch.cat((text, torch.ones_like(mask)), 1),
        ),
        "inverted": (
            "the whole mask of the prompt is inverted", NOTHING, lambda text, mask: ~torch.cat((text, mask), 1),
        ),
    }  # fmt: skip
    first: Callable[[Detector, int], bool] = lambda model, layer: layer == 0  # noqa: E731
    for name, (words, need, mask_of) in masks.items():
        yield DetectorFault(f"prompt.{name}", words, row, prompted(joined(mask_of)), need, first)
    words = "the geometry tokens are left out of the prompt"
    alone = prompted(lambda text, text_mask, tokens, mask: (text, text_mask))
    yield DetectorFault("prompt.no_geometry", words, row, alone, applies=first)
    words = "the text is left out of the prompt"
    only = prompted(lambda text, text_mask, tokens, mask: (tokens, mask))
    yield DetectorFault("prompt.no_text", words, row, only, applies=first)

    def geometry_first(text: Tensor, text_mask: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((tokens, text), 1), torch.cat((mask, text_mask), 1)

    words = "the prompt has the geometry tokens before the text; the original's has the text first"
    yield DetectorFault("prompt.geometry_first", words, "scoring.prompt_mlp", prompted(geometry_first))
