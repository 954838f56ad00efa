"""Both detectors behind one interface: called alike, with the result under the original's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from original_ref import Detector, load_detector, rotary_table
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.convert.text_weights import cast, read_stored
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.packed_detector import PackedModel
from sam3lite_convert.parity.detector.inputs import DetectorCall
from sam3lite_convert.parity.detector.recording import Read, reading
from sam3lite_convert.parity.detector.stock import stock_detector, text_argument
from sam3lite_convert.parity.detector.taps import OUTPUTS, Tap
from sam3lite_convert.plan.architecture import VISION
from sam3lite_convert.plan.families import Family
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.progress import bar
from sam3lite_convert.records.record import Json

_POINTS = "geometry_encoder.points_"

# (tap, activation)
See = Callable[[str, Tensor], object]
# tap -> the original's recorded activation; None if there is none.
Recorded = Callable[[str], Tensor | None]


class Candidate(Protocol):
    """A detector that can be compared with the original, whatever runs it.

    ``timed``: whether its taps are seen as they are computed, so that the time between them is that of its stages.
    """

    @property
    def name(self) -> str:
        """Description for reports."""
        ...

    @property
    def timed(self) -> bool: ...

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in. The original runs in float32."""
        ...

    def propagated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See) -> dict[str, Tensor]:
        """A normal pass: ``see`` is called at its taps. The result by the names of ``taps.OUTPUTS``, on the CPU."""
        ...

    def isolated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See, recorded: Recorded) -> dict[str, Tensor]:
        """The same, but every tap, and every entry of the result, is computed from the original's recorded ones.

        It is called after ``propagated``. ``taps``: those that hold something.
        """
        ...


@dataclass(frozen=True)
class DetectorSide:
    """One detector of a comparison, whose modules are hooked.

    ``name``: description for reports.
    ``side``: which places of the table of taps are its own.
    ``run``: the result by the names of ``taps.OUTPUTS``, for a call in a dtype.
    """

    name: str
    model: nn.Module
    side: Literal["original", "converted"]
    run: Callable[[DetectorCall, torch.dtype], Mapping[str, Tensor]]

    timed = True
    dtype = torch.float32

    def forward(
        self, call: DetectorCall, taps: Mapping[str, Tap], read: Read, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """One pass, with ``read`` at every tap: the result by the names of ``taps.OUTPUTS``, on the CPU."""
        with torch.inference_mode(), reading(self.model, taps, self.side, read):
            return {name: value.detach().cpu() for name, value in self.run(call, dtype).items()}

    def propagated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See) -> dict[str, Tensor]:
        """See ``Candidate``."""

        def read(tap: str, value: Tensor) -> None:
            see(tap, value)

        return self.forward(call, taps, read)

    def isolated(self, call: DetectorCall, taps: Mapping[str, Tap], see: See, recorded: Recorded) -> dict[str, Tensor]:
        """See ``Candidate``: what a module returned is seen, and the next one reads the recorded one."""

        def read(tap: str, value: Tensor) -> Tensor | None:
            see(tap, value)
            other = recorded(tap)
            return None if other is None else like(other, value)

        return self.forward(call, taps, read)


def like(recorded: Tensor, value: Tensor) -> Tensor:
    """A recorded activation in the shape, dtype and place of another one of its tap."""
    return recorded.reshape(value.shape).to(value.device, value.dtype)


def reference_detector(plan: Plan, context: int, size: int, device: torch.device) -> DetectorSide:
    """The reference with the checkpoint's weights, in float32, for pictures of ``size`` pixels.

    The rotary tables are computed. ``context``: tokens that the text encoder is called with.

    Raises UnsoundPlan if the weights do not fit.
    """
    a = plan.architecture
    heads = a.sizes["detr_heads"]
    try:
        model = load_detector(_weights(plan), {"geometry": heads, "encoder": heads, "mask": heads}, context, size).to(
            device
        )
    except (RuntimeError, ValueError) as fault:
        raise UnsoundPlan(f"the reference could not be loaded: {fault}", "weights_not_loaded") from None
    return wrap_detector(model, device)


