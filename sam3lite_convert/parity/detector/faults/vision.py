"""Faults of the vision side: trunk, neck, position map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from original_ref import Detector, rotary_table
from original_ref.detector.constants import ROTARY_BASE
from original_ref.detector.neck import VisionBackbone
from original_ref.detector.positions import PositionMap, SineCode
from original_ref.detector.trunk import Block, PatchEmbed, TiledPositions, Trunk, Windows
from sam3lite_convert.parity.detector.faults.changes import (
    NOTHING,
    Change,
    DetectorFault,
    Need,
    computing,
    part,
    replacing,
    setting,
    together,
)
from sam3lite_convert.parity.detector.faults.parts import (
    by_head,
    eps_faults,
    exchanged,
    heads_innermost,
    moved_rows,
    norm_faults,
    ordered_rows,
    other_layer_faults,
    quick_gelu,
    scaled_queries,
)

VISION = "backbone.vision_backbone"
TRUNK = f"{VISION}.trunk"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def vision_faults() -> Iterator[DetectorFault]:
    """All of them, in the order of the rows."""
    yield from _patches()
    yield from _positions()
    yield from _blocks()
    yield from _attention()
    yield from _windows()
    yield from _rotary()
    yield from _neck()
    yield from sine_faults("neck.positions", "the position map", lambda model: _position_map(model).code)
    yield from _position_maps()


def _trunk(model: Detector) -> Trunk:
    return part(model, TRUNK, 0, Trunk)


def _block(model: Detector, layer: int) -> Block:
    return part(model, f"{TRUNK}.blocks.{{i}}", layer, Block)


def grid(model: Detector) -> int:
    """Patches on a side of the picture."""
    return model.image_size // _trunk(model).patch_embed.proj.kernel_size[0]


def window(model: Detector) -> int | None:
    """The side of the windows; None if all blocks are global."""
    sides = (block.windows.side for block in _trunk(model).blocks if isinstance(block.windows, Windows))
    return next(sides, None)


# ---- patches and positions


def _patches() -> Iterator[DetectorFault]:
    row = "trunk.patch_embed"

    def reading(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            patches = part(model, f"{TRUNK}.patch_embed", 0, PatchEmbed)
            return computing(patches, lambda image: patches.proj(change(image)).permute(0, 2, 3, 1))

        return made

    def imagenet(image: Tensor) -> Tensor:
        mean, deviation = (image.new_tensor(values)[:, None, None] for values in _IMAGENET)
        return (image * 0.5 + 0.5 - mean) / deviation

    words = "the picture is normalised with ImageNet's mean and deviation; the original's are 0.5"
    yield DetectorFault("trunk.patch_embed.imagenet", words, row, reading(imagenet))
    words = "the picture's values are from 0 to 1; the original's are from -1 to 1"
    yield DetectorFault("trunk.patch_embed.not_normalised", words, row, reading(lambda image: image * 0.5 + 0.5))
    words = "the picture's channels are read as BGR; the original's are RGB"
    yield DetectorFault("trunk.patch_embed.bgr", words, row, reading(lambda image: image.flip(1)))
    words = "rows and columns of the picture are exchanged"
    yield DetectorFault("trunk.patch_embed.picture_transposed", words, row, reading(lambda image: image.mT))

    def transposed(model: Detector, layer: int) -> Change:
        proj = part(model, f"{TRUNK}.patch_embed", 0, PatchEmbed).proj
        return replacing(proj, {"weight": proj.weight.mT})

    words = "rows and columns of the patch kernel are exchanged"
    yield DetectorFault("trunk.patch_embed.kernel_transposed", words, row, transposed)


_TILED = Need("a picture of more patches than the position table", lambda model, layer, inputs: _tiles(model) > 1)


def _tiles(model: Detector) -> float:
    return grid(model) / math.isqrt(_trunk(model).pos_embed.shape[1] - 1)


def _positions() -> Iterator[DetectorFault]:
    row = "trunk.ln_pre"

    def tiled(change: Callable[[Tensor, int, int], Tensor]) -> Callable[[Detector, int], Change]:
        """``change``: (1, side, side, C) and the grid's size -> positions."""

        def made(model: Detector, layer: int) -> Change:
            def forward(table: Tensor, height: int, width: int) -> Tensor:
                side = math.isqrt(table.shape[1] - 1)
                return change(table[:, 1:].unflatten(1, (side, side)), height, width)

            return computing(part(model, f"{TRUNK}.abs_pos", 0, TiledPositions), forward)

        return made

    def resized(mode: str) -> Callable[[Tensor, int, int], Tensor]:
        def change(rows: Tensor, height: int, width: int) -> Tensor:
            align = None if mode == "nearest" else False
            image = rows.permute(0, 3, 1, 2)
            made = functional.interpolate(image, (height, width), mode=mode, align_corners=align)
            return made.permute(0, 2, 3, 1)

        return change

    for mode in ("bilinear", "bicubic", "nearest"):
        words = f"the position table is resized ({mode}); the original repeats it"
        yield DetectorFault(f"trunk.ln_pre.positions:{mode}", words, row, tiled(resized(mode)), _TILED)

    def repeated(rows: Tensor, height: int, width: int) -> Tensor:
        out: Tensor = TiledPositions()(functional.pad(rows.flatten(1, 2), (0, 0, 1, 0)), height, width)
        return out

    words = "positions are not added to the patches"
    none = tiled(lambda rows, height, width: rows.new_zeros(1, height, width, rows.shape[-1]))
    yield DetectorFault("trunk.ln_pre.no_positions", words, row, none)
    words = "rows and columns of the position table are exchanged"
    across = tiled(lambda rows, height, width: repeated(rows.transpose(1, 2), height, width))
    yield DetectorFault("trunk.ln_pre.positions_transposed", words, row, across)
    words = "the tiles of the position table are mirrored in turn; the original repeats the table as it is"

    def mirrored(rows: Tensor, height: int, width: int) -> Tensor:
        twice = torch.cat((rows, rows.flip(1)), 1)
        twice = torch.cat((twice, twice.flip(2)), 2)
        return twice.repeat(1, -(-height // twice.shape[1]), -(-width // twice.shape[2]), 1)[:, :height, :width]

    yield DetectorFault("trunk.ln_pre.positions_mirrored", words, row, tiled(mirrored), _TILED)

    def class_kept(model: Detector, layer: int) -> Change:
        tiles = part(model, f"{TRUNK}.abs_pos", 0, TiledPositions)
        own = tiles.forward

        def forward(table: Tensor, height: int, width: int) -> Tensor:
            return own(torch.cat((table[:, :1], table[:, :-1]), 1), height, width)

        return computing(tiles, forward)

    words = "the class token's position is kept: every patch reads the row before its own"
    yield DetectorFault("trunk.ln_pre.class_position", words, row, class_kept)
    yield from eps_faults(row, "the trunk's ln_pre", f"{TRUNK}.ln_pre", "")
    yield from norm_faults(row, "the trunk's ln_pre", f"{TRUNK}.ln_pre")


# ---- blocks

_BLOCKS = "trunk.blocks.{i}"
_PATH = f"{TRUNK}.blocks.{{i}}"


def _blocks() -> Iterator[DetectorFault]:
    key = "trunk.blocks"
    yield from eps_faults(_BLOCKS, "the ViT's LayerNorms", _PATH, "norm1", "norm2", each=True)
    for name in ("norm1", "norm2"):
        yield from norm_faults(_BLOCKS, f"the block's {name}", f"{_PATH}.{name}", name=name)
    words = "the block's two LayerNorms are exchanged"
    yield DetectorFault(f"{key}.norms_exchanged", words, _BLOCKS, exchanged(_PATH, "norm1", "norm2"))

    def wired(forward: Callable[[Block, Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            block = _block(model, layer)
            return computing(block, lambda x: forward(block, x))

        return change

    def post_norm(block: Block, x: Tensor) -> Tensor:
        x = block.norm1(x + block.attend(x))
        out: Tensor = block.norm2(x + block.mlp(x))
        return out

    def attended(block: Block, x: Tensor) -> Tensor:
        out: Tensor = x + block.attend(block.norm1(x))
        return out

    def no_attention_residual(block: Block, x: Tensor) -> Tensor:
        x = block.attend(block.norm1(x))
        out: Tensor = x + block.mlp(block.norm2(x))
        return out

    wirings: dict[str, tuple[str, Callable[[Block, Tensor], Tensor]]] = {
        "post_norm": ("the block's LayerNorms come after the additions; the original's come before", post_norm),
        "parallel": (
            "attention and MLP both read the block's input", lambda b, x: attended(b, x) + b.mlp(b.norm2(x)),
        ),
        "no_mlp": ("the block's MLP is left out", attended),
        "no_attention": ("the block's attention is left out", lambda b, x: x + b.mlp(b.norm2(x))),
        "no_attention_residual": ("the residual connection around the block's attention is left out",
                                  no_attention_residual),
        "no_mlp_residual": ("the residual connection around the block's MLP is left out",
                            lambda b, x: b.mlp(b.norm2(attended(b, x)))),
    }  # fmt: skip
    for name, (words, forward) in wirings.items():
        yield DetectorFault(f"{key}.{name}", words, _BLOCKS, wired(forward))
    activations: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "gelu_tanh": ("the tanh form of GELU", lambda x: functional.gelu(x, approximate="tanh")),
        "quick_gelu": ("quick GELU (x * sigmoid(1.702 x))", quick_gelu),
        "relu": ("a ReLU", torch.relu),
        "silu": ("a SiLU", functional.silu),
    }

    def acting(activation: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        return lambda model, layer: computing(_block(model, layer).mlp.act, activation)

    for name, (said, activation) in activations.items():
        words = f"the ViT's activation is {said}; the original's is the exact GELU (erf)"
        yield DetectorFault(f"{key}.activation:{name}", words, _BLOCKS, acting(activation))
    yield from other_layer_faults(_BLOCKS, "the block", f"{TRUNK}.blocks")


def _attention() -> Iterator[DetectorFault]:
    key = "trunk.blocks"

    def with_rows(order: Callable[[Tensor, int], Tensor]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            attention = _block(model, layer).attn
            tensors = dict(attention.qkv.named_parameters())
            return replacing(attention.qkv, {name: order(t, attention.heads) for name, t in tensors.items()})

        return change

    for order in itertools.permutations("qkv"):
        if order != ("q", "k", "v"):
            words = f"the ViT's attention: {moved_rows(order)}"
            yield DetectorFault(f"{key}.order:{''.join(order)}", words, _BLOCKS, with_rows(ordered_rows(order)))
    others = {
        "rows_by_head": ("the rows of qkv were read as q, k, v of each head in turn", by_head),
        "heads_innermost": ("the rows of q, k and v were read as (head size, heads)", heads_innermost),
        "no_scale": ("the scores are not scaled by the root of the head size", scaled_queries(0.5)),
        "scaled_twice": ("the scores are scaled twice by the root of the head size", scaled_queries(-0.5)),
    }
    for name, (said, rows) in others.items():
        yield DetectorFault(f"{key}.{name}", f"the ViT's attention: {said}", _BLOCKS, with_rows(rows))
    for name in "qkv":

        def no_bias(model: Detector, layer: int, name: str = name) -> Change:
            qkv = _block(model, layer).attn.qkv
            thirds = [torch.zeros_like(b) if n == name else b for n, b in zip("qkv", qkv.bias.chunk(3), strict=True)]
            return replacing(qkv, {"bias": torch.cat(thirds)})

        yield DetectorFault(f"{key}.no_bias:{name}", f"the ViT's attention: the bias of {name} is missing",
                            _BLOCKS, no_bias)  # fmt: skip

    def heads(up: int, down: int) -> Callable[[Detector, int], int]:
        return lambda model, layer: _block(model, layer).attn.heads * up // down

    def with_heads(count: Callable[[Detector, int], int]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            attention, size = _block(model, layer).attn, _trunk(model).pos_embed.shape[2] // count(model, layer)
            table = _table(model, layer, head_dim=size)
            return together(setting(attention, heads=count(model, layer)), replacing(attention, {"freqs_cis": table}))

        return change

    def fits(up: int, down: int) -> Callable[[Detector, int], bool]:
        def applies(model: Detector, layer: int) -> bool:
            count, rest = divmod(_block(model, layer).attn.heads * up, down)
            return not rest and _trunk(model).pos_embed.shape[2] % (4 * count) == 0

        return applies

    for said, up, down in (("twice", 2, 1), ("half", 1, 2)):
        words = f"the ViT's attention has {said} as many heads as the original's"
        yield DetectorFault(f"{key}.heads:{said}", words, _BLOCKS, with_heads(heads(up, down)), applies=fits(up, down))


# ---- windows


def _windowed(model: Detector, layer: int) -> bool:
    return _block(model, layer).windows is not None


def _is_global(model: Detector, layer: int) -> bool:
    return not _windowed(model, layer) and window(model) is not None


def _padded(model: Detector, layer: int) -> bool:
    side = window(model)
    return side is not None and grid(model) % side > 0


_PADDING = Need("a picture whose patches the windows do not divide", lambda model, layer, inputs: _padded(model, layer))
_LARGE = Need(
    "a picture larger than a window", lambda model, layer, inputs: grid(model) > (window(model) or grid(model))
)


def _table(
    model: Detector, layer: int, *, side: int | None = None, into: int | None = None, head_dim: int | None = None,
    base: float = ROTARY_BASE,
) -> Tensor:  # fmt: skip
    """The rotary table that a port computes for a block.

    ``side``: tokens on a side; by default those that the block attends to. ``into``: the side that their positions are
    scaled to; by default that of the windows.
    """
    block = _block(model, layer)
    side = side or (block.windows.side if isinstance(block.windows, Windows) else grid(model))
    size = head_dim or 2 * block.attn.freqs_cis.shape[1]
    return rotary_table(side, into or window(model) or side, size, base).to(block.attn.freqs_cis.device)


def _windows() -> Iterator[DetectorFault]:
    key = "trunk.blocks"

    def sided(side: Callable[[int], int]) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            block = _block(model, layer)
            assert isinstance(block.windows, Windows)
            other = side(block.windows.side)
            table = _table(model, layer, side=other, into=other)
            return together(setting(block.windows, side=other), replacing(block.attn, {"freqs_cis": table}))

        return change

    sides: dict[str, tuple[str, Callable[[int], int]]] = {
        "-1": ("one patch smaller", lambda side: side - 1),
        "+1": ("one patch larger", lambda side: side + 1),
        "half": ("half as large", lambda side: side // 2),
        "twice": ("twice as large", lambda side: 2 * side),
    }
    for name, (said, side) in sides.items():
        words = f"the windows' side is {said} than the original's" if "patch" in said else (
            f"the windows' side is {said} as the original's"
        )  # fmt: skip
        applies = _windowed if name != "half" else lambda model, layer: _windowed(model, layer) and window(model) != 1
        yield DetectorFault(f"{key}.window:{name}", words, _BLOCKS, sided(side), applies=applies)

    def cutting(model: Detector, layer: int, into: Callable[[Windows, Tensor], Tensor],
                back: Callable[[Windows, Tensor, int, int], Tensor]) -> Change:  # fmt: skip
        windows = part(model, f"{_PATH}.windows", layer, Windows)
        quiet = Windows(windows.side)
        return setting(windows, forward=lambda x: into(quiet, x),
                       joined=lambda x, height, width: back(quiet, x, height, width))  # fmt: skip

    def shifted(model: Detector, layer: int) -> Change:
        by = part(model, f"{_PATH}.windows", layer, Windows).side // 2
        return cutting(model, layer, lambda w, x: w(x.roll((-by, -by), (1, 2))),
                       lambda w, x, height, width: w.joined(x, height, width).roll((by, by), (1, 2)))  # fmt: skip

    words = "the windows are shifted by half a window; the original's are not"
    yield DetectorFault(f"{key}.windows_shifted", words, _BLOCKS, shifted, _LARGE, _windowed)

    def other_corner(model: Detector, layer: int) -> Change:
        def back(w: Windows, x: Tensor, height: int, width: int) -> Tensor:
            return w.joined(x, height + -height % w.side, width + -width % w.side)[:, -height:, -width:]

        def into(w: Windows, x: Tensor) -> Tensor:
            height, width = x.shape[1:3]
            out: Tensor = w(functional.pad(x, (0, 0, -width % w.side, 0, -height % w.side, 0)))
            return out

        return cutting(model, layer, into, back)

    words = "the windows are padded in front, top and left; the original pads bottom and right"
    yield DetectorFault(f"{key}.windows_padded_in_front", words, _BLOCKS, other_corner, _PADDING, _windowed)

    def masked(model: Detector, layer: int) -> Change:
        block = _block(model, layer)
        windows, attention = block.windows, block.attn
        assert isinstance(windows, Windows)

        def attend(x: Tensor) -> Tensor:
            height, width = x.shape[1:3]
            valid = windows.forward(x.new_ones(len(x), height, width, 1))[:, None, None, :, 0] > 0
            q, k, v = attention.qkv(windows(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = attention.rotated(q), attention.rotated(k)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=valid)
            return windows.joined(attention.proj(mixed.transpose(1, 2).flatten(2)), height, width)

        return setting(block, attend=attend)

    words = "the padding of windows is masked; the original attends to it"
    yield DetectorFault(f"{key}.padding_masked", words, _BLOCKS, masked, _PADDING, _windowed)

    def padded_first(model: Detector, layer: int) -> Change:
        block = _block(model, layer)
        norm = block.norm1

        def attend(x: Tensor) -> Tensor:
            height, width = x.shape[1:3]
            windows = block.windows
            assert isinstance(windows, Windows)
            cut = windows(x)
            outside = windows.forward(x.new_ones(len(x), height, width, 1)) == 0
            return windows.joined(block.attn(torch.where(outside, norm.bias, cut)), height, width)

        return setting(block, attend=attend)

    words = "the map is padded before the LayerNorm, so padding holds its bias; the original pads with zeros after it"
    yield DetectorFault(f"{key}.padded_before_norm", words, _BLOCKS, padded_first, _PADDING, _windowed)

    def as_window(model: Detector, layer: int) -> Change:
        block, side = _block(model, layer), window(model)
        assert side is not None
        table = _table(model, layer, side=side)
        return together(setting(block, windows=Windows(side)), replacing(block.attn, {"freqs_cis": table}))

    words = "the block attends in windows; the original's attends to the whole picture"
    yield DetectorFault(f"{key}.global_in_windows", words, _BLOCKS, as_window, _LARGE, _is_global)

    def as_global(model: Detector, layer: int) -> Change:
        block = _block(model, layer)
        table = _table(model, layer, side=grid(model))
        return together(setting(block, windows=None), replacing(block.attn, {"freqs_cis": table}))

    words = "the block attends to the whole picture; the original's attends in windows"
    yield DetectorFault(f"{key}.windows_global", words, _BLOCKS, as_global, _LARGE, _windowed)


# ---- rotary positions


def _rotary() -> Iterator[DetectorFault]:
    key = "trunk.blocks.rotary"

    def tabled(table: Callable[[Detector, int], Tensor]) -> Callable[[Detector, int], Change]:
        return lambda model, layer: replacing(_block(model, layer).attn, {"freqs_cis": table(model, layer)})

    def own(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        return tabled(lambda model, layer: change(_block(model, layer).attn.freqs_cis))

    words = "the rotary table has y first; the original's has x first"
    yield DetectorFault(f"{key}:y_first", words, _BLOCKS, own(lambda table: torch.cat(table.chunk(2, 1)[::-1], 1)))
    words = "the rotary table turns the other way (conjugate)"
    yield DetectorFault(f"{key}:conjugate", words, _BLOCKS, own(lambda table: table.conj().resolve_conj()))
    words = "x and y alternate in the rotary table; in the original's one half is x and the other y"
    mixed = own(lambda table: torch.stack(table.chunk(2, 1), 2).flatten(1))
    yield DetectorFault(f"{key}:alternating", words, _BLOCKS, mixed)
    words = "queries and keys have no rotary positions"
    yield DetectorFault(f"{key}:none", words, _BLOCKS, own(torch.ones_like))
    for base in (100.0, 1000.0):
        words = f"the rotary table's base is {base:g}; the original's is 10000"

        def based(model: Detector, layer: int, base: float = base) -> Tensor:
            return _table(model, layer, base=base)

        yield DetectorFault(f"{key}:base_{base:g}", words, _BLOCKS, tabled(based))
    words = "rotary positions of a global block are not scaled to the window's"

    def not_scaled(model: Detector, layer: int) -> Tensor:
        return _table(model, layer, into=grid(model))

    yield DetectorFault(f"{key}:no_scale", words, _BLOCKS, tabled(not_scaled), _LARGE, _is_global)

    words = "the two halves of a head are rotated against each other; the original rotates neighbouring channels"

    def halves(model: Detector, layer: int) -> Change:
        attention = _block(model, layer).attn

        def rotated(x: Tensor) -> Tensor:
            a, b = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
            cos, sin = attention.freqs_cis.real, attention.freqs_cis.imag
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)

        return setting(attention, rotated=rotated)

    yield DetectorFault(f"{key}:halves", words, _BLOCKS, halves)
    for only, not_rotated in (("queries", "keys"), ("keys", "queries")):
        words = f"rotary positions turn the {only} alone; the original turns the {not_rotated} too"

        def one(model: Detector, layer: int, only: str = only) -> Change:
            attention = _block(model, layer).attn

            def forward(x: Tensor) -> Tensor:
                q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
                q, k = (attention.rotated(q), k) if only == "queries" else (q, attention.rotated(k))
                mixed = functional.scaled_dot_product_attention(q, k, v)
                out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
                return out

            return computing(attention, forward)

        yield DetectorFault(f"{key}:{only}_only", words, _BLOCKS, one)

    def values_too(model: Detector, layer: int) -> Change:
        attention = _block(model, layer).attn

        def forward(x: Tensor) -> Tensor:
            qkv = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k, v = (attention.rotated(y) for y in qkv)
            out: Tensor = attention.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return out

        return computing(attention, forward)

    words = "rotary positions turn the values too; the original turns queries and keys"
    yield DetectorFault(f"{key}:values_too", words, _BLOCKS, values_too)


# ---- neck

_NECK = f"{VISION}.convs.{{i}}"


def _level(model: Detector, layer: int) -> nn.Sequential:
    return part(model, _NECK, layer, nn.Sequential)


def _neck() -> Iterator[DetectorFault]:
    row = "neck.{i}"

    def off_by(by: int) -> Callable[[Detector, int], Change]:
        return lambda model, layer: computing(_level(model, layer), _level(model, layer + by).forward)

    def there(by: int) -> Callable[[Detector, int], bool]:
        return lambda model, layer: 0 <= layer + by < len(part(model, f"{VISION}.convs", 0, nn.ModuleList))

    for by, said in ((1, "coarser"), (-1, "finer")):
        words = f"the neck is off by one level: this one is the original's next {said}"
        yield DetectorFault(f"neck.off_by:{by:+d}", words, row, off_by(by), applies=there(by))

    def has(name: str) -> Callable[[Detector, int], bool]:
        return lambda model, layer: name in dict(_level(model, layer).named_children())

    activations: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "none": ("has none", lambda x: x),
        "gelu_tanh": ("has the tanh form of GELU", lambda x: functional.gelu(x, approximate="tanh")),
        "relu": ("has a ReLU", torch.relu),
    }
    for name, (said, activation) in activations.items():
        words = f"between its transposed convolutions, the finest level {said}; the original has the exact GELU"

        def acting(model: Detector, layer: int, activation: Callable[[Tensor], Tensor] = activation) -> Change:
            return computing(_level(model, layer).get_submodule("gelu"), activation)

        yield DetectorFault(f"neck.activation:{name}", words, row, acting, applies=has("gelu"))

    def gelu_behind(name: str) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            convolution = _level(model, layer).get_submodule(name)
            own = convolution.forward
            return computing(convolution, lambda x: functional.gelu(own(x)))

        return change

    words = "an activation stands behind the transposed convolution of level 1; the original has none"
    yield DetectorFault("neck.gelu_in_level_1", words, row, gelu_behind("dconv_2x2"), applies=has("dconv_2x2"))
    words = "an activation stands between the level's two convolutions; the original has none"
    yield DetectorFault("neck.gelu_between", words, row, gelu_behind("conv_1x1"))

    def with_kernel(kernel: Callable[[Tensor], Tensor], *names: str) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            level = _level(model, layer)
            there = dict(level.named_children())
            return together(
                *(replacing(level, {f"{n}.weight": kernel(level.get_parameter(f"{n}.weight"))})
                  for n in names if n in there)
            )  # fmt: skip

        return change

    ups = ("dconv_2x2_0", "dconv_2x2_1", "dconv_2x2")

    def goes_up(model: Detector, layer: int) -> bool:
        return has(ups[0])(model, layer) or has(ups[2])(model, layer)

    words = "the transposed convolutions' kernels are turned by half a turn, as for a convolution"
    yield DetectorFault("neck.up_flipped", words, row, with_kernel(lambda w: w.flip(2, 3), *ups), applies=goes_up)
    words = "rows and columns of the transposed convolutions' kernels are exchanged"
    yield DetectorFault("neck.up_transposed", words, row, with_kernel(lambda w: w.mT, *ups), applies=goes_up)
    words = "conv_3x3's kernel is turned by half a turn"
    yield DetectorFault("neck.conv_flipped", words, row, with_kernel(lambda w: w.flip(2, 3), "conv_3x3"))
    words = "rows and columns of conv_3x3's kernel are exchanged"
    yield DetectorFault("neck.conv_transposed", words, row, with_kernel(lambda w: w.mT, "conv_3x3"))
    words = "input and output channels of conv_3x3 are exchanged"
    yield DetectorFault("neck.conv_channels", words, row, with_kernel(lambda w: w.transpose(0, 1), "conv_3x3"))
    for mode in ("replicate", "reflect"):
        words = f"conv_3x3 is padded in the mode {mode}; the original's with zeros"

        def padded(model: Detector, layer: int, mode: str = mode) -> Change:
            return setting(_level(model, layer).get_submodule("conv_3x3"), padding_mode=mode)

        yield DetectorFault(f"neck.padding:{mode}", words, row, padded)


# ---- sine codes


def sine_faults(
    row: str, where: str, code: Callable[[Detector], SineCode], needs: Need = NOTHING
) -> Iterator[DetectorFault]:
    """Faults of a sine code of numbers from 0 to 1. ``code``: of a reference; ``where``: what it codes, in words."""

    def with_angles(join: Callable[[Tensor], Tensor], turn: float = 2 * math.pi, pairs: bool = True,
                    ) -> Callable[[Detector, int], Change]:  # fmt: skip
        def change(model: Detector, layer: int) -> Change:
            own = code(model)

            def forward(value: Tensor) -> Tensor:
                index = torch.arange(own.channels, dtype=value.dtype, device=value.device)
                index = 2 * index.div(2, rounding_mode="floor") if pairs else index
                return join((value * turn).unsqueeze(-1) / own.temperature ** (index / own.channels))

            return computing(own, forward)

        return change

    def alternating(angle: Tensor) -> Tensor:
        return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)

    def halves(angle: Tensor) -> Tensor:
        return torch.cat((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1)

    def cosine_first(angle: Tensor) -> Tensor:
        return torch.stack((angle[..., 0::2].cos(), angle[..., 1::2].sin()), -1).flatten(-2)

    key = f"{row.replace('.{i}', '')}.sine"
    words = f"the sine code of {where} has its sines first and then its cosines; the original's alternate"
    yield DetectorFault(f"{key}:halves", words, row, with_angles(halves), needs)
    words = f"the sine code of {where} has a cosine before each sine; in the original the sine is first"
    yield DetectorFault(f"{key}:cosine_first", words, row, with_angles(cosine_first), needs)
    words = f"the sine code of {where} is not scaled by 2 pi"
    yield DetectorFault(f"{key}:no_2_pi", words, row, with_angles(alternating, 1.0), needs)
    words = f"every channel of the sine code of {where} has a frequency of its own; the original's pairs share one"
    yield DetectorFault(f"{key}:not_in_pairs", words, row, with_angles(alternating, pairs=False), needs)
    for temperature in (20.0, 1000.0):
        words = f"the temperature of the sine code of {where} is {temperature:g}; the original's is 10000"

        def warmer(model: Detector, layer: int, temperature: float = temperature) -> Change:
            return setting(code(model), temperature=temperature)

        yield DetectorFault(f"{key}:temperature_{temperature:g}", words, row, warmer, needs)


def _position_map(model: Detector) -> PositionMap:
    return part(model, f"{VISION}.position_encoding", 0, PositionMap)


def _position_maps() -> Iterator[DetectorFault]:
    row = "neck.positions"

    def counted(value: Callable[[Tensor, int], Tensor], x_first: bool = False) -> Callable[[Detector, int], Change]:
        """``value``: of the numbers of rows or columns from 0, and how many there are."""

        def change(model: Detector, layer: int) -> Change:
            own = _position_map(model)

            def forward(x: Tensor) -> Tensor:
                height, width = x.shape[-2:]
                rows, columns = (
                    value(torch.arange(size, dtype=x.dtype, device=x.device), size) for size in (height, width)
                )
                y = own.code(rows)[:, None].expand(-1, width, -1)
                x = own.code(columns)[None].expand(height, -1, -1)
                return torch.cat((x, y) if x_first else (y, x), -1).permute(2, 0, 1)[None]

            return computing(own, forward)

        return change

    counts: dict[str, tuple[str, Callable[[Tensor, int], Tensor]]] = {
        "from_0": ("rows and columns of the position map count from 0; the original's from 1",
                   lambda i, size: i / (size + 1e-6)),
        "centre": ("rows and columns of the position map stand at the cells' centres; the original's at their ends",
                   lambda i, size: (i + 0.5) / (size + 1e-6)),
        "corners": ("the position map goes from 0 to 1 in size - 1 steps; the original's from 1 / size",
                    lambda i, size: i / (size - 1)),
        "not_normalised": ("rows and columns of the position map are not divided by its size",
                           lambda i, size: (i + 1) / (2 * math.pi)),
    }  # fmt: skip
    for name, (words, value) in counts.items():
        yield DetectorFault(f"neck.positions.{name}", words, row, counted(value))
    words = "the position map has x before y; the original's has y first"
    yield DetectorFault("neck.positions.x_first", words, row, counted(lambda i, size: (i + 1) / (size + 1e-6), True))

    def levels(*chosen: int) -> Callable[[Detector, int], Change]:
        def change(model: Detector, layer: int) -> Change:
            vision = part(model, VISION, 0, VisionBackbone)

            def forward(image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
                features = vision.trunk(image)
                made = [conv(features) for conv in vision.convs]
                maps = [made[n] for n in chosen]
                return maps, [vision.position_encoding(m) for m in maps]

            return computing(vision, forward)

        return change

    def four(model: Detector, layer: int) -> bool:
        return len(part(model, f"{VISION}.convs", 0, nn.ModuleList)) > 3

    words = "the neck's coarsest level is used, and the finest dropped; the original drops the coarsest"
    yield DetectorFault("neck.positions.levels:123", words, row, levels(1, 2, 3), applies=four)
    words = "the neck's coarsest level, which the original throws away, is used in place of level 2"
    yield DetectorFault("neck.positions.levels:013", words, row, levels(0, 1, 3), applies=four)
    words = "the neck's levels come coarsest first; the original's come finest first"
    yield DetectorFault("neck.positions.levels:210", words, row, levels(2, 1, 0))
