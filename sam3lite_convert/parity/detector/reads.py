"""Which taps a tap of the detector is computed from: what tells whether an error was made at it or came to it.

A new tap needs a row here; a test measures these rows on the reference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from sam3lite_convert.parity import taps as text_taps
from sam3lite_convert.parity.detector.taps import Tap, row_name
from sam3lite_convert.parity.judgement import Upstream


class _Reads(NamedTuple):
    """The rows that a row reads. ``{i}`` is its own layer, ``{before}`` the one before it, ``{earlier}`` every one
    before it, ``{last}`` the last one, ``{all}`` every one. ``first``: what layer 0 alone reads."""

    always: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


_PROMPT = ("text.projected", "geometry.output")
_BOXES = _Reads(("decoder.box_delta.{earlier}",))
_MEMORY = "encoder.layers.{last}"
_LAYER = (
    "decoder.queries.{before}",
    "decoder.presence.{before}",
    "decoder.query_position.{i}",
    _MEMORY,
    "neck.positions",
    *_PROMPT,
)
_READS: dict[str, _Reads] = {
    "trunk.patch_embed": _Reads(),
    "trunk.ln_pre": _Reads(("trunk.patch_embed",)),
    "trunk.blocks.{i}": _Reads(("trunk.blocks.{before}",), ("trunk.ln_pre",)),
    "neck.{i}": _Reads(("trunk.blocks.{last}",)),
    "neck.positions": _Reads(),
    "geometry.box_direct": _Reads(),
    "geometry.box_pooled": _Reads(("neck.2",)),
    "geometry.box_position": _Reads(),
    "geometry.box_label": _Reads(),
    "geometry.final_proj": _Reads(
        ("geometry.box_direct", "geometry.box_pooled", "geometry.box_position", "geometry.box_label")
    ),
    "geometry.norm": _Reads(("geometry.final_proj",)),
    "geometry.layers.{i}": _Reads(("geometry.layers.{before}", "neck.2", "neck.positions"), ("geometry.norm",)),
    "geometry.output": _Reads(("geometry.layers.{last}",)),
    "encoder.layers.{i}": _Reads(("encoder.layers.{before}", "neck.positions", *_PROMPT), ("neck.2",)),
    "decoder.query_position.{i}": _BOXES,
    "decoder.rpb_x.{i}": _BOXES,
    "decoder.rpb_y.{i}": _BOXES,
    "decoder.queries.{i}": _Reads((*_LAYER, "decoder.rpb_x.{i}", "decoder.rpb_y.{i}")),
    "decoder.presence.{i}": _Reads(_LAYER),
    "decoder.normed.{i}": _Reads(("decoder.queries.{i}",)),
    "decoder.box_delta.{i}": _Reads(("decoder.normed.{i}",)),
    "decoder.presence_norm.{i}": _Reads(("decoder.presence.{i}",)),
    "decoder.presence_logit.{i}": _Reads(("decoder.presence_norm.{i}",)),
    "scoring.prompt_mlp": _Reads(_PROMPT),
    "scoring.prompt": _Reads(("scoring.prompt_mlp",)),
    "scoring.queries": _Reads(("decoder.normed.{all}",)),
    "scoring.logits": _Reads(("scoring.prompt", "scoring.queries")),
    "masks.prompt_norm": _Reads((_MEMORY,)),
    "masks.prompt_attention": _Reads(("masks.prompt_norm", *_PROMPT)),
    "masks.pixel_decoder": _Reads((_MEMORY, "masks.prompt_attention", "neck.0", "neck.1")),
    "masks.instance": _Reads(("masks.pixel_decoder",)),
    "masks.mask_embed": _Reads(("decoder.normed.{last}",)),
    "masks.semantic": _Reads(("masks.pixel_decoder",)),
    "outputs.pred_logits": _Reads(("scoring.logits",)),
    "outputs.pred_boxes_xyxy": _Reads(("decoder.normed.{last}", "decoder.box_delta.{earlier}")),
    "outputs.presence_logit_dec": _Reads(("decoder.presence_logit.{last}",)),
    "outputs.pred_masks": _Reads(("masks.instance", "masks.mask_embed")),
    "outputs.semantic_seg": _Reads(("masks.semantic",)),
}


def reads_of(tap: str, taps: Mapping[str, Tap]) -> tuple[str, ...]:
    """The taps that a tap is computed from with nothing between them. ``taps``: all of the detector, in order."""
    if tap.startswith("text."):
        text = [name.removeprefix("text.") for name in taps if name.startswith("text.")]
        try:
            return (f"text.{text_taps.read_at(tap.removeprefix('text.'), text)}",)
        except ValueError:
            return ()  # it reads the ids
    fixed = tap in _READS
    row = _READS[tap if fixed else row_name(tap)]
    wanted = row.always + (row.first if not taps[tap].layer else ())
    found = [name for pattern in wanted for name in _at(pattern, None if fixed else taps[tap].layer, taps)]
    return tuple(name for name in taps if name in found)


def _at(pattern: str, layer: int | None, taps: Mapping[str, Tap]) -> Iterator[str]:
    """The taps that a pattern stands for. ``layer``: of the tap that reads them; None: it is no tap of a layer."""
    start, brace, which = pattern.partition("{")
    if not brace:
        yield pattern
        return
    layers = [t.layer for name, t in taps.items() if row_name(name) == f"{start}{{i}}"]
    own = len(layers) - 1 if layer is None else layer
    chosen = {
        "i}": [own],
        "before}": [own - 1],
        "earlier}": list(range(own)),
        "last}": layers[-1:],
        "all}": layers,
    }[which]
    yield from (f"{start}{n}" for n in chosen if n >= 0)


def upstream(tap: str, taps: Mapping[str, Tap], given: Collection[str], within: Collection[str]) -> Upstream:
    """What a tap was computed from, as far as it was given.

    A tap may read several others: it is held to agree with them only if each of the nearest given ones does.

    ``taps``: those that hold something, all of the detector, in the order of execution.
    ``given``: those of the candidate.
    ``within``: those of the given ones that are within their tolerances.
    """
    nearest: set[str] = set()
    unseen: set[str] = set()
    open_end = False
    ahead = [tap]
    while ahead:
        before = [name for name in reads_of(ahead.pop(), taps) if name in taps]
        for name in before:
            if name in given:
                nearest.add(name)
            elif name not in unseen:
                unseen.add(name)
                ahead.append(name)
                # What an input alone leads to may be wrong without any given tap before it.
                open_end |= not any(n in taps for n in reads_of(name, taps))
    first = next((name for name in taps if name in nearest), None)
    return Upstream(
        None if open_end else first,
        tuple(name for name in taps if name in unseen),
        nearest <= set(within),
    )
