"""The packed detector against what the real detector computed: every tap that both have, in every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from support.detector_goldens import CASES, HEADS, ROWS, Case, case, distance
from support.folders import convert, edit_config, write
from torch import Tensor

from sam3lite_convert.packed_detector import PackedModel, PackedOutput, find_objects, prepare_image

VIT, TEXT = "backbone.vision_backbone.", "backbone.language_backbone."
PRE_NORM = {
    "norm1": "layer_norm1", "self_attn": "self_attn", "norm2": "layer_norm2", "cross_attn_image": "cross_attn",
    "norm3": "layer_norm3", "linear2": "mlp.fc2",
}  # fmt: skip
GEOMETRY = {"final_proj": "final_proj", "norm": "prompt_layer_norm", "encode_norm": "output_layer_norm"}
BOXES = ("boxes_direct_project", "boxes_pos_enc_project", "label_embed")
BY_LAYER = {
    "ref_point_head": "ref_point_head", "bbox_embed": "box_head", "presence_token_out_norm": "presence_layer_norm",
    "presence_token_head": "presence_head",
}  # fmt: skip
MASKS = {
    "pixel_decoder": "pixel_decoder", "instance_seg_head": "instance_projection",
    "mask_predictor.mask_embed": "mask_embedder", "semantic_seg_head": "semantic_projection",
}  # fmt: skip


def same(value: Tensor) -> Tensor:
    return value


def sequence_first(value: Tensor) -> Tensor:
    """The real code has the sequence before the batch here."""
    return value.transpose(0, 1)


Turn = Callable[[Tensor], Tensor]


def taps() -> Iterator[tuple[str, str, int, Turn]]:
    """Boundary tap of the tiny detector, our module, which of its calls, and how to get to the golden's shape."""
    yield VIT + "trunk.patch_embed", "vision_encoder.backbone.embeddings.patch_embeddings", 0, _grid
    yield VIT + "trunk.ln_pre", "vision_encoder.backbone.layer_norm", 0, same
    for i in range(4):
        yield f"{VIT}trunk.blocks.{i}", f"vision_encoder.backbone.layers.{i}", 0, same
    for i in range(3):
        yield f"{VIT}convs.{i}", f"vision_encoder.neck.fpn_layers.{i}", 0, same
        yield f"{VIT}position_encoding@{i}", "vision_encoder.neck.position_encoding", i, same
        yield f"{TEXT}encoder.transformer.{i}", f"text_encoder.layers.{i}", 0, same
    yield TEXT + "encoder.final_layer_norm", "text_encoder.final_layer_norm", 0, same
    yield TEXT + "projector", "text_projection", 0, same

    yield "geometry_encoder.img_pre_norm", "geometry_encoder.vision_layer_norm", 0, _cells_first
    for name in BOXES:
        yield f"geometry_encoder.{name}", f"geometry_encoder.{name}", 0, sequence_first
    yield "geometry_encoder.boxes_pool_project", "geometry_encoder.boxes_pool_project", 0, same
    for name, ours in GEOMETRY.items():
        yield f"geometry_encoder.{name}", f"geometry_encoder.{ours}", 0, sequence_first
    for i in range(2):
        yield f"geometry_encoder.encode.{i}", f"geometry_encoder.layers.{i}", 0, sequence_first
        yield f"transformer.encoder.layers.{i}", f"detr_encoder.layers.{i}", 0, same

    for i in range(3):
        for name, ours in BY_LAYER.items():
            yield f"transformer.decoder.{name}@{i}", f"detr_decoder.{ours}", i, sequence_first
        for axis in "xy":
            yield f"transformer.decoder.boxRPB_embed_{axis}@{i}", f"detr_decoder.box_rpb_embed_{axis}", i, same
        for call in (2 * i, 2 * i + 1):
            yield f"transformer.decoder.norm@{call}", "detr_decoder.output_layer_norm", call, sequence_first
        yield f"transformer.decoder.layers.{i}.0", f"detr_decoder.layers.{i}", 0, lambda z: z[:, 1:].transpose(0, 1)
        yield f"transformer.decoder.layers.{i}.1", f"detr_decoder.layers.{i}", 0, lambda z: z[:, :1].transpose(0, 1)
    yield "dot_prod_scoring.prompt_mlp", "dot_product_scoring.text_mlp_out_norm", 0, sequence_first
    yield "dot_prod_scoring.prompt_proj", "dot_product_scoring.text_proj", 0, same
    yield "dot_prod_scoring.hs_proj", "dot_product_scoring.query_proj", 0, same
    yield "dot_prod_scoring", "dot_product_scoring", 0, same
    yield "segmentation_head.cross_attn_norm", "mask_decoder.prompt_cross_attn_norm", 0, sequence_first
    yield "segmentation_head.cross_attend_prompt", "mask_decoder.prompt_cross_attn", 0, sequence_first
    for name, ours in MASKS.items():
        yield f"segmentation_head.{name}", f"mask_decoder.{ours}", 0, same


def _grid(patches: Tensor) -> Tensor:
    return patches.unflatten(1, (10, 10))


def _cells_first(value: Tensor) -> Tensor:
    return value.flatten(1, 2).transpose(0, 1)


