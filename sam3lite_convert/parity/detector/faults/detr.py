"""Faults of the DETR encoder and decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from original_ref import Detector
from original_ref.detector.boxes import corners
from original_ref.detector.decoder import Decoder, DecoderLayer, Distances, QuerySine, RelativeBias
from original_ref.detector.encoder import Encoder, EncoderLayer
from sam3lite_convert.parity.detector.faults.changes import (
    NOTHING,
    Change,
    DetectorFault,
    Need,
    computing,
    part,
    setting,
    together,
)
from sam3lite_convert.parity.detector.faults.parts import (
    attention_faults,
    eps_faults,
    exchanged,
    feed_forward_faults,
    mlp_faults,
    norm_faults,
    other_layer_faults,
)
from sam3lite_convert.parity.detector.faults.prompt import PADDED_TEXT
from sam3lite_convert.parity.detector.faults.vision import sine_faults

_ENCODER, _DECODER = "transformer.encoder", "transformer.decoder"
_QUERIES = "decoder.queries.{i}"


def detr_faults() -> Iterator[DetectorFault]:
    """All of them, in the order of the rows."""
    yield from _encoder()
    yield from _query_positions()
    yield from _boxes()
    yield from _relative_bias()
    yield from _decoder_layers()
    yield from _behind_layers()


def first_layer(model: Detector, layer: int) -> bool:
    """For faults that show in layer 0 first, whatever layers they are in."""
    return layer == 0


def later_layers(model: Detector, layer: int) -> bool:
    """For faults of what a layer hands to the next."""
    return layer > 0


# ---- encoder


def _encoder() -> Iterator[DetectorFault]:
    row, path, key = "encoder.layers.{i}", f"{_ENCODER}.layers.{{i}}", "encoder.layers"
    yield from eps_faults(row, "the DETR encoder layer's norms", path, "norm1", "norm2", "norm3")
    for name in ("norm1", "norm2", "norm3"):
        yield from norm_faults(row, f"the DETR encoder layer's {name}", f"{path}.{name}", name=name)
    for a, b in (("norm1", "norm2"), ("norm2", "norm3")):
        words = f"the DETR encoder layer's {a} and {b} are exchanged"
        yield DetectorFault(f"{key}.exchanged:{a},{b}", words, row, exchanged(path, a, b))
    yield from attention_faults(row, "the cells' attention to one another", f"{path}.self_attn")
    yield from attention_faults(row, "the cells' attention to the prompt", f"{path}.cross_attn_image")
    yield from feed_forward_faults(row, "the DETR encoder layer", path)
    yield from other_layer_faults(row, "the DETR encoder layer", f"{_ENCODER}.layers")

    Forward = Callable[[EncoderLayer, Tensor, Tensor, Tensor, Tensor], Tensor]

    def wired(forward: Forward) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = part(model, path, layer, EncoderLayer)
            return computing(own, lambda x, where, prompt, mask: forward(own, x, where, prompt, mask))

        return made

    def usual(
        own: EncoderLayer, x: Tensor, prompt: Tensor, mask: Tensor | None,
        query: Tensor | float, key: Tensor | float, value: Tensor | float, to_prompt: Tensor | float = 0.0,
    ) -> Tensor:  # fmt: skip
        """The layer, with these added to queries, keys and values of the first attention, queries of the second."""
        t = own.norm1(x)
        x = x + own.self_attn(t + query, t + key, t + value)
        x = x + own.cross_attn_image(own.norm2(x) + to_prompt, prompt, prompt, mask)
        out: Tensor = x + own.feed_forward(own.norm3(x))
        return out

    def post_norm(own: EncoderLayer, x: Tensor, where: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        x = own.norm1(x + own.self_attn(x + where, x + where, x))
        x = own.norm2(x + own.cross_attn_image(x, prompt, prompt, mask))
        out: Tensor = own.norm3(x + own.feed_forward(x))
        return out

    def prompt_first(own: EncoderLayer, x: Tensor, where: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        x = x + own.cross_attn_image(own.norm2(x), prompt, prompt, mask)
        t = own.norm1(x)
        x = x + own.self_attn(t + where, t + where, t)
        out: Tensor = x + own.feed_forward(own.norm3(x))
        return out

    wirings: dict[str, tuple[str, Need, Forward]] = {
        "post_norm": ("the DETR encoder layer is post-norm; the original's is pre-norm", NOTHING, post_norm),
        "prompt_first": ("the cells attend to the prompt before they attend to one another", NOTHING, prompt_first),
        "no_positions": (
            "positions are not added to queries and keys of the cells' attention to one another", NOTHING,
            lambda own, x, w, p, m: usual(own, x, p, m, 0.0, 0.0, 0.0),
        ),
        "no_query_positions": (
            "positions are not added to the queries of the cells' attention to one another", NOTHING,
            lambda own, x, w, p, m: usual(own, x, p, m, 0.0, w, 0.0),
        ),
        "no_key_positions": (
            "positions are not added to the keys of the cells' attention to one another", NOTHING,
            lambda own, x, w, p, m: usual(own, x, p, m, w, 0.0, 0.0),
        ),
        "positions_in_values": (
            "positions are added to the values of the cells' attention to one another too", NOTHING,
            lambda own, x, w, p, m: usual(own, x, p, m, w, w, w),
        ),
        "positions_to_prompt": (
            "positions are added to the queries of the cells' attention to the prompt; the original adds none", NOTHING,
            lambda own, x, w, p, m: usual(own, x, p, m, w, w, 0.0, w),
        ),
        "mask_ignored": (
            "the cells' attention to the prompt does not mask padding", PADDED_TEXT,
            lambda own, x, w, p, m: usual(own, x, p, None, w, w, 0.0),
        ),
        "mask_inverted": (
            "the cells' attention to the prompt masks what is valid", PADDED_TEXT,
            lambda own, x, w, p, m: usual(own, x, p, ~m, w, w, 0.0),
        ),
    }  # fmt: skip
    for name, (words, need, forward) in wirings.items():
        yield DetectorFault(f"{key}.{name}", words, row, wired(forward), need)

    def norm_behind(model: Detector, layer: int) -> Change:
        encoder = part(model, _ENCODER, 0, Encoder)
        own = encoder.forward

        def forward(x: Tensor, positions: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
            return torch.nn.functional.layer_norm(own(x, positions, prompt, mask), x.shape[-1:])

        return computing(encoder, forward)

    words = "a LayerNorm stands behind the DETR encoder; the original has none"
    yield DetectorFault("encoder.norm_behind", words, _QUERIES, norm_behind, applies=first_layer)


# ---- decoder: the positions of queries


def _decoder_of(model: Detector) -> Decoder:
    return part(model, _DECODER, 0, Decoder)


def _query_positions() -> Iterator[DetectorFault]:
    row, key = "decoder.query_position.{i}", "decoder.query_position"

    def coded(order: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        """``order``: boxes cx cy w h -> the four numbers in the order in which they are coded."""

        def made(model: Detector, layer: int) -> Change:
            sine = part(model, f"{_DECODER}.query_sine", 0, QuerySine)
            return computing(sine, lambda boxes: torch.cat([sine.code(v) for v in order(boxes).unbind(-1)], -1))

        return made

    orders: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "xywh": ("x y w h", lambda boxes: boxes),
        "yxhw": ("y x h w", lambda boxes: boxes[..., [1, 0, 3, 2]]),
        "whyx": ("w h y x", lambda boxes: boxes[..., [2, 3, 1, 0]]),
        "corners": ("x0 y0 x1 y1", corners),
    }
    for name, (said, order) in orders.items():
        words = f"the code of a query's box is in the order {said}; the original's in the order y x w h"
        yield DetectorFault(f"{key}.order:{name}", words, row, coded(order), applies=first_layer)
    for fault in sine_faults(row, "queries", lambda model: _decoder_of(model).query_sine.code):
        yield DetectorFault(fault.key, fault.words, row, fault.change, applies=first_layer)
    for fault in mlp_faults(row, "ref_point_head", f"{_DECODER}.ref_point_head"):
        yield DetectorFault(fault.key, fault.words, row, fault.change, applies=first_layer)


# ---- decoder: boxes from layer to layer


def _logit(x: Tensor) -> Tensor:
    return (x / (1 - x)).log()


_NEAR_EDGE = Need("a box number within 0.001 of 0 or 1", lambda model, layer, inputs: True)


def _boxes() -> Iterator[DetectorFault]:
    row, key = "decoder.query_position.{i}", "decoder.refinement"

    def refining(
        refined: Callable[[Decoder, Tensor, Tensor, Tensor], Tensor],
    ) -> Callable[[Detector, int], Change]:
        """``refined``: of delta, queries and references; between layers alone, the final boxes are as they are."""

        def made(model: Detector, layer: int) -> Change:
            decoder = _decoder_of(model)
            own = decoder.refined

            def change(queries: Tensor, references: Tensor) -> Tensor:
                if queries.dim() > 3:
                    return own(queries, references)
                return refined(decoder, decoder.bbox_embed(queries), queries, references)

            return setting(decoder, refined=change)

        return made

    words = "the boxes are not refined between layers: every layer reads the first references"
    yield DetectorFault(f"{key}.missing", words, row, refining(lambda d, delta, q, r: r), applies=later_layers)

    def plain_sum(decoder: Decoder, delta: Tensor, queries: Tensor, references: Tensor) -> Tensor:
        return (delta + references).sigmoid()

    words = "the boxes are refined without the logit of the references"
    yield DetectorFault(f"{key}.no_logit", words, row, refining(plain_sum), applies=later_layers)

    def alone(decoder: Decoder, delta: Tensor, queries: Tensor, references: Tensor) -> Tensor:
        return delta.sigmoid()

    words = "every layer predicts boxes anew: the references are not added"
    yield DetectorFault(f"{key}.no_references", words, row, refining(alone), applies=later_layers)

    def added(decoder: Decoder, delta: Tensor, queries: Tensor, references: Tensor) -> Tensor:
        return (references + delta).clamp(0, 1)

    words = "the boxes' changes are added to the references themselves, not to their logits"
    yield DetectorFault(f"{key}.linear", words, row, refining(added), applies=later_layers)

    def from_first(model: Detector, layer: int) -> Change:
        first = _decoder_of(model).reference_points.weight.sigmoid()

        def again(decoder: Decoder, delta: Tensor, queries: Tensor, references: Tensor) -> Tensor:
            out: Tensor = (delta + decoder.inverse_sigmoid(first)).sigmoid()
            return out

        return refining(again)(model, layer)

    words = "every layer refines the first references; the original's refines those of the layer before"
    yield DetectorFault(f"{key}.from_first", words, row, from_first, applies=lambda model, layer: layer > 1)

    def with_eps(eps: float) -> Callable[[Detector, int], Change]:
        return lambda model, layer: setting(_decoder_of(model).inverse_sigmoid, eps=eps)

    for said, eps in (("1e-05", 1e-5), ("1e-06", 1e-6), ("0.01", 1e-2)):
        words = f"the logit of the references has the eps {said}; the original's is 0.001"
        yield DetectorFault(f"{key}.eps:{said}", words, row, with_eps(eps), _NEAR_EDGE, later_layers)

    def unbounded(model: Detector, layer: int) -> Change:
        return computing(_decoder_of(model).inverse_sigmoid, _logit)

    words = "the logit of the references has no eps"
    yield DetectorFault(f"{key}.no_eps", words, row, unbounded, _NEAR_EDGE, later_layers)

    def starting(change: Callable[[Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        """Other references of layer 0: ``change``: of the learned numbers, to boxes."""

        def made(model: Detector, layer: int) -> Change:
            decoder = _decoder_of(model)
            boxes = change(decoder.reference_points.weight)
            sine, distances = decoder.query_sine, decoder.bias
            own_sine, own_refined = sine.forward, decoder.refined
            first = decoder.reference_points.weight.sigmoid()

            def put(given: Tensor) -> Tensor:
                """The wrong boxes where the right ones of layer 0 are given."""
                same = given.shape[-2:] == first.shape and bool((given == first).all())
                return boxes.expand_as(given) if same else given

            def refined(queries: Tensor, given: Tensor) -> Tensor:
                given = torch.cat((put(given[0])[None], given[1:])) if given.dim() > 3 else put(given)
                return own_refined(queries, given)

            return together(
                computing(sine, lambda given: own_sine(put(given))),
                setting(decoder, bias=lambda given, *size: distances(put(given), *size), refined=refined),
            )

        return made

    words = "the learned references are taken as boxes; the original puts them through a sigmoid"
    yield DetectorFault(f"{key}.no_sigmoid", words, row, starting(lambda raw: raw), applies=first_layer)
    words = "the learned references are taken as x0 y0 x1 y1"

    def from_corners(raw: Tensor) -> Tensor:
        low, high = raw.sigmoid().split(2, -1)
        return torch.cat(((low + high) / 2, high - low), -1)

    yield DetectorFault(f"{key}.corners", words, row, starting(from_corners), applies=first_layer)


# ---- decoder: box relative positions


def _relative_bias() -> Iterator[DetectorFault]:
    row, key = "decoder.rpb_x.{i}", "decoder.rpb"

    def measured(far: Callable[[Distances, Tensor, Tensor, int], Tensor]) -> Callable[[Detector, int], Change]:
        """``far``: of numbers of cells, edges (n, Q, 2) and the size: (n, Q, size, 2)."""

        def made(model: Detector, layer: int) -> Change:
            own = part(model, f"{_DECODER}.distances", 0, Distances)

            def forward(edges: Tensor, size: int) -> Tensor:
                return far(own, torch.arange(size, dtype=edges.dtype, device=edges.device), edges, size)

            return computing(own, forward)

        return made

    def logged(own: Distances, away: Tensor) -> Tensor:
        away = away * own.scale
        return away.sign() * (away.abs() + 1).log2() / math.log2(own.scale)

    def usual(cells: Tensor, edges: Tensor) -> Tensor:
        return cells[:, None] - edges[:, :, None]

    forms: dict[str, tuple[str, Callable[[Distances, Tensor, Tensor, int], Tensor]]] = {
        "centre": (
            "distances to a box are from the cells' centres; the original's are from their first edges",
            lambda own, c, e, n: logged(own, usual((c + 0.5) / n, e)),
        ),
        "from_1": (
            "distances to a box are from the cells' last edges; the original's are from their first",
            lambda own, c, e, n: logged(own, usual((c + 1) / n, e)),
        ),
        "linear": (
            "distances to a box are not on a log scale", lambda own, c, e, n: usual(c / n, e),
        ),
        "not_scaled": (
            "distances to a box are not multiplied by 8 under the logarithm",
            lambda own, c, e, n: usual(c / n, e).sign() * (usual(c / n, e).abs() + 1).log2() / math.log2(own.scale),
        ),
        "no_log_8": (
            "distances to a box are not divided by log2(8)",
            lambda own, c, e, n: logged(own, usual(c / n, e)) * math.log2(own.scale),
        ),
        "natural": (
            "distances to a box have the natural logarithm over log2(8); the original's have log2",
            lambda own, c, e, n: logged(own, usual(c / n, e)) * math.log(2),
        ),
        "in_cells": (
            "distances to a box are in cells; the original's are relative to the picture",
            lambda own, c, e, n: logged(own, usual(c, e * n)),
        ),
        "sign": (
            "distances to a box have the other sign: edge minus cell",
            lambda own, c, e, n: -logged(own, usual(c / n, e)),
        ),
        "edges_exchanged": (
            "a box's two edges are exchanged in the distances to it",
            lambda own, c, e, n: logged(own, usual(c / n, e.flip(-1))),
        ),
    }  # fmt: skip
    for name, (words, far) in forms.items():
        yield DetectorFault(f"{key}.{name}", words, row, measured(far), applies=first_layer)

    def biased(boxes: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Detector, int], Change]:
        """``boxes``: (n, Q, 4) -> the edges that the columns' MLP reads, and the rows'."""

        def made(model: Detector, layer: int) -> Change:
            decoder = _decoder_of(model)

            def bias(given: Tensor, height: int, width: int) -> Tensor:
                x, y = boxes(given)
                columns = decoder.boxRPB_embed_x(decoder.distances(x, width))
                rows = decoder.boxRPB_embed_y(decoder.distances(y, height))
                out: Tensor = decoder.rpb(columns, rows)
                return out

            return setting(decoder, bias=bias)

        return made

    def axes(boxes: Tensor) -> tuple[Tensor, ...]:
        x0, y0, x1, y1 = boxes.unbind(-1)
        return torch.stack((x0, x1), -1), torch.stack((y0, y1), -1)

    words = "x and y of the box are exchanged in its relative position bias"
    exchanged_axes = biased(lambda boxes: axes(corners(boxes))[::-1])
    yield DetectorFault(f"{key}.axes", words, row, exchanged_axes, applies=first_layer)
    words = "the box relative position bias reads centre and size as two corners"
    yield DetectorFault(f"{key}.not_corners", words, row, biased(axes), applies=first_layer)
    words = "boxRPB_embed_x and boxRPB_embed_y are exchanged"
    swapped = exchanged(_DECODER, "boxRPB_embed_x", "boxRPB_embed_y")
    yield DetectorFault(f"{key}.mlps_exchanged", words, row, swapped, applies=first_layer)
    for name in ("x", "y"):
        for fault in mlp_faults(f"decoder.rpb_{name}.{{i}}", f"boxRPB_embed_{name}", f"{_DECODER}.boxRPB_embed_{name}"):
            yield DetectorFault(fault.key, fault.words, fault.row, fault.change, applies=first_layer)

    def added(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            return computing(part(model, f"{_DECODER}.rpb", 0, RelativeBias), join)

        return made

    def flat(bias: Tensor) -> Tensor:
        return bias.flatten(2, 3).permute(0, 3, 1, 2)

    joins: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
        "cells_transposed": (
            "the relative position bias lies over the cells column by column; the original's row by row",
            lambda columns, rows: flat(rows[:, :, None] + columns[:, :, :, None]),
        ),
        "columns_only": (
            "the relative position bias lacks its rows (boxRPB_embed_y)",
            lambda columns, rows: flat(columns[:, :, None] + torch.zeros_like(rows)[:, :, :, None]),
        ),
        "rows_only": (
            "the relative position bias lacks its columns (boxRPB_embed_x)",
            lambda columns, rows: flat(rows[:, :, :, None] + torch.zeros_like(columns)[:, :, None]),
        ),
        "none": (
            "the relative position bias is not added",
            lambda columns, rows: flat(torch.zeros_like(rows)[:, :, :, None] + torch.zeros_like(columns)[:, :, None]),
        ),
    }  # fmt: skip
    for name, (words, join) in joins.items():
        yield DetectorFault(f"{key}.{name}", words, _QUERIES, added(join), applies=first_layer)


# ---- decoder: layers

_LAYER = f"{_DECODER}.layers.{{i}}"
_NORMS = ("norm2", "catext_norm", "norm1", "norm3")


def _decoder_layers() -> Iterator[DetectorFault]:
    key = "decoder.layers"
    yield from eps_faults(_QUERIES, "the decoder layer's norms", _LAYER, *_NORMS, each=True)
    for name in _NORMS:
        yield from norm_faults(_QUERIES, f"the decoder layer's {name}", f"{_LAYER}.{name}", name=name)
    for a, b in itertools.combinations(_NORMS, 2):
        words = f"the decoder layer's {a} and {b} are exchanged (its norms come as norm2, catext_norm, norm1, norm3)"
        yield DetectorFault(f"{key}.exchanged:{a},{b}", words, _QUERIES, exchanged(_LAYER, a, b))
    attentions = {
        "self_attn": "the queries' attention to one another",
        "ca_text": "the queries' attention to the prompt",
        "cross_attn": "the queries' attention to the memory",
    }
    for name, where in attentions.items():
        yield from attention_faults(_QUERIES, where, f"{_LAYER}.{name}", other_heads=name != "cross_attn")
    words = "the decoder's attentions to one another and to the prompt are exchanged"
    yield DetectorFault(f"{key}.attentions_exchanged:self,text", words, _QUERIES,
                        exchanged(_LAYER, "self_attn", "ca_text"))  # fmt: skip
    words = "the decoder's attentions to the prompt and to the memory are exchanged"
    yield DetectorFault(f"{key}.attentions_exchanged:text,memory", words, _QUERIES,
                        exchanged(_LAYER, "ca_text", "cross_attn"))  # fmt: skip
    yield from feed_forward_faults(_QUERIES, "the decoder layer", _LAYER)
    yield from other_layer_faults(_QUERIES, "the decoder layer", f"{_DECODER}.layers")
    wirings: dict[str, tuple[str, Need]] = {
        "pre_norm": ("the decoder layer is pre-norm; the original's is post-norm", NOTHING),
        "no_self_positions": ("the queries' positions are not added in their attention to one another", NOTHING),
        "no_text_positions": ("the queries' positions are not added in their attention to the prompt", NOTHING),
        "no_memory_queries": ("the queries' positions are not added in their attention to the memory", NOTHING),
        "no_memory_positions": ("positions are not added to the keys of the attention to the memory", NOTHING),
        "self_values": (
            "the queries' positions are added to the values of their attention to one another too", NOTHING,
        ),
        "memory_values": ("positions are added to the values of the attention to the memory too", NOTHING),
        "mask_ignored": ("the queries' attention to the prompt does not mask padding", PADDED_TEXT),
        "mask_inverted": ("the queries' attention to the prompt masks what is valid", PADDED_TEXT),
        "presence_last": (
            "the presence token is put behind the queries and taken from before them; the original's comes first",
            NOTHING,
        ),
        "bias_shifted": (
            "the presence token's row of the relative position bias stands behind the queries', so that each token has "
            "its neighbour's", NOTHING,
        ),
        "presence_hidden": (
            "the queries do not attend to the presence token; the original's do", NOTHING,
        ),
        "memory_first": (
            "the queries attend to the memory before they attend to the prompt", NOTHING,
        ),
        "no_text": ("the queries' attention to the prompt is left out", NOTHING),
    }  # fmt: skip

    def wired(fault: str) -> Callable[[Detector, int], Change]:
        def made(model: Detector, layer: int) -> Change:
            own = part(model, _LAYER, layer, DecoderLayer)
            return computing(own, lambda *args: _layer(own, fault, *args))

        return made

    for name, (words, need) in wirings.items():
        yield DetectorFault(f"{key}.{name}", words, _QUERIES, wired(name), need)
    words = "the presence token has the first query's row of the relative position bias; the original's is zero"
    yield DetectorFault("decoder.presence.bias", words, "decoder.presence.{i}", wired("presence_bias"))

    def given(queries: Callable[[Decoder, Tensor], Tensor], presence: Callable[[Decoder, Tensor], Tensor]
              ) -> Callable[[Detector, int], Change]:  # fmt: skip
        """What a layer is given from the one before."""

        def made(model: Detector, layer: int) -> Change:
            decoder, own = _decoder_of(model), part(model, _LAYER, layer, DecoderLayer)
            compute = own.forward
            return computing(own, lambda q, p, *rest: compute(queries(decoder, q), presence(decoder, p), *rest))

        return made

    words = "the normed queries go on to the next layer; the original's go on as they are"
    normed = given(lambda d, q: d.norm.forward(q), lambda d, p: p)
    yield DetectorFault(f"{key}.normed_go_on", words, _QUERIES, normed, applies=later_layers)
    words = "every layer starts from the learned presence token; the original's from that of the layer before"
    anew = given(lambda d, q: q, lambda d, p: d.presence_token.weight.expand_as(p))
    yield DetectorFault(f"{key}.presence_anew", words, _QUERIES, anew, applies=later_layers)
    words = "the normed presence token goes on to the next layer; the original's goes on as it is"
    gone = given(lambda d, q: q, lambda d, p: d.presence_token_out_norm.forward(p))
    yield DetectorFault(f"{key}.presence_normed_goes_on", words, _QUERIES, gone, applies=later_layers)
    words = "the queries start at zero; the original's start from query_embed"
    zero = given(lambda d, q: torch.zeros_like(q), lambda d, p: p)
    yield DetectorFault(f"{key}.queries_from_zero", words, _QUERIES, zero, applies=first_layer)
    words = "the presence token starts at zero; the original's starts from presence_token"
    none = given(lambda d, q: q, lambda d, p: torch.zeros_like(p))
    yield DetectorFault(f"{key}.presence_from_zero", words, _QUERIES, none, applies=first_layer)


def _layer(
    own: DecoderLayer, fault: str, queries: Tensor, presence: Tensor, positions: Tensor, prompt: Tensor, mask: Tensor,
    memory: Tensor, where: Tensor, bias: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A decoder layer with one fault in its wiring."""
    zero, none = torch.zeros_like(presence), torch.zeros_like(bias[:, :, :1])
    if fault == "presence_bias":
        none = bias[:, :, :1]
    z, u, bias = torch.cat((presence, queries), 1), torch.cat((zero, positions), 1), torch.cat(
        (bias, none) if fault == "bias_shifted" else (none, bias), 2
    )  # fmt: skip
    if fault == "presence_last":
        z, u, bias = (torch.cat((t[:, 1:], t[:, :1]), 1) for t in (z, u, bias.transpose(1, 2)))
        bias = bias.transpose(1, 2)
    self_u, text_u, memory_u = (0 * u if fault == f"no_{name}" else u for name in
                                ("self_positions", "text_positions", "memory_queries"))  # fmt: skip
    text_mask = None if fault == "mask_ignored" else ~mask if fault == "mask_inverted" else mask
    hidden = None
    if fault == "presence_hidden":
        hidden = torch.zeros(len(z), z.shape[1], dtype=torch.bool, device=z.device)
        hidden[:, 0] = True

    def to_one_another(z: Tensor) -> Tensor:
        out: Tensor = own.self_attn(z + self_u, z + self_u, z + u if fault == "self_values" else z, hidden)
        return out

    def to_prompt(z: Tensor) -> Tensor:
        out: Tensor = own.ca_text(z + text_u, prompt, prompt, text_mask)
        return out

    def to_memory(z: Tensor) -> Tensor:
        keys = memory if fault == "no_memory_positions" else memory + where
        values = memory + where if fault == "memory_values" else memory
        out: Tensor = own.cross_attn(z + memory_u, keys, values, bias)
        return out

    steps = [(own.norm2, to_one_another), (own.catext_norm, to_prompt), (own.norm1, to_memory)]
    if fault == "memory_first":
        steps = [steps[0], steps[2], steps[1]]
    if fault == "no_text":
        steps = [steps[0], steps[2]]
    for norm, step in [*steps, (own.norm3, own.feed_forward)]:
        z = z + step(norm(z)) if fault == "pre_norm" else norm(z + step(z))
    return z[:, 1:], z[:, :1]


