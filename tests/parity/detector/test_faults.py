"""Known faults of ports, made in the reference one at a time, against what the real code recorded."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest
import torch
from support.detector_goldens import CASES, activations, allowed, case, distance
from torch import Tensor, nn

from original_ref import Detector
from sam3lite_convert.parity.detector.faults.changes import DetectorFault
from sam3lite_convert.parity.detector.faults.known import FAULTS, faults_for
from sam3lite_convert.parity.detector.taps import OUTPUTS, ROWS, Place, Tap, taps_of

VISION = r"backbone\.vision_backbone\."
DECODER = r"transformer\.decoder\."
# Row -> the goldens' taps that belong to it: what the row's tap is, and what is computed on the way to it.
PLACES = {
    "trunk.patch_embed": rf"{VISION}trunk\.patch_embed.*",
    "trunk.ln_pre": rf"{VISION}trunk\.(ln_pre|~abs_pos)",
    "trunk.blocks.{i}": rf"{VISION}trunk\.blocks\.{{i}}(\..*)?",
    "neck.{i}": rf"{VISION}convs\.{{i}}(\..*)?",
    "neck.positions": rf"{VISION}position_encoding@\d",
    "geometry.box_direct": r"geometry_encoder\.boxes_direct_project",
    "geometry.box_pooled": r"geometry_encoder\.(~roi_align|boxes_pool_project|img_pre_norm)",
    "geometry.box_position": r"geometry_encoder\.(~encode_boxes|boxes_pos_enc_project)",
    "geometry.box_label": r"geometry_encoder\.label_embed",
    "geometry.final_proj": r"geometry_encoder\.(~sequence|final_proj)",
    "geometry.norm": r"geometry_encoder\.norm",
    "geometry.layers.{i}": r"geometry_encoder\.encode\.{i}(\..*)?",
    "geometry.output": r"geometry_encoder\.encode_norm",
    "encoder.layers.{i}": r"~prompt(_mask)?|transformer\.encoder\.layers\.{i}(\..*)?",
    "decoder.query_position.{i}": DECODER + r"(~query_sine@{i}|ref_point_head@{i}|~inverse_sigmoid@\d)",
    "decoder.rpb_x.{i}": DECODER + r"boxRPB_embed_x@{i}",
    "decoder.rpb_y.{i}": DECODER + r"boxRPB_embed_y@{i}",
    "decoder.queries.{i}": DECODER + r"(~rpb@{i}|layers\.{i}\..*)|~encoder_hidden_states",
    "decoder.presence.{i}": DECODER + r"(~rpb@{i}|layers\.{i}\..*)",
    "decoder.normed.{i}": DECODER + r"norm@\d",
    "decoder.box_delta.{i}": DECODER + r"bbox_embed@{i}",
    "decoder.presence_norm.{i}": DECODER + r"presence_token_out_norm@{i}",
    "decoder.presence_logit.{i}": DECODER + r"presence_token_head@{i}",
    "scoring.prompt_mlp": r"~prompt|dot_prod_scoring\.prompt_mlp.*",
    "scoring.prompt": r"dot_prod_scoring\.(prompt_proj|hs_proj)",
    "scoring.queries": r"dot_prod_scoring\.hs_proj",
    "scoring.logits": r"dot_prod_scoring",
    "masks.prompt_norm": r"segmentation_head\.cross_attn_norm",
    "masks.prompt_attention": r"segmentation_head\.cross_attend_prompt.*",
    "masks.pixel_decoder": r"segmentation_head\.(~encoder_map|pixel_decoder.*)",
    "masks.instance": r"segmentation_head\.instance_seg_head",
    "masks.mask_embed": r"segmentation_head\.mask_predictor\.mask_embed.*",
    "masks.semantic": r"segmentation_head\.semantic_seg_head",
    "outputs.pred_logits": r"output\.pred_logits",
    "outputs.pred_boxes_xyxy": r"output\.pred_boxes(_xyxy)?",
    "outputs.presence_logit_dec": r"output\.presence_logit_dec|transformer\.decoder\.2",
    "outputs.pred_masks": r"output\.pred_masks|segmentation_head\.mask_predictor",
    "outputs.semantic_seg": r"output\.semantic_seg",
}

# What no layer of the tiny detector can have: its trunk has three heads.
NOT_TINY = {"trunk.blocks.heads:half"}

# The same numbers in another order, which rounding alone tells before the fault's own row.
REORDERED = {"prompt.geometry_first"}


FAULT_ROWS = list(dict.fromkeys(fault.row for fault in FAULTS))
# The first fault of each row.
FIRST = {row: next(f for f in FAULTS if f.row == row and f.key not in NOT_TINY) for row in FAULT_ROWS}


@functools.cache
def detector(name: str) -> Detector:
    return case(name).detector()


def part_of(output: object, place: Place) -> Tensor:
    value = output[place.part] if isinstance(place.part, int) else output  # type: ignore[index]
    assert isinstance(value, Tensor)
    return value


def with_part(output: object, place: Place, value: Tensor) -> object:
    if isinstance(place.part, int):
        parts = list(output)  # type: ignore[call-overload]
        parts[place.part] = value
        return tuple(parts)
    return value


@torch.inference_mode()
def tapped(model: Detector, inputs: Mapping[str, Tensor], forced: Mapping[str, Tensor] | None = None,
           ) -> dict[str, Tensor]:  # fmt: skip
    """The activations of one pass at the taps of the table, in its order; ``forced`` ones are put in their place."""
    taps = taps_of(model)
    at: dict[str, dict[int, list[Tap]]] = {}
    for tap in taps.values():
        if tap.row:
            place = tap.row.original
            at.setdefault(tap.path(place), {}).setdefault(tap.call(place), []).append(tap)
    seen: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def reach(tap: Tap, value: object) -> object:
        assert tap.row
        place = tap.row.original
        seen[tap.name] = part_of(value, place)
        return with_part(value, place, forced[tap.name]) if forced and tap.name in forced else value

    def before(path: str) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> object:
            for tap in at[path].get(0, []):
                if tap.row and tap.row.original.at_input:
                    args = (reach(tap, args[0]), *args[1:])
            return args

        return hook

    def after(path: str) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> object:
            number, calls[path] = calls[path], calls[path] + 1
            for tap in at[path].get(number, []):
                if tap.row and not tap.row.original.at_input:
                    output = reach(tap, output)
            return output

        return hook

    with ExitStack() as stack:
        for path in at:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(before(path)).remove)
            stack.callback(module.register_forward_hook(after(path)).remove)
        output = model(**inputs)
    seen |= {f"outputs.{name}": output[name] for name in OUTPUTS}  # type: ignore[literal-required]
    return {name: seen[name] for name in taps if name in seen}


@functools.cache
def right(name: str) -> dict[str, Tensor]:
    """The reference's activations in a case, by tap of the table."""
    return tapped(detector(name), case(name).inputs())


