"""Pictures from files: what is read, what is refused in words; and the built-in one."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted
from sam3lite_convert.parity.picture_files import read_picture, synthetic_picture

VALUES = numpy.random.Generator(numpy.random.PCG64(3)).integers(0, 256, (9, 14, 3), numpy.uint8)
SMOOTH = numpy.add.outer(numpy.arange(40), 3 * numpy.arange(60))[..., None].repeat(3, -1).astype(numpy.uint8)


def saved(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    (image or Image.fromarray(VALUES)).save(path, **options)
    return path


def ppm(values: numpy.ndarray, head: bytes | None = None) -> bytes:
    height, width, _ = values.shape
    return (head or b"P6\n%d %d\n255\n" % (width, height)) + values.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG file of black pixels, whatever size its header claims."""
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp", "without_an_ending"])
def test_a_picture_is_read_as_it_is(name, tmp_path):
    path = saved(tmp_path / name, format=None if "." in name else "PNG", lossless=True)
    picture = read_picture(path)
    assert picture.dtype == torch.uint8 and picture.is_contiguous()
    assert numpy.array_equal(picture.numpy(), VALUES)


def test_jpeg_and_gif_are_read_as_closely_as_they_store_it(tmp_path):
    for name in ("a.jpg", "a.gif"):
        picture = read_picture(saved(tmp_path / name, Image.fromarray(SMOOTH))).numpy().astype(int)
        assert picture.shape == SMOOTH.shape and abs(picture - SMOOTH).max() < 20


