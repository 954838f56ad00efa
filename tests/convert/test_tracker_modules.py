"""The tracker's modules of released transformers, with converted weights, beside plain torch with the original's.

There is no reference of the whole tracker. What is written out here, from the specification and under the original's
names, and compared: the encodings of points and of the image's grid, the object pointer's layers, the mask prompt's
convolution, the mask's way into the prompt encoder and into memory, the memory encoder as a whole, the heads of the
mask decoder, the encoding of time, and the neck. Not compared: attention (of memory, and of the mask decoder), and the
steps around the modules.
"""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from support import families
from support.folders import write_safetensors
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, gelu, layer_norm, linear, relu

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.text_weights import planned_tensors
from sam3lite_convert.plan.plan import Options, make_plan

SIZE, GRID, WIDTH = 112, 8, 128
PROMPTS, DECODER, MEMORY = "sam_prompt_encoder.", "sam_mask_decoder.", "maskmem_backbone."


@pytest.fixture(scope="module")
def source():
    return families.runnable()


@pytest.fixture(scope="module")
def model(source, mappings, tmp_path_factory):
    """Sam3VideoModel with every tensor of the conversion."""
    path = write_safetensors(tmp_path_factory.mktemp("tracker"), source)
    plan = make_plan(read_checkpoint(path), mappings, Options("transformers", "video"))
    config = transformers.Sam3VideoConfig(**make_config(plan))
    with torch.device("meta"):
        model = transformers.Sam3VideoModel(config)
    tracker = {k: t for k, t in planned_tensors(plan).items() if k.startswith("tracker_")}
    left = model.load_state_dict(tracker, strict=False, assign=True)
    assert not left.unexpected_keys and not [k for k in left.missing_keys if k.startswith("tracker_")]
    return model.eval().requires_grad_(False)


