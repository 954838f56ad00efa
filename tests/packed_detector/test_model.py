"""The packed detector as people call it: pictures, prompts, sizes, dtypes; and on torch alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.folders import config, convert, edit_config, python, tensors, tiny_state, write_safetensors

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.packed_detector import Objects, PackedModel, PackedOutput, find_objects, prepare_image

IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12], [3, 0, 0, 0, 0]])


def images(count: int, size: int = 112) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def close(a: PackedOutput, b: PackedOutput, atol: float = 1e-4) -> None:
    for name, x, y in zip(a._fields, a, b, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def row(out: PackedOutput, n: int) -> PackedOutput:
    return PackedOutput(*(value[n : n + 1] for value in out))


# ---- prompts and images ------------------------------------------------------------------------------


def test_one_image_serves_many_prompts_and_is_encoded_once(model):
    image = images(1)
    encoded = model.encode_image(image)
    together = model.decode(encoded, IDS)
    assert together.pred_logits.shape == (3, 10, 1) and together.pred_masks.shape == (3, 10, 32, 32)
    assert together.presence_logit_dec.shape == (3, 1) and together.semantic_seg.shape == (3, 1, 32, 32)
    for n in range(3):
        close(row(together, n), model(image, IDS[n : n + 1]))


def test_each_prompt_has_its_image(model):
    both = images(2)
    out = model(both, IDS, image_ids=torch.tensor([1, 0, 1]))
    for n, image in enumerate((1, 0, 1)):
        close(row(out, n), model(both[image : image + 1], IDS[n : n + 1]))
    close(model(both, IDS[:2]), model(both, IDS[:2], image_ids=torch.tensor([0, 1])))


def test_padded_boxes_change_nothing_and_boxes_without_labels_are_positive(model):
    box = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    padded = torch.cat([box, torch.full((1, 2, 4), 0.3)], 1)
    mask = torch.tensor([[False, True, True]])
    alone = model(images(1), IDS[:1], box)
    close(model(images(1), IDS[:1], padded, box_mask=mask), alone)
    close(model(images(1), IDS[:1], box, torch.ones(1, 1, dtype=torch.int64)), alone)
    for other in (model(images(1), IDS[:1]), model(images(1), IDS[:1], box, torch.zeros(1, 1, dtype=torch.int64))):
        assert not torch.allclose(other.pred_logits, alone.pred_logits, atol=1e-4)


# ---- sizes, dtypes, levels ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [56, 154])
def test_another_image_size_is_as_if_the_config_said_it(size, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "other")
    edit_config(folder, "vision_config", "backbone_config", "image_size", value=size)
    given, stated = PackedModel.from_pretrained(good, image_size=size), PackedModel.from_pretrained(folder)
    out = given(images(1, size), IDS[:1])
    assert out.pred_masks.shape[2:] == (size // 14 * 4, size // 14 * 4)
    close(out, stated(images(1, size), IDS[:1]))


def test_a_neck_of_three_levels_gives_the_same(good, model):
    weights = {k: t for k, t in tensors(good).items() if not k.startswith("vision_encoder.neck.fpn_layers.3.")}
    said = config(good)
    said["vision_config"]["scale_factors"] = [4.0, 2.0, 1.0]
    three = PackedModel.from_weights(said, weights)
    close(three(images(1), IDS[:1]), model(images(1), IDS[:1]))


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.stress), "bfloat16"])
def test_it_runs_in_the_dtype_of_the_file(dtype, tmp_path):
    path = write_safetensors(tmp_path, tiny_state())
    half = PackedModel.from_pretrained(convert(path, tmp_path / "half", "--dtype", dtype))
    whole = PackedModel.from_pretrained(convert(path, tmp_path / "whole"))
    box = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    out = half(images(1).to(half.text_projection.weight.dtype), IDS[:1], box.to(half.text_projection.weight.dtype))
    assert {value.dtype for value in out} == {getattr(torch, dtype)}
    wanted = whole(images(1), IDS[:1], box)
    torch.testing.assert_close(out.pred_boxes.float(), wanted.pred_boxes, atol=5e-2, rtol=0)
    found = half.segment(np.zeros((20, 30, 3), np.uint8), IDS[0], threshold=0)
    assert found.masks.shape == (10, 20, 30)


def test_float64_agrees_with_float32(good, model):
    double = PackedModel.from_weights(config(good), {k: t.double() for k, t in tensors(good).items()})
    box = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    out = double(images(1).double(), IDS[:1], box.double())
    assert {value.dtype for value in out} == {torch.float64}
    close(PackedOutput(*(value.float() for value in out)), model(images(1), IDS[:1], box))


# ---- pictures and objects ----------------------------------------------------------------------------


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_an_array_a_tensor_and_pillows_image_are_one_picture():
    array = picture()
    wanted = prepare_image(array, 28)
    assert wanted.shape == (1, 3, 28, 28) and wanted.dtype == torch.float32 and wanted.is_contiguous()
    assert torch.equal(prepare_image(torch.from_numpy(array).permute(2, 0, 1), 28), wanted)
    assert torch.equal(prepare_image(Image.fromarray(array), 28), wanted)
    grey = Image.fromarray(array[:, :, 0])  # another mode becomes RGB
    assert torch.equal(prepare_image(grey, 28), prepare_image(array[:, :, :1].repeat(3, 2), 28))
    white = prepare_image(np.full((5, 7, 3), 255, np.uint8), 14)
    assert torch.equal(white, torch.ones(1, 3, 14, 14))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((4, 5), np.uint8), r"uint8 \(4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \(4, 4, 5\)"),
        (np.zeros((4, 5, 3), np.float32), r"float32 \(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \(3, 0, 5\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"uint8 \(4, 5, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(wrong, said):
    with pytest.raises(CannotRun, match=said) as caught:
        prepare_image(wrong, 28)
    assert caught.value.code == "bad_picture"


def output(scores: list[float], presence: float) -> PackedOutput:
    logits = torch.tensor(scores).logit()[None, :, None]
    boxes = torch.tensor([[[0.25, 0.5, 0.5, 1.0]]]).expand(1, len(scores), 4)
    masks = torch.full((1, len(scores), 2, 2), -1.0)
    masks[..., 0] = 1.0
    edges = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]).expand(1, len(scores), 4)
    return PackedOutput(logits, boxes, edges, masks, torch.tensor([[presence]]).logit(), masks[:, :1])


def test_objects_have_pixels_and_scores_times_presence():
    found = find_objects(output([0.9, 0.5, 0.8], 0.7), 6, 8, threshold=0.5)
    torch.testing.assert_close(found.scores, torch.tensor([0.63, 0.56]))
    assert found.boxes.tolist() == [[0.0, 0.0, 4.0, 6.0]] * 2
    assert found.masks.shape == (2, 6, 8) and found.masks.dtype == torch.bool
    assert found.masks[0, 0].tolist() == [True] * 4 + [False] * 4
    none = find_objects(output([0.9, 0.5, 0.8], 0.1), 6, 8)
    assert none.scores.shape == (0,) and none.boxes.shape == (0, 4) and none.masks.shape == (0, 6, 8)


def test_segment_is_these_steps(model):
    found = model.segment(picture(), IDS[1], threshold=0.0)
    out = model(prepare_image(picture(), 112), IDS[1:2])
    wanted = find_objects(out, 40, 60, 0.0)
    assert isinstance(found, Objects) and len(found.scores) == 10
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    box = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    boxed = model.segment(picture(), IDS[1], 0.0, box, torch.tensor([0]))
    out = model(prepare_image(picture(), 112), IDS[1:2], box[None], torch.tensor([[0]]))
    assert all(torch.equal(a, b) for a, b in zip(boxed, find_objects(out, 40, 60, 0.0), strict=True))


# ---- torch alone -------------------------------------------------------------------------------------

ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "PIL", "torchvision", "timm", "ftfy", "instant_clip_tokenizer"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np, torch
import sam3lite_convert as s3

model = s3.PackedModel.from_pretrained(sys.argv[1])
picture = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
try:
    model.segment(picture, "a dog")
except s3.CannotRun as fault:
    said = fault.code
found = model.segment(picture, torch.tensor([5, 6, 7, 0, 0]), threshold=0.0)
print(json.dumps({"said": said, "scores": found.scores.tolist(), "masks": int(found.masks.sum())}))
"""


@pytest.mark.stress
def test_it_runs_without_transformers_pillow_and_torchvision(good, model):
    done = python("-c", ALONE, good)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    same = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    found = model.segment(same, IDS[0], threshold=0.0)
    assert said["said"] == "no_tokenizer"
    assert said["scores"] == pytest.approx(found.scores.tolist(), abs=1e-5) and len(said["scores"]) == 10
    assert said["masks"] == pytest.approx(int(found.masks.sum()), abs=20)