def wrap_detector(model: Detector, device: torch.device) -> DetectorSide:
    """The ``DetectorSide`` of a loaded reference."""

    def run(call: DetectorCall, dtype: torch.dtype) -> Mapping[str, Tensor]:
        found = model(**call.arguments(device, dtype))
        return {name: found[name] for name in OUTPUTS}

    return DetectorSide("original detector", model, "original", run)


def _weights(plan: Plan) -> dict[str, Tensor]:
    """The original's state dict: every tensor that the plan maps, and those that it drops and the original holds."""
    sources = {m.canonical: m.source for m in plan.mapped.values()}
    sources |= {d.canonical: d.source for d in plan.dropped.values() if d.canonical.startswith(_POINTS) and not d.copy}
    state = {}
    size = sum(source.nbytes for source in sources.values())
    with open_source(plan.checkpoint) as file, bar("reading the original", size, "byte") as advance:
        for name, source in sources.items():
            state[name] = read_stored(file, source)
            advance(source.nbytes)
    width = state["geometry_encoder.cls_embed.weight"].shape[1]
    for name, columns in (("direct", 2), ("pool", width), ("pos_enc", width)):  # nothing reads them without points
        state.setdefault(f"{_POINTS}{name}_project.weight", torch.zeros(width, columns))
        state.setdefault(f"{_POINTS}{name}_project.bias", torch.zeros(width))
    vision = plan.architecture.vision
    assert vision is not None
    window, grid = vision.window_size, vision.image_size // plan.architecture.sizes["patch"]
    head_dim = plan.architecture.sizes["vit_hidden"] // vision.vit_heads
    tables = {side: rotary_table(side, window, head_dim) for side in {window, grid}}
    for block in plan.architecture.blocks["vit_blocks"]:
        side = grid if block in vision.global_attn_indexes else window
        state[f"{VISION}trunk.blocks.{block}.attn.freqs_cis"] = tables[side]
    return cast(state, torch.float32)


def packed_side(
    family: Family, config: Json, weights: Mapping[str, Tensor], attention: str, size: int, device: torch.device
) -> DetectorSide:
    """The packed detector. ``attention``: of its text encoder."""
    model = PackedModel.from_weights(config, cast(weights, torch.float32), attention, size).to(device)

    def run(call: DetectorCall, dtype: torch.dtype) -> Mapping[str, Tensor]:
        found = model(**call.arguments(device, dtype))
        return {name: getattr(found, name) for name in OUTPUTS}

    return DetectorSide(f"packed, text encoder with {attention} attention", model, "converted", run)


def transformers_side(
    family: Family, config: Json, weights: Mapping[str, Tensor], attention: str, size: int, device: torch.device
) -> DetectorSide:
    """transformers' detector, called as the original is: no mask into the text encoder, and a class token.

    ``attention``: of its text encoder; the rest uses sdpa.

    Raises CannotRun if transformers is not installed.
    """
    import transformers

    model = stock_detector(family, config, weights, torch.float32, text_attention=attention, image_size=size)
    nn.Module.to(model, device)

    def run(call: DetectorCall, dtype: torch.dtype) -> Mapping[str, Tensor]:
        given = call.arguments(device, dtype)
        text = model.get_text_features(input_ids=given["input_ids"], return_dict=True)
        labels = torch.where(given["box_mask"], -10, given["box_labels"])
        found = model(
            pixel_values=given["image"],
            text_embeds=text_argument(text),
            attention_mask=(given["input_ids"] != 0).long(),
            input_boxes=given["boxes"],
            input_boxes_labels=labels,
        )
        names = {"pred_boxes_xyxy": "pred_boxes", "presence_logit_dec": "presence_logits"}
        return {name: getattr(found, names.get(name, name)) for name in OUTPUTS}

    name = f"{family.library.model} (transformers {transformers.__version__}), sdpa, text encoder with {attention}"
    return DetectorSide(f"{name} attention", model, "converted", run)


# Loader of a layout -> the function that builds its detector.
DETECTORS: dict[str, Callable[[Family, Json, Mapping[str, Tensor], str, int, torch.device], DetectorSide]] = {
    "packed_model": packed_side,
    "transformers": transformers_side,
}


def the_device(name: str | None) -> torch.device:
    """The device that both sides run on; TF32 is off. Raises CannotRun if it is not there."""
    kind = name or "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise CannotRun(f"--device {kind}: there is no such device here; leave it out for the processor", "no_device")
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(kind)