class Original:
    """The original's tensors by their names below ``tracker.``, and its layers in plain torch."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        return self.state["tracker." + name]

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        return self[name + ".weight"], self[name + ".bias"]

    def norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        """A LayerNorm over the channels of (n, channels, height, width)."""
        return layer_norm(x.movedim(1, -1), x.shape[1:2], *self.of(name), eps).movedim(-1, 1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """Three layers with ReLU between them."""
        for i in range(3):
            x = linear(x, *self.of(f"{name}.layers.{i}"))
            x = relu(x) if i < 2 else x
        return x

    def positions(self, points: Tensor) -> Tensor:
        """Points in the unit square (..., 2), encoded (..., width)."""
        angles = 2 * math.pi * ((2 * points - 1) @ self[PROMPTS + "pe_layer.positional_encoding_gaussian_matrix"])
        return torch.cat([angles.sin(), angles.cos()], -1)


@pytest.fixture(scope="module")
def original(source):
    return Original(source)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_points_are_encoded_by_their_place_and_their_label(model, original):
    points = 100 * torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    labels = [0, 1, 2, 3, -1]
    wanted = original.positions((points + 0.5) / SIZE)
    for i, label in enumerate(labels):
        if label < 0:
            wanted[i] = original[PROMPTS + "not_a_point_embed.weight"][0]
        else:
            wanted[i] += original[f"{PROMPTS}point_embeddings.{label}.weight"][0]
    given = torch.tensor(labels)[None, None]
    encoder = model.tracker_model.prompt_encoder
    sparse, dense = encoder(input_points=points[None, None], input_labels=given, input_boxes=None, input_masks=None)
    assert_close(sparse[0, 0, :5], wanted)
    empty = original[PROMPTS + "no_mask_embed.weight"].reshape(1, WIDTH, 1, 1).expand(1, WIDTH, GRID, GRID)
    assert torch.equal(dense, empty)


def test_the_grid_of_the_image_is_encoded_from_a_table_of_its_own(model, original):
    centres = (torch.arange(GRID) + 0.5) / GRID
    places = torch.stack([centres.repeat(GRID, 1), centres[:, None].repeat(1, GRID)], -1)
    wide = model.tracker_model.get_image_wide_positional_embeddings()
    assert_close(wide[0], original.positions(places).movedim(-1, 0))


def test_a_mask_as_prompt_is_embedded(model, original):
    x = wanted = random(1, 1, 4 * GRID, 4 * GRID)
    for conv, norm in ((0, 1), (3, 4)):
        wanted = conv2d(wanted, *original.of(f"{PROMPTS}mask_downscaling.{conv}"), stride=2)
        wanted = gelu(original.norm(f"{PROMPTS}mask_downscaling.{norm}", wanted))
    wanted = conv2d(wanted, *original.of(f"{PROMPTS}mask_downscaling.6"))
    assert_close(model.tracker_model.prompt_encoder.mask_embed(x), wanted)


def test_the_layers_of_the_object_pointer_and_of_time(model, original):
    tracker, x = model.tracker_model, random(3, WIDTH)
    assert_close(tracker.object_pointer_proj(x), original.mlp("obj_ptr_proj", x))
    wanted = linear(x, *original.of("obj_ptr_tpos_proj"))
    assert_close(tracker.temporal_positional_encoding_projection_layer(x), wanted)


def test_a_full_size_mask_becomes_logits(model, original):
    x = random(1, 1, SIZE, SIZE)
    assert_close(model.tracker_model.mask_downsample(x), conv2d(x, *original.of("mask_downsample"), stride=4))


def test_the_memory_encoder(model, original):
    masks, features = random(2, 1, 16 * GRID, 16 * GRID), random(2, WIDTH, GRID, GRID)
    x = masks
    for conv in (0, 3, 6, 9):
        x = conv2d(x, *original.of(f"{MEMORY}mask_downsampler.encoder.{conv}"), stride=2, padding=1)
        x = gelu(original.norm(f"{MEMORY}mask_downsampler.encoder.{conv + 1}", x))
    x = conv2d(x, *original.of(f"{MEMORY}mask_downsampler.encoder.12"))
    x = x + conv2d(features, *original.of(MEMORY + "pix_feat_proj"))
    for i in range(2):
        block = f"{MEMORY}fuser.layers.{i}."
        y = conv2d(x, *original.of(block + "dwconv"), padding=3, groups=WIDTH)
        y = original.norm(block + "norm", y).movedim(1, -1)
        y = linear(gelu(linear(y, *original.of(block + "pwconv1"))), *original.of(block + "pwconv2"))
        x = x + (original[block + "gamma"] * y).movedim(-1, 1)
    wanted = conv2d(x, *original.of(MEMORY + "out_proj"))
    found, _ = model.tracker_model.memory_encoder(features, masks)
    assert_close(found, wanted)


def test_the_heads_of_the_mask_decoder(model, original):
    decoder, x = model.tracker_model.mask_decoder, random(4, WIDTH)
    for i in range(4):
        wanted = original.mlp(f"{DECODER}output_hypernetworks_mlps.{i}", x)
        assert_close(decoder.output_hypernetworks_mlps[i](x), wanted)
    assert_close(decoder.iou_prediction_head(x), original.mlp(DECODER + "iou_prediction_head", x).sigmoid())
    assert_close(decoder.pred_obj_score_head(x), original.mlp(DECODER + "pred_obj_score_head", x))
    image = random(1, WIDTH, GRID, GRID)
    for name in ("conv_s0", "conv_s1"):
        assert_close(getattr(decoder, name)(image), conv2d(image, *original.of(DECODER + name)))
    up, wide = (
        conv_transpose2d(image, *original.of(DECODER + "output_upscaling.0"), stride=2),
        decoder.upscale_conv1(image),
    )
    assert_close(wide, up)
    normed = gelu(original.norm(DECODER + "output_upscaling.1", up))
    assert_close(decoder.activation(decoder.upscale_layer_norm(up)), normed)
    wanted = conv_transpose2d(normed, *original.of(DECODER + "output_upscaling.3"), stride=2)
    assert_close(decoder.upscale_conv2(normed), wanted)


def test_the_neck_of_the_tracker_is_made_of_sam2_convs(model, source):
    image = random(1, 64, GRID, GRID)
    levels, _ = model.tracker_neck(image)
    steps = (("dconv_2x2_0", "dconv_2x2_1"), ("dconv_2x2",), (), ())
    for i, ups in enumerate(steps):
        level = f"detector.backbone.vision_backbone.sam2_convs.{i}."
        part = {k.removeprefix(level): t for k, t in source.items() if k.startswith(level)}
        x = image
        for n, name in enumerate(ups):
            x = conv_transpose2d(gelu(x) if n else x, part[name + ".weight"], part[name + ".bias"], stride=2)
        x = torch.nn.functional.max_pool2d(x, 2) if i == 3 else x
        x = conv2d(x, part["conv_1x1.weight"], part["conv_1x1.bias"])
        wanted = conv2d(x, part["conv_3x3.weight"], part["conv_3x3.bias"], padding=1)
        assert_close(levels[i], wanted)