# ---- decoder: what is read from a layer


def _behind_layers() -> Iterator[DetectorFault]:
    shared: list[DetectorFault] = []
    for row, where, name in (
        ("decoder.normed.{i}", "the decoder's norm", "norm"),
        ("decoder.presence_norm.{i}", "the presence token's norm", "presence_token_out_norm"),
    ):
        shared += eps_faults(row, where, f"{_DECODER}.{name}", "")
        shared += norm_faults(row, where, f"{_DECODER}.{name}")
        words = "the decoder's norm and the presence token's are exchanged"
        if name == "norm":
            both = exchanged(_DECODER, "norm", "presence_token_out_norm")
            shared.append(DetectorFault("decoder.normed.exchanged", words, row, both))
    for row, where, name in (
        ("decoder.box_delta.{i}", "bbox_embed", "bbox_embed"),
        ("decoder.presence_logit.{i}", "presence_token_head", "presence_token_head"),
    ):
        shared += mlp_faults(row, where, f"{_DECODER}.{name}")
    for fault in shared:
        yield DetectorFault(fault.key, fault.words, fault.row, fault.change, fault.needs, first_layer)

    def not_normed(model: Detector, layer: int) -> Change:
        decoder = _decoder_of(model)
        own, own_norm = decoder.bbox_embed.forward, decoder.norm.forward
        made: list[tuple[Tensor, Tensor]] = []  # the last layer's queries, normed and as they were

        def normed(x: Tensor) -> Tensor:
            made[:] = [(own_norm(x), x)]
            return made[0][0]

        # The final boxes are read from all layers at once, and stay as they are.
        return together(
            computing(decoder.norm, normed),
            computing(decoder.bbox_embed, lambda x: own(made[0][1] if x.dim() == 3 else x)),
        )

    words = "bbox_embed reads the queries as the layer returns them; the original's reads them normed"
    yield DetectorFault("decoder.box_delta.not_normed", words, "decoder.box_delta.{i}",
                        not_normed, applies=first_layer)  # fmt: skip