def off(wanted: Tensor, found: Tensor | None) -> float:
    """In units of what the rule allows."""
    if found is None or wanted.shape != found.shape:
        return math.inf
    return float((wanted.double() - found.double()).norm()) / allowed(float(wanted.double().norm()), wanted.numel())


def first_failing(name: str) -> str:
    """The first of the goldens' boundary taps, in the order of execution, at which the changed reference fails."""
    golden = case(name)
    ours = activations(detector(name), golden.inputs())
    for tap, value in ours.items():
        if tap in golden.taps and (
            tuple(value.shape) != golden.taps[tap][0] or distance(tap, golden.taps[tap], value) > 1
        ):
            return tap
    return ""


def cases_for(fault: DetectorFault) -> Iterator[str]:
    """Where it may show: the plainest first."""
    eps = ".eps:" in fault.key
    yield from dict.fromkeys(("small", "box") if eps else ("box", "loud", "boxes3", "batch2", *CASES))


def layers_of(fault: DetectorFault, model: Detector) -> list[int]:
    """The layers that can have it."""
    names = [tap for tap in taps_of(model).values() if (tap.row.name if tap.row else tap.name) == fault.row]
    assert names, f"{fault.key}: no tap of the row {fault.row}"
    return [tap.layer for tap in names if fault.applies(model, tap.layer)]


@pytest.mark.parametrize("row", FAULT_ROWS)
def test_a_fault_of_each_row_is_caught_where_it_was_made(row: str) -> None:
    assert not (problems := list(wrong_with(FIRST[row]))), "\n".join(problems)


@pytest.mark.stress
@pytest.mark.parametrize("row", FAULT_ROWS)
def test_each_fault_is_caught_where_it_was_made(row: str) -> None:
    faults = [f for f in FAULTS if f.row == row and f.key not in NOT_TINY]
    problems = [words for fault in faults for words in wrong_with(fault)]
    assert faults and not problems, "\n".join(problems)


