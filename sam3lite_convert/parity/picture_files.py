"""The picture that both detectors are run on: read from a file, or the built-in one."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.errors import CannotRun, Untrusted, in_short
from sam3lite_convert.opened import open_regular

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_MOST = 100_000_000  # pixels: 300 MB as bytes of three channels
# Of Pillow's formats those that it decodes itself: EPS, for one, starts another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_NUMPY, _PPM = b"\x93NUMPY", b"P6"
_LARGEST_FILE = 1 << 30  # bytes
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEAD = re.compile(rb"P6" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,5})\s")


def read_picture(path: Path) -> Tensor:
    """A picture file as uint8 of shape (height, width, 3), RGB, turned as its EXIF says.

    PNG, JPEG, WebP, BMP, GIF and TIFF need the extra ``pictures``; a .npy file of such an array and a binary .ppm do
    not. Transparency is left out, and of several frames the first is taken.
    Raises CannotRun if there is no such file, it is no picture of these kinds, it has too many pixels or channels of
    more than 8 bits, or Pillow is not installed; Untrusted if it is damaged.
    """
    if path.is_dir():
        raise CannotRun(f"{path} is a folder: give a picture", "not_a_picture")
    try:
        with open_regular(path, _LARGEST_FILE) as file:
            head = file.read(4096)
        if head.startswith(_NUMPY):
            return _read_numpy(path)
        if head.startswith(_PPM):
            return _read_ppm(path, head)
        return _read_with_pillow(path)
    except OSError as fault:
        raise CannotRun(f"{path} cannot be read: {in_short(fault)}", "unreadable_file") from None


def _read_numpy(path: Path) -> Tensor:
    import numpy
    import torch

    try:
        values = numpy.load(path, mmap_mode="r", allow_pickle=False)  # a false shape takes no memory
    except Exception as fault:  # a damaged header can raise nearly anything
        raise Untrusted(f"{path} is damaged: {in_short(fault)}", "corrupt_file") from None
    if values.dtype != numpy.uint8 or values.ndim != 3 or values.shape[2] != 3:
        raise CannotRun(
            f"{path} holds {values.dtype} of shape {values.shape}; a picture is uint8 of shape (height, width, 3)",
            "not_a_picture",
        )
    _check_size(path, values.shape[1], values.shape[0])
    return torch.from_numpy(numpy.array(values, order="C"))


def _read_ppm(path: Path, head: bytes) -> Tensor:
    import torch

    found = _PPM_HEAD.match(head)
    if not found:
        raise Untrusted(f"{path} begins as a .ppm file does, but its header is damaged", "corrupt_file")
    width, height, most = map(int, found.groups())
    if most != 255:
        raise CannotRun(f"{path} has values up to {most}; save it with 8 bits a channel", "deep_picture")
    _check_size(path, width, height)
    size = width * height * 3
    with open_regular(path, _LARGEST_FILE) as file:
        file.seek(found.end())
        data = bytearray(file.read(size))
    if len(data) != size:
        raise Untrusted(f"{path} ends after {len(data):,} of {size:,} bytes of its pixels", "truncated_file")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(height, width, 3)


def _read_with_pillow(path: Path) -> Tensor:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise CannotRun(
            f"{path}: pictures need Pillow: pip install 'sam3lite-convert[pictures]'. Without it, a binary .ppm, a "
            ".npy file of uint8 values (height, width, 3), or the built-in picture can be used.",
            "no_pillow",
        ) from None
    import numpy
    import torch

    with warnings.catch_warnings(), open_regular(path, _LARGEST_FILE) as file:
        warnings.simplefilter("ignore")  # of large pictures, which are refused below, and of strange metadata
        try:
            opened = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        except UnidentifiedImageError:
            known = ", ".join(_FORMATS)
            raise CannotRun(
                f"{path} is not a picture that can be read ({known}, binary .ppm, .npy)", "not_a_picture"
            ) from None
        except Exception as fault:  # a damaged file can raise nearly anything
            raise Untrusted(f"{path} is damaged: {in_short(fault)}", "corrupt_file") from None
        with opened:
            _check_size(path, *opened.size)
            if opened.mode.startswith(("I", "F")):
                raise CannotRun(f"{path} has more than 8 bits a channel; save it with 8 bits a channel", "deep_picture")
            try:
                turned = ImageOps.exif_transpose(opened)
                return torch.from_numpy(numpy.array(turned.convert("RGB")))
            except Exception as fault:  # as above
                raise Untrusted(f"{path} is damaged: {in_short(fault)}", "corrupt_file") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise CannotRun(f"{path} has no pixels", "not_a_picture")
    if width * height > _MOST:
        raise _too_large(path)


def _too_large(path: Path) -> CannotRun:
    return CannotRun(
        f"{path} has more than {_MOST:,} pixels; the detector sees at most about a million: make it smaller",
        "picture_too_large",
    )


# ---- The built-in picture

_SEED = 16
_UNIT = 100_000  # sides of the picture; places and radii below are in shares of it


def synthetic_picture(size: int) -> Tensor:
    """The built-in picture: uint8 of shape (size, size, 3), RGB. A house, a tree, a red ball and a sun, on textured
    ground. The same bytes everywhere: whole numbers alone are computed with, and the seed is fixed."""
    import numpy
    import torch

    side = 2 * size  # drawn twice as large and averaged, so that edges are smooth
    at = (2 * numpy.arange(side, dtype=numpy.int64) + 1) * _UNIT // (2 * side)
    x, y = at[None, :], at[:, None]
    raw = numpy.random.PCG64(_SEED)  # its raw stream never changes; what a Generator makes of it may
    coarse, fine = _texture(raw.random_raw(17 * 17), side), _texture(raw.random_raw(65 * 65), side)

    def disc(cx: int, cy: int, radius: int) -> numpy.ndarray:
        return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2

    def block(left: int, top: int, right: int, bottom: int) -> numpy.ndarray:
        return (x >= left) & (x < right) & (y >= top) & (y < bottom)

    def roof(cx: int, top: int, half: int, bottom: int) -> numpy.ndarray:
        return (y >= top) & (y < bottom) & (abs(x - cx) * (bottom - top) <= half * (y - top))

    sky = numpy.stack(numpy.broadcast_arrays(150 + 60 * y // _UNIT, 195 + 30 * y // _UNIT, 235 + 0 * y), -1)
    picture = (sky + (coarse[..., None] - 128) // 10).astype(numpy.int16)
    shade = ((coarse + 2 * fine) // 3 - 128).astype(numpy.int16)  # -128 to 127
    for place, colour, depth in (
        (disc(82_000, 17_000, 8_500), (250, 214, 80), 30),  # the sun
        (disc(20_000, 128_000, 72_000), (112, 142, 96), 6),  # hills
        (disc(88_000, 130_000, 75_000), (124, 154, 100), 6),
        (block(0, 66_000, _UNIT, _UNIT), (104, 128, 62), 3),  # the meadow
        (block(14_000, 44_000, 46_000, 76_000), (222, 206, 180), 8),  # the house
        (roof(30_000, 26_000, 21_000, 45_000), (160, 66, 50), 4),
        (block(26_000, 58_000, 34_000, 76_000), (96, 62, 40), 6),
        (block(18_000, 50_000, 24_000, 57_000), (84, 120, 160), 10),
        (block(37_000, 50_000, 43_000, 57_000), (84, 120, 160), 10),
        (block(65_500, 56_000, 69_500, 80_000), (98, 70, 46), 4),  # the tree
        (disc(67_500, 44_000, 14_500), (50, 110, 54), 3),
        (disc(59_000, 52_000, 8_500), (58, 120, 58), 3),
        (disc(76_500, 51_000, 8_500), (44, 102, 50), 3),
        (disc(50_000, 86_000, 8_000), (206, 36, 40), 12),  # the ball
        (disc(47_200, 83_000, 1_700), (250, 210, 206), 30),
    ):
        picture[place] = numpy.array(colour, numpy.int16) + (shade[place] // depth)[:, None]
    fours = picture.reshape(size, 2, size, 2, 3).sum((1, 3))
    return torch.from_numpy(((fours + 2) // 4).clip(0, 255).astype(numpy.uint8))


def _texture(raw: numpy.ndarray, side: int) -> numpy.ndarray:
    """Values from 0 to 255 at the corners of square cells, and between them on straight lines: (side, side)."""
    import numpy

    cells = round(len(raw) ** 0.5) - 1
    corners = (raw >> 56).astype(numpy.int64).reshape(cells + 1, cells + 1)
    at = numpy.arange(side, dtype=numpy.int64) * cells
    cell, rest = at // side, at % side
    rows = corners[cell] * (side - rest)[:, None] + corners[cell + 1] * rest[:, None]
    values: numpy.ndarray = (rows[:, cell] * (side - rest) + rows[:, cell + 1] * rest) // (side * side)
    return values