# What the real code records, and no module of ours returns.
NO_MODULE = {
    VIT + "trunk.~abs_pos", TEXT + "0", TEXT + "1", TEXT + "2", "geometry_encoder.~roi_align",
    "geometry_encoder.~encode_boxes", "geometry_encoder.~sequence", "geometry_encoder.0", "geometry_encoder.1",
    "transformer.decoder.0", "transformer.decoder.1", "transformer.decoder.2", "transformer.decoder.3",
    "transformer.decoder.bbox_embed@3", "segmentation_head.~encoder_map", "segmentation_head.mask_predictor",
    "~prompt", "~prompt_mask", "~encoder_hidden_states", "~queries",
}  # fmt: skip
NO_MODULE |= {f"transformer.decoder.~{name}@{i}" for name in ("query_sine", "rpb", "inverse_sigmoid") for i in range(3)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Case -> its weights converted and loaded; cases of the same weights share a model."""
    made: dict[tuple, PackedModel] = {}

    def model(of: Case, name: str, attention: str = "eager") -> PackedModel:
        context = min(of.context, ROWS)
        key = (name if name in ("loud", "small") else "", context, attention)
        if key not in made:
            root = tmp_path_factory.mktemp("tiny")
            folder = convert(write(root, of.weights()), root / "out", "--context", context)
            for part, heads in HEADS.items():
                section = {"geometry": "geometry_encoder", "encoder": "detr_encoder", "mask": "mask_decoder"}[part]
                edit_config(folder, f"{section}_config", "num_attention_heads", value=heads)
            made[key] = PackedModel.from_pretrained(folder, attention)
        return made[key]

    return model


@torch.inference_mode()
def run(model: PackedModel, inputs: dict[str, Tensor]) -> tuple[dict[tuple[str, int], Tensor], dict[str, Tensor]]:
    """What every module returned, by its path and the number of the call, and the outputs."""
    seen: dict[tuple[str, int], Tensor] = {}
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: object, output: Tensor) -> None:
            seen[path, calls[path]] = output
            calls[path] += 1

        return keep

    handles = [module.register_forward_hook(hook(path)) for path, module in model.named_modules()]
    output = model(**inputs)
    for handle in handles:
        handle.remove()
    return seen, output._asdict()


def assert_agrees(model: PackedModel, of: Case) -> None:
    seen, outputs = run(model, of.inputs())
    table = {tap: (path, call, turn) for tap, path, call, turn in taps()}
    checked = 0
    for tap, golden in of.taps.items():
        if tap in NO_MODULE:
            continue
        if tap.startswith("output."):
            ours = outputs[tap.removeprefix("output.")]
        else:
            path, call, turn = table[tap]
            ours = turn(seen[path, call])
        assert distance(tap, golden, ours) <= 1, tap
        checked += 1
    without_boxes = 0 if "boxes" in of.inputs() else len(BOXES) + 1
    assert checked == len(table) + 6 - without_boxes


@pytest.mark.parametrize("name", CASES)
def test_every_activation_is_that_of_the_real_detector(name, models):
    assert_agrees(models(case(name), name), case(name))


def test_so_it_is_with_sdpa_in_the_text_encoder(models):
    assert_agrees(models(case("batch2"), "batch2", "sdpa"), case("batch2"))


@pytest.mark.parametrize("name", ["text", "box"])
def test_the_objects_are_those_of_the_real_processor(name, models):
    of = case(name)
    _, outputs = run(models(of, name), of.inputs())
    height, width, threshold = (of.metadata[f"post_{k}"] for k in ("height", "width", "threshold"))
    found = find_objects(PackedOutput(**outputs), int(height), int(width), float(threshold))
    torch.testing.assert_close(found.scores, of.tensors["post.scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, of.tensors["post.boxes"], atol=1e-3, rtol=0)
    assert torch.equal(found.masks, of.tensors["post.masks"][:, 0])


@pytest.mark.parametrize("name", ["text", "box"])
def test_a_picture_becomes_the_real_processors_input_to_the_bit(name):
    pre = case(name).tensors
    assert torch.equal(prepare_image(pre["pre.picture"], 140), pre["pre.pixel_values"])


# ---- what comparing module by module needs -----------------------------------------------------------

# As in the original: positions of the finer maps, and outputs of the layers before the last.
UNREAD = {
    (path, call)
    for path, calls in {
        "vision_encoder.neck.position_encoding": (0, 1),
        "detr_decoder.presence_layer_norm": (0, 1),
        "detr_decoder.presence_head": (0, 1),
        "detr_decoder.output_layer_norm": (1, 3),
    }.items()
    for call in calls
}


def test_what_a_module_returns_is_what_is_computed_with(models):
    """A hook may replace any tap: something after it has to change, so nothing goes past it."""
    of = case("box")
    model = models(of, "box")
    before = model(**of.inputs())
    modules = dict(model.named_modules())
    past = set()
    for _, path, call, _ in taps():
        calls: list[Tensor] = []

        def replace(module: torch.nn.Module, args: object, output: Tensor, call=call, calls=calls) -> Tensor | None:
            calls.append(output)
            return output * 1.5 + 0.1 if len(calls) == call + 1 else None

        handle = modules[path].register_forward_hook(replace)
        after = model(**of.inputs())
        handle.remove()
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            past.add((path, call))
    assert past == UNREAD