def test_keys_are_unique_and_rows_those_of_the_table() -> None:
    assert len({fault.key for fault in FAULTS}) == len(FAULTS) > 500
    assert {fault.row for fault in FAULTS} <= {row.name for row in ROWS} | {f"outputs.{name}" for name in OUTPUTS}
    # The text encoder has faults of its own; every other tap has one.
    rows = {tap.row.name if tap.row else tap.name for tap in taps_of(detector("box")).values() if tap.stage != "text"}
    assert rows == {fault.row for fault in FAULTS} == set(PLACES)


def test_a_layer_has_the_faults_that_it_can_have() -> None:
    model = detector("box")  # blocks 0 and 2 attend in windows, 1 and 3 to the whole picture
    local, whole = ({f.key for f in faults_for("trunk.blocks.{i}", model, layer)} for layer in (0, 1))
    assert "trunk.blocks.windows_global" in local - whole and "trunk.blocks.global_in_windows" in whole - local
    assert "trunk.blocks.rotary:no_scale" in whole - local and "trunk.blocks.rotary:y_first" in local & whole
    assert {f.key for f in FAULTS} - local - whole >= NOT_TINY
    first, later = ({f.key for f in faults_for("decoder.query_position.{i}", model, n)} for n in (0, 1))
    assert "decoder.refinement.missing" in later - first


@pytest.mark.parametrize("key", ["geometry.final_proj.class_first", "prompt.geometry_first"])
def test_faults_that_no_output_shows_are_caught(key: str) -> None:
    """Attention does not mind the order of the prompt, so the result is the same; the taps are not."""
    fault = next(fault for fault in FAULTS if fault.key == key)
    for name in CASES:
        inputs = case(name).inputs()
        if not fault.needs.holds(detector(name), 0, inputs):
            continue
        with fault.change(detector(name), 0):
            made = tapped(detector(name), inputs)
        wanted = right(name)
        assert all(off(wanted[t], made[t]) <= 1 for t in wanted if t.startswith("outputs.")), name
        assert off(wanted[fault.row], made[fault.row]) > 1, name


@pytest.mark.parametrize("words", list(dict.fromkeys(f.needs.words for f in FAULTS if f.needs.words != "nothing")))
def test_a_fault_whose_need_is_not_met_changes_nothing(words: str) -> None:
    fault = next(fault for fault in FAULTS if fault.needs.words == words)
    for name in CASES:
        model, inputs = detector(name), case(name).inputs()
        layer = layers_of(fault, model)[0]
        if not fault.needs.holds(model, layer, inputs):
            with fault.change(model, layer):
                made = tapped(model, inputs)
            assert all(off(value, made.get(tap)) <= 1 for tap, value in right(name).items()), (fault.key, name)


def wrong_with(fault: DetectorFault) -> Iterator[str]:
    """What of a fault is not as it should be."""
    revealed = False
    for name in cases_for(fault):
        model, inputs = detector(name), case(name).inputs()
        layers = layers_of(fault, model)
        if not layers:
            yield f"{fault.key}: no layer of the tiny detector can have it"
            return
        if not fault.needs.holds(model, layers[0], inputs):
            continue
        wanted, tap = right(name), fault.row.replace("{i}", str(layers[0]))
        with fault.change(model, layers[0]):
            made = tapped(model, inputs)
            failing = first_failing(name)
        earlier = list(wanted)[: list(wanted).index(tap)]
        least = 1 if fault.key in REORDERED else 0
        if moved := [t for t in earlier if off(wanted[t], made.get(t)) > least]:
            yield f"{fault.key} in {name}: moves {moved[0]}, before {tap}"
        if off(wanted[tap], made.get(tap)) <= 1:
            continue
        revealed = True
        if not re.fullmatch(PLACES[fault.row].replace("{i}", str(layers[0])), failing):
            yield f"{fault.key} in {name}: the first failing tap is {failing or 'none'}"
        last = layers[0 if ".eps:" in fault.key else -1]  # an eps shows where the variance is small
        tap = fault.row.replace("{i}", str(last))
        forced = {t: wanted[t] for t in list(wanted)[: list(wanted).index(tap)]}
        with fault.change(model, last):
            made = tapped(model, inputs, forced)
        if off(wanted[tap], made.get(tap)) <= 1:
            yield f"{fault.key} in {name}: does not show at {tap} if all taps before it are right"
        after = tapped(model, inputs)
        if any(not torch.equal(after[t], value) for t, value in wanted.items()):
            yield f"{fault.key}: is not taken back"
        break
    if not revealed:
        yield f"{fault.key}: shows in no case"