# What the eight orientations of EXIF mean: how the stored values turn into what is shown.
TURNS = {
    1: lambda v: v,
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.transpose(1, 0, 2),
    6: lambda v: v[::-1].transpose(1, 0, 2),
    7: lambda v: v[::-1, ::-1].transpose(1, 0, 2),
    8: lambda v: v.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_exif_says(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(saved(tmp_path / "a.png", exif=exif))
    assert numpy.array_equal(picture.numpy(), TURNS[orientation](VALUES))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_picture_of_eight_bits_becomes_rgb(mode, tmp_path):
    flat = numpy.zeros((5, 7, 3), numpy.uint8) + numpy.array([255, 255, 255], numpy.uint8)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture = read_picture(saved(path, Image.fromarray(flat).convert(mode)))
    assert numpy.array_equal(picture.numpy(), flat)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("white", "black")]
    picture = read_picture(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert picture.shape == (5, 6, 3) and bool((picture == 255).all())


HEADS = [b"P6 14 9 255\n", b"P6\n# made by hand\n14 # wide\n9\n#\n255 "]


@pytest.mark.parametrize("head", HEADS)
def test_ppm_needs_no_pillow(head, no_pillow, tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(ppm(VALUES, head))
    assert numpy.array_equal(read_picture(path).numpy(), VALUES)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_needs_no_pillow(order, no_pillow, tmp_path):
    numpy.save(tmp_path / "a.npy", numpy.asarray(VALUES, order=order))
    picture = read_picture(tmp_path / "a.npy")
    assert numpy.array_equal(picture.numpy(), VALUES) and picture.is_contiguous()


def test_other_files_without_pillow_name_the_extra(no_pillow, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(4, 4))
    with pytest.raises(CannotRun, match=r"pip install 'sam3lite-convert\[pictures\]'") as fault:
        read_picture(path)
    assert fault.value.code == "no_pillow"


def npy(values: numpy.ndarray) -> bytes:
    out = io.BytesIO()
    numpy.save(out, values, allow_pickle=True)
    return out.getvalue()


def png(values: numpy.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


WHOLE = png(SMOOTH)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
FALSE_SHAPE = npy(VALUES).replace(b"(9, 14, 3), }" + b" " * 12, b"(900000000, 999999, 3), }")
REFUSED = {
    "text": (b"a photo", CannotRun, "not_a_picture"),
    "nothing": (b"", CannotRun, "not_a_picture"),
    "eps, which would start another program": (EPS, CannotRun, "not_a_picture"),
    "a bomb": (png_of(100_000, 100_000), CannotRun, "picture_too_large"),
    "a small bomb": (png_of(12_000, 9_000), CannotRun, "picture_too_large"),
    "16 bits": (png_of(2, 2, 16), CannotRun, "deep_picture"),
    "cut png": (WHOLE[: len(WHOLE) // 2], Untrusted, "corrupt_file"),
    "damaged png": (WHOLE[:50] + b"\xff" * 20 + WHOLE[70:], Untrusted, "corrupt_file"),
    "cut ppm": (ppm(VALUES)[:-1], Untrusted, "truncated_file"),
    "ppm of 16 bits": (ppm(VALUES, b"P6 7 9 65535\n"), CannotRun, "deep_picture"),
    "ppm without a size": (b"P6\nwide high 255\n", Untrusted, "corrupt_file"),
    "ppm of no pixels": (b"P6 0 9 255\n", CannotRun, "not_a_picture"),
    "ppm that claims too much": (b"P6 999999999 999999999 255\n", CannotRun, "picture_too_large"),
    "cut npy": (npy(VALUES)[:-1], Untrusted, "corrupt_file"),
    "npy of floats": (npy(VALUES / 255), CannotRun, "not_a_picture"),
    "npy of channels first": (npy(VALUES.transpose(2, 0, 1)), CannotRun, "not_a_picture"),
    "npy of objects": (npy(numpy.array([[[{}]]], dtype=object)), Untrusted, "corrupt_file"),
    "npy that claims too much": (FALSE_SHAPE, Untrusted, "corrupt_file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_is_refused_in_words(what, tmp_path):
    data, kind, code = REFUSED[what]
    path = tmp_path / "picture"
    path.write_bytes(data)
    with pytest.raises(kind) as fault:
        read_picture(path)
    assert fault.value.code == code and str(path) in fault.value.message


def test_a_folder_and_nothing_at_all_are_refused(tmp_path):
    for path, code in ((tmp_path, "not_a_picture"), (tmp_path / "none.png", "no_such_file")):
        with pytest.raises(CannotRun) as fault:
            read_picture(path)
        assert fault.value.code == code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "ppm", "npy"])
def test_a_damaged_file_is_read_or_refused_but_nothing_else(kind, tmp_path):
    out = io.BytesIO()
    if kind.isupper():
        Image.fromarray(SMOOTH).save(out, kind)
    data, path = {"ppm": ppm(SMOOTH), "npy": npy(SMOOTH)}.get(kind, out.getvalue()), tmp_path / "picture"
    rng, refused = numpy.random.Generator(numpy.random.PCG64(5)), 0
    for n in range(60):
        bad = bytearray(data[: int(rng.integers(4, len(data)))] if n % 2 else data)
        for _ in range(n % 5):
            bad[int(rng.integers(0, min(len(bad), 200)))] = int(rng.integers(0, 256))
        path.write_bytes(bad)
        try:
            picture = read_picture(path)
            assert picture.dtype == torch.uint8 and picture.shape[2] == 3
        except Sam3LiteError:
            refused += 1
    assert refused > 5


def test_the_built_in_picture_is_always_the_same_and_needs_no_pillow(no_pillow):
    picture = synthetic_picture(56)
    assert picture.shape == (56, 56, 3) and picture.dtype == torch.uint8
    assert torch.equal(picture, synthetic_picture(56))


@pytest.mark.parametrize("size", [14, 140, 336])
def test_the_built_in_picture_shows_the_same_at_every_size(size):
    picture = synthetic_picture(size).float()
    share = {"ball": (0.50, 0.87), "tree": (0.67, 0.40), "sun": (0.82, 0.17), "wall": (0.44, 0.70), "sky": (0.1, 0.1)}
    red, green, blue = (
        {name: float(picture[int(y * size), int(x * size), c]) for name, (x, y) in share.items()} for c in range(3)
    )
    assert red["ball"] > 2 * max(green["ball"], blue["ball"])
    assert green["tree"] > 1.5 * max(red["tree"], blue["tree"])
    assert min(red["sun"], green["sun"]) > 1.5 * blue["sun"]
    assert blue["sky"] > red["sky"] and red["wall"] > blue["wall"]


def test_the_built_in_picture_has_structure_everywhere():
    picture = synthetic_picture(112).float().mean(-1)
    patches = picture.reshape(8, 14, 8, 14).transpose(1, 2).flatten(2)
    assert float(patches.std(-1).min()) > 0.5  # no patch of the model's is of one colour
