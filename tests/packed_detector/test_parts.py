"""Parts of the packed detector against their formulas, number by number.

The goldens' maps are square, and some of their heads agree: here neither is so.
"""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from original_ref.detector.processor import found
from sam3lite_convert.packed_detector.boxes import corners, logit, roi_align
from sam3lite_convert.packed_detector.detr import DetrDecoder
from sam3lite_convert.packed_detector.layers import Attention
from sam3lite_convert.packed_detector.outputs import PackedOutput
from sam3lite_convert.packed_detector.picture import find_objects
from sam3lite_convert.packed_detector.positions import PositionEncoding, rotary_table, rotate
from sam3lite_convert.packed_detector.vision import _from_windows, _windows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_position_map_that_is_not_square():
    rows, columns, width = 3, 5, 16
    found = PositionEncoding()(torch.zeros(2, width, rows, columns))
    assert found.shape == (2, width, rows, columns) and torch.equal(found[0], found[1])
    half = width // 2
    for r in range(rows):
        for c in range(columns):
            for i in range(width):
                at = (r + 1) / (rows + 1e-6) if i < half else (c + 1) / (columns + 1e-6)
                angle = 2 * math.pi * at / 10000 ** (2 * (i % half // 2) / half)
                wanted = math.cos(angle) if i % 2 else math.sin(angle)
                assert float(found[0, i, r, c]) == pytest.approx(wanted, abs=1e-6)


def test_the_rotary_table():
    side, scale, head = 3, 0.4, 8
    table = rotary_table(side, scale, head, torch.device("cpu"))
    assert table.shape == (9, 4) and table.dtype == torch.complex64
    for token in range(side * side):
        for j in range(4):
            frequency = 10000 ** (-4 * (j % 2) / head)
            along = token % side if j < 2 else token // side
            assert complex(table[token, j]) == pytest.approx(cmath.exp(1j * scale * along * frequency), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_neighbouring_channels_turn_together(dtype):
    x, table = random(1, 2, 9, 8).to(dtype), rotary_table(3, 1.0, 8, torch.device("cpu"))
    found = rotate(x, table)
    assert found.dtype == dtype
    for channel in range(0, 8, 2):
        pair = torch.complex(x[..., channel].double(), x[..., channel + 1].double()) * table[:, channel // 2]
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found[..., channel].double(), pair.real, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(found[..., channel + 1].double(), pair.imag, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 9), (8, 3)])
def test_windows_go_row_by_row_padded_below_and_right(rows, columns):
    side = 4
    x = random(2, rows, columns, 3)
    windows = _windows(x, side)
    across, down = -(-columns // side), -(-rows // side)
    assert windows.shape == (2 * down * across, side, side, 3)
    for image in range(2):
        for r in range(down * side):
            for c in range(across * side):
                number = (image * down + r // side) * across + c // side
                cell = x[image, r, c] if r < rows and c < columns else torch.zeros(3)
                assert torch.equal(windows[number, r % side, c % side], cell)
    assert torch.equal(_from_windows(windows, x), x)


# ---- roi align --------------------------------------------------------------------------------------


def sampled(features: Tensor, y: float, x: float) -> Tensor:
    rows, columns = features.shape[1:]
    if y < -1 or y > rows or x < -1 or x > columns:
        return torch.zeros(len(features))
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= rows - 1:
        top, y = rows - 1, float(rows - 1)
    if left >= columns - 1:
        left, x = columns - 1, float(columns - 1)
    below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    dy, dx = y - top, x - left
    upper = features[:, top, left] * (1 - dx) + features[:, top, right] * dx
    lower = features[:, below, left] * (1 - dx) + features[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


def by_hand(features: Tensor, box: list[float], bins: int) -> Tensor:
    x0, y0, x1, y1 = box
    width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    gx, gy = math.ceil(width / bins), math.ceil(height / bins)
    out = torch.zeros(len(features), bins, bins)
    for p in range(bins):
        for q in range(bins):
            for i in range(gy):
                for j in range(gx):
                    y = y0 + (p + (i + 0.5) / gy) * height / bins
                    x = x0 + (q + (j + 0.5) / gx) * width / bins
                    out[:, p, q] += sampled(features, y, x) / (gy * gx)
    return out


@pytest.mark.parametrize(
    "box",
    [
        [1.25, 0.5, 4.5, 2.75],
        [0.0, 0.0, 9.0, 5.0],  # the whole map
        [2.0, 1.0, 2.25, 1.5],  # below a cell
        [-4.0, -3.0, 3.0, 2.0],  # out by more than a cell, above and left
        [5.0, 2.0, 14.5, 8.25],  # below and right
        [-0.9, -0.9, 9.9, 5.9],  # by less than a cell
        [20.0, 20.0, 30.0, 30.0],  # outside
        [6.0, 4.0, 3.0, 1.0],  # turned inside out
    ],
)
@pytest.mark.parametrize("bins", [7, 2])
def test_what_lies_under_a_box_on_a_map_that_is_not_square(box, bins):
    features = random(3, 5, 9)
    found = roi_align(features, torch.tensor(box), bins)
    torch.testing.assert_close(found, by_hand(features, box, bins), atol=1e-5, rtol=0)


# ---- boxes ------------------------------------------------------------------------------------------


def test_corners_and_logits():
    assert corners(torch.tensor([0.5, 0.25, 0.5, 0.25])).tolist() == [0.25, 0.125, 0.75, 0.375]
    values = [-0.5, 0.0, 0.0005, 0.25, 0.9999, 1.0, 2.0]
    wanted = [math.log(max(x, 1e-3) / max(1 - x, 1e-3)) for x in (min(max(v, 0.0), 1.0) for v in values)]
    torch.testing.assert_close(logit(torch.tensor(values)), torch.tensor(wanted))


def test_the_bias_of_a_map_that_is_not_square(model):
    """Each head's bias at a cell is the sum of what the two perceptrons say of its row and of its column."""
    decoder: DetrDecoder = model.detr_decoder
    rows, columns = 3, 5
    boxes = torch.tensor([[[0.5, 0.4, 0.3, 0.2], [0.1, 0.9, 0.4, 0.6]]])
    found = decoder._bias(boxes, (rows, columns))
    assert found.shape == (1, 8, 2, rows * columns)

    def scaled(distance: float) -> float:
        return math.copysign(math.log2(abs(8 * distance) + 1) / 3, distance)

    for query, (cx, cy, w, h) in enumerate(boxes[0].tolist()):
        for r in range(rows):
            for c in range(columns):
                dx = torch.tensor([scaled(c / columns - cx + w / 2), scaled(c / columns - cx - w / 2)])
                dy = torch.tensor([scaled(r / rows - cy + h / 2), scaled(r / rows - cy - h / 2)])
                wanted = decoder.box_rpb_embed_x(dx) + decoder.box_rpb_embed_y(dy)
                torch.testing.assert_close(found[0, :, query, r * columns + c], wanted, atol=1e-5, rtol=0)


# ---- attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_torchs_own_with_as_many_heads(heads):
    width = 8
    ours = Attention(width, heads)
    theirs = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    parts = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    query, key, value = random(2, 3, width), random(2, 5, width, seed=1), random(2, 5, width, seed=2)
    added = random(2, heads, 3, 5, seed=3)
    wanted, _ = theirs(query, key, value, attn_mask=added.flatten(0, 1))
    torch.testing.assert_close(ours(query, key, value, added), wanted, atol=1e-6, rtol=1e-5)


def test_every_attention_has_the_heads_that_the_config_gives_its_part(model):
    found = {name: m.num_heads for name, m in model.named_modules() if hasattr(m, "num_heads")}
    config = model.config
    parts = {
        "vision_encoder": config.vit, "text_encoder": config.text, "geometry_encoder": config.geometry,
        "detr_encoder": config.encoder, "detr_decoder": config.decoder, "mask_decoder": config.mask,
    }  # fmt: skip
    assert found == {name: parts[name.partition(".")[0]].num_attention_heads for name in found}
    assert len(set(found.values())) == len(parts) - 1  # the text encoder's are the ViT's
    decoder = [name for name in found if name.startswith("detr_decoder.layers.0")]
    assert len(decoder) == 3


def test_boxes_are_not_clipped_to_the_picture_as_the_original_s_are_not():
    boxes = torch.tensor([[[-0.5, -0.25, 0.5, 1.5]]])
    output = PackedOutput(torch.ones(1, 1, 1), boxes, boxes, torch.zeros(1, 1, 2, 2), torch.ones(1, 1), torch.zeros(1))
    assert find_objects(output, 8, 4, 0).boxes.tolist() == [[-2.0, -2.0, 2.0, 12.0]]
    assert found(output._asdict(), 8, 4, 0).boxes.tolist() == [[-2.0, -2.0, 2.0, 12.0]]
