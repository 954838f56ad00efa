"""The pictures of the detector's page, read back by Pillow."""

from __future__ import annotations

import base64
import io
import math
import sys

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from sam3lite_convert.parity.picture_files import synthetic_picture
from sam3lite_convert.parity.pictures import (
    CANDIDATE_ALONE,
    COLOURS,
    LONGEST,
    MOST,
    ORIGINAL_ALONE,
    Objects,
    can_draw,
    draw,
    draw_difference,
    pictures_of,
)

NEAR = 24  # a palette of 256 colours moves a value by this at most
GREY = torch.full((100, 120, 3), 128, dtype=torch.uint8)


def read(png: bytes) -> numpy.ndarray:
    """(height, width, 3), whole numbers."""
    assert png.startswith(b"\x89PNG")
    return numpy.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(pixel: numpy.ndarray, colour: tuple[float, ...]) -> bool:
    return bool(abs(pixel - numpy.array(colour)).max() <= NEAR)


def objects(
    *boxes: tuple[int, int, int, int], size: tuple[int, int] = (100, 120), scores: Tensor | None = None
) -> Objects:
    """Objects whose masks fill their boxes; the first has the highest score."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    given = torch.linspace(0.9, 0.6, len(boxes)) if scores is None else scores
    return Objects(masks, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), given)


def drawn(found: Objects, picture: Tensor = GREY) -> numpy.ndarray:
    return read(draw(picture, found.masks, found.boxes, found.scores))


def half(colour: tuple[int, ...], under: int = 128) -> tuple[float, ...]:
    return tuple((part + under) / 2 for part in colour)


def test_a_mask_is_half_transparent_with_a_contour_and_the_rest_is_the_picture():
    found = objects((20, 30, 80, 90))
    image = read(draw(GREY, found.masks, torch.full((1, 4), math.nan), found.scores))  # without a box
    assert image.shape == (100, 120, 3)
    assert near(image[60, 50], half(COLOURS[0]))
    assert near(image[60, 20], COLOURS[0]) and near(image[60, 21], COLOURS[0]) and near(image[89, 50], COLOURS[0])
    assert near(image[60, 23], half(COLOURS[0]))
    assert near(image[60, 18], (128, 128, 128)) and near(image[60, 81], (128, 128, 128))


def test_a_box_has_a_line_of_two_pixels_and_its_score():
    box = torch.tensor([[20.0, 30.0, 110.0, 90.0]])
    image = read(draw(GREY, torch.zeros(1, 100, 120, dtype=torch.bool), box, torch.tensor([0.5])))
    for at in ((60, 20), (60, 21), (60, 110), (60, 109), (90, 60), (89, 60)):
        assert near(image[at], COLOURS[0]), at
    for at in ((60, 19), (60, 22), (60, 111), (91, 60), (88, 60)):
        assert near(image[at], (128, 128, 128)), at
    label = image[30:44, 20:48]
    ink = int((label[..., 0] < COLOURS[0][0] // 2).sum())
    assert 15 < ink < 200  # the figures, on the colour of the box
    other = read(draw(GREY, torch.zeros(1, 100, 120, dtype=torch.bool), box, torch.tensor([0.75])))
    assert (other[30:44, 20:48] != label).any() and (other[50:] == image[50:]).all()


def test_the_highest_score_is_on_top_and_has_the_first_colour():
    pair = ((10, 10, 90, 90), (30, 30, 70, 70))
    low, high = (drawn(objects(*pair, scores=torch.tensor(scores))) for scores in ([0.6, 0.9], [0.9, 0.6]))
    assert near(low[50, 31], COLOURS[0]) and near(low[50, 11], COLOURS[1])
    assert near(high[50, 11], COLOURS[0]) and near(high[50, 31], COLOURS[1])  # boxes lie on all masks
    once = numpy.array(half(COLOURS[1]))
    assert near(high[50, 50], tuple((once + COLOURS[0]) / 2)) and near(low[50, 50], tuple((once + COLOURS[0]) / 2))
    assert near(low[50, 80], half(COLOURS[1])) and near(high[50, 80], half(COLOURS[0]))


def test_a_score_that_is_nan_is_the_lowest():
    image = drawn(objects((10, 10, 50, 50), (70, 50, 110, 90), scores=torch.tensor([math.nan, -1.0])))
    assert near(image[70, 71], COLOURS[0]) and near(image[30, 11], COLOURS[1])


def test_at_most_so_many_are_drawn():
    rows = [(0, 2 * n, 100, 2 * n + 2) for n in range(MOST + 5)]
    image = drawn(objects(*rows))
    assert not near(image[2 * MOST - 1, 90], (128, 128, 128))
    assert near(image[2 * MOST + 2, 90], (128, 128, 128))


def test_a_large_picture_is_reduced_with_what_lies_on_it():
    found = objects((1000, 400, 1900, 900), size=(1000, 2000))
    image = drawn(found, torch.full((1000, 2000, 3), 128, dtype=torch.uint8))
    assert image.shape == (LONGEST // 2, LONGEST, 3)
    assert near(image[200, 400], half(COLOURS[0])) and near(image[200, 320], COLOURS[0])
    assert near(image[200, 317], (128, 128, 128)) and near(image[124, 400], (128, 128, 128))


@pytest.mark.parametrize(
    "box", [[math.nan] * 4, [-50, -50, 300, 300], [80, 80, 20, 20], [math.inf, 0, 5, 5], [1e30] * 4]
)
def test_a_box_that_is_wrong_does_no_harm(box):
    mask = torch.zeros(1, 100, 120, dtype=torch.bool)
    image = read(draw(GREY, mask, torch.tensor([box]), torch.tensor([math.nan])))
    assert image.shape == (100, 120, 3)


def test_without_objects_it_is_the_picture():
    picture = synthetic_picture(98)
    image = drawn(objects(size=(98, 98)), picture)
    assert abs(image - picture.numpy().astype(int)).max() <= NEAR


def test_the_difference_is_what_one_side_alone_covers():
    both, first, second = (40, 40, 60, 60), (5, 5, 25, 25), (80, 70, 110, 90)
    picture = torch.tensor([200, 40, 40], dtype=torch.uint8).expand(100, 120, 3)
    image = read(draw_difference(picture, objects(both, first).masks, objects(second, both).masks))
    assert near(image[15, 15], ORIGINAL_ALONE) and near(image[80, 95], CANDIDATE_ALONE)
    for at in ((50, 50), (15, 90), (95, 5)):
        assert image[at].max() - image[at].min() <= 8, at  # grey, also where both have it
    assert near(image[15, 4], ORIGINAL_ALONE) and not near(image[15, 3], ORIGINAL_ALONE)  # a pixel wider


def test_under_the_difference_the_picture_can_be_recognised():
    picture = synthetic_picture(98)
    none = torch.zeros(0, 98, 98, dtype=torch.bool)
    image = read(draw_difference(picture, none, none))
    assert (image.max(-1) - image.min(-1) <= 8).all() and image.min() > 90
    brightness = picture.float().numpy() @ numpy.array([0.299, 0.587, 0.114])  # as television weighs the colours
    assert numpy.corrcoef(image.mean(-1).ravel(), brightness.ravel())[0, 1] > 0.99


def test_a_single_pixel_of_a_large_picture_is_seen():
    masks = torch.zeros(1, 1500, 1500, dtype=torch.bool)
    others = masks.clone()
    others[0, 700, 333] = True
    image = read(draw_difference(torch.full((1500, 1500, 3), 90, dtype=torch.uint8), masks, others))
    coloured = image[image.max(-1) - image.min(-1) > 40]
    blue = [near(pixel, CANDIDATE_ALONE) for pixel in coloured]
    assert 25 <= len(blue) <= 36 and all(blue)


def three(original: Objects, candidate: Objects, picture: Tensor = GREY) -> tuple[list[str], list[numpy.ndarray]]:
    records = pictures_of(picture, original, candidate, 0.5)
    assert [r.title for r in records] == ["Original", "Candidate", "Difference"]
    images = [read(base64.b64decode(r.png, validate=True)) for r in records]
    assert [(r.height, r.width) for r in records] == [image.shape[:2] for image in images]
    assert len({r.alt for r in records}) == 3 and all(r.alt for r in records)
    return [r.caption for r in records], images


def test_an_object_has_the_same_colour_on_both_sides():
    a, b, c = (5, 5, 45, 45), (60, 5, 100, 45), (5, 55, 45, 95)
    nearly = (62, 5, 100, 45)
    _, (left, right, _) = three(objects(a, b), objects(c, nearly, a))
    for at in ((25, 25), (25, 80)):
        assert near(left[at], right[at]) and not near(left[at], (128, 128, 128))
    assert near(right[75, 25], half(COLOURS[2]))  # found by the candidate alone: a colour of its own


def test_captions_count():
    a, b, c = (5, 5, 15, 15), (60, 5, 70, 15), (5, 55, 15, 56)
    said, _ = three(objects(a, b), objects(a, c, scores=torch.tensor([0.9, 0.8])))
    assert said == [
        "2 objects above 0.5.",
        "2 objects above 0.5.",
        "Orange: 100 pixels that the original's masks alone cover; blue: 10 pixels that the candidate's masks alone "
        "cover. Drawn wider than they are, so that a single pixel can be seen.",
    ]
    said, images = three(objects(a), objects(a))
    assert said == ["1 object above 0.5.", "1 object above 0.5.", "The masks of both sides cover the same pixels."]
    assert (images[0] == images[1]).all()
    said, _ = three(objects(), objects((1, 1, 2, 2)))
    assert said[0] == "No object above 0.5."
    assert said[2].startswith("Blue: 1 pixel that the candidate's masks alone cover.")
    said, _ = three(objects(), objects())
    assert said == ["No object above 0.5.", "No object above 0.5.", "Neither side found an object."]
    said, _ = three(objects(*[a] * 41), objects(a))
    assert said[0] == "41 objects above 0.5, the 30 of the highest scores drawn."


@pytest.mark.stress
def test_the_files_are_small():
    found = objects((100, 100, 500, 600), (300, 500, 900, 1000), size=(1008, 1008))
    records = pictures_of(synthetic_picture(1008), found, found, 0.5)
    assert all(r.width == LONGEST and len(r.png) < 120_000 for r in records)


def test_without_pillow_it_says_so(monkeypatch):
    assert can_draw()
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert not can_draw()
