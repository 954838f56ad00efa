"""Checks the licence files of a folder, the processor and tokenizer files of one that transformers loads, and the
tokenizer of any other.

With a receipt their hashes are compared. With or without one, what they say is compared with what the family needs. A
folder without such files is none the worse: the caller then brings a processor and a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.convert import processor_files
from sam3lite_convert.convert.clip_ids import END, PAD, START
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.processor_files import FRAMES_NAME, PROCESSOR, TOKENIZER, WHOLE
from sam3lite_convert.convert.side_files import CONFIG_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.licences import LICENCE_NAME
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import is_there, read_small
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.record import Json, JsonValue

_LIMIT = 64 << 20  # bytes; a tokenizer.json takes 2 MB
# Fields of the image processor that change the pixels; each that is left out has the original's value, but for size and
# mask_size, whose defaults are those of the released models.
_PIXEL_FIELDS = (
    "do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_center_crop", "do_pad",
)  # fmt: skip
_IMAGE_DEFAULTS: Json = {"size": {"height": 1008, "width": 1008}}
# The library's own for frames of a video: those of SAM 2.
_FRAME_DEFAULTS: Json = {
    "size": {"height": 1024, "width": 1024},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_FRAMES = "video_processor"  # the part of the processor that takes them
_NOT_DONE = ("do_center_crop", "do_pad")  # by the original, nor by the library unless they are asked for
# What CLIPTokenizer takes for a field that is left out.
_TOKENIZER_DEFAULTS: Json = {
    "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "padding_side": "right",
    "truncation_side": "right", "do_lower_case": True,
}  # fmt: skip
_MISSING = "is missing; the receipt lists it"
_OTHER = "is not the file that the receipt lists: its SHA-256 is another"
_IDS = {"pad_token": PAD, "bos_token": START, "eos_token": END}


class SideFileFault(NamedTuple):
    """A field of a processor or tokenizer file that is wrong, or the file itself (``field`` is then empty)."""

    name: str
    field: str
    why: str

    @property
    def code(self) -> str:
        """The code of the cause."""
        if LICENCE_NAME.fullmatch(self.name):
            return "V-LICENCE"
        return "V-PROCESSOR" if self.name in (*PROCESSOR, FRAMES_NAME) else "V-TOKENIZER"

    @property
    def component(self) -> str:
        """What the file belongs to."""
        return {"V-LICENCE": "files", "V-PROCESSOR": "processor", "V-TOKENIZER": "tokenizer"}[self.code]


def check_side_files(folder: Folder, plan: Plan) -> Iterator[SideFileFault]:
    """What is wrong with the licence, processor and tokenizer files of a local folder."""
    if not folder.path.is_dir():
        return
    yield from _licences(folder)
    reads = plan.layout.loader.processor
    # Beside a model whose loader reads none of them, tokenizer.json is for runtimes of other languages, if the
    # conversion wrote it.
    listed = (folder.receipt or {}).get("beside")
    own = (WHOLE,) if isinstance(listed, dict) and WHOLE in listed else ()
    files, unreadable = _read(folder.path, (*PROCESSOR, FRAMES_NAME, *TOKENIZER) if reads else own)
    yield from unreadable
    said = set()
    whole = reads and plan.options.component != "text" and plan.architecture.vision is not None
    for fault in (*(_processor(files, plan) if whole else ()), *_tokenizer(files, plan)):
        said.add(fault.name)
        yield fault
    for fault in _hashes(folder, files):
        if fault.name not in said:
            yield fault


def _read(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, bytes], list[SideFileFault]]:
    files: dict[str, bytes] = {}
    faults = []
    for name in names:
        path = folder / name
        if not is_there(path):
            continue
        try:
            data = read_small(path, _LIMIT)
            if name.endswith(".json") and not isinstance(parse_json(data), dict):
                raise ValueError("it is not a JSON object")
            files[name] = data
        except (CannotRun, ValueError) as fault:
            faults.append(SideFileFault(name, "", f"cannot be read ({fault})"))
    return files, faults


def _listed(folder: Folder) -> dict[str, JsonValue]:
    """SHA-256 by name of the files that the receipt lists beside the tensors."""
    listed = folder.receipt.get("beside") if folder.receipt else None
    return listed if isinstance(listed, dict) else {}


def _licences(folder: Folder) -> Iterator[SideFileFault]:
    """Licence files that are not those that the receipt lists."""
    for name, digest in _listed(folder).items():
        if not LICENCE_NAME.fullmatch(name):
            continue
        try:
            if not (folder.path / name).exists():
                yield SideFileFault(name, "", _MISSING)
            elif sha256_of(folder.path / name) != digest:
                yield SideFileFault(name, "", _OTHER)
        except (CannotRun, OSError) as fault:
            yield SideFileFault(name, "", f"cannot be read ({fault})")


def _hashes(folder: Folder, files: dict[str, bytes]) -> Iterator[SideFileFault]:
    """Files that are not those that the receipt lists."""
    for name, digest in _listed(folder).items():
        if name == CONFIG_NAME or name not in (*PROCESSOR, *TOKENIZER):
            continue  # config.json is judged field by field
        if name not in files:
            if not (folder.path / name).exists():
                yield SideFileFault(name, "", _MISSING)
        elif hashlib.sha256(files[name]).hexdigest() != digest:
            yield SideFileFault(name, "", _OTHER)


def _json(files: dict[str, bytes], name: str) -> Json:
    data = parse_json(files[name]) if name in files else {}
    return data if isinstance(data, dict) else {}


# ---- the image processor


def _processor(files: dict[str, bytes], plan: Plan) -> Iterator[SideFileFault]:
    whole, beside = (parse_json(data) for data in processor_files.processor_files(plan).values())
    name, image_name = PROCESSOR
    if name in files:
        said = _json(files, name)
        yield from _processor_config(name, said, whole)
        yield from _section(name, "image_processor", said, whole)
        if _FRAMES in whole and _FRAMES not in said and FRAMES_NAME not in files:
            why = "is missing: transformers finds nothing that prepares the frames of a video"
            yield SideFileFault(name, _FRAMES, why)
        yield from _section(name, _FRAMES, said, whole)
        nested = _FRAMES in said
    else:
        nested = False
    if image_name in files:
        yield from _pixels(image_name, "", _json(files, image_name), beside)
    if FRAMES_NAME in files and _FRAMES in whole and not nested:
        yield from _pixels(FRAMES_NAME, "", _json(files, FRAMES_NAME), whole[_FRAMES])


def _section(name: str, part: str, said: Json, wanted: Json) -> Iterator[SideFileFault]:
    """The fields of one part of the processor."""
    have, want = said.get(part), wanted.get(part)
    if isinstance(have, dict) and isinstance(want, dict):
        yield from _pixels(name, f"{part}.", have, want)
    elif have is not None and want is not None:
        yield SideFileFault(name, part, f"is {have!r}, which is not an object")


def _processor_config(name: str, said: Json, wanted: Json) -> Iterator[SideFileFault]:
    for field in ("target_size", "point_pad_value"):
        have, want = said.get(field), wanted.get(field)
        if have is not None and want is not None and (type(have) is not int or have != want):
            yield SideFileFault(name, field, f"is {have!r}; the original's is {want!r}")
    have, want = said.get("processor_class"), wanted["processor_class"]
    if have is not None and have != want:
        yield SideFileFault(name, "processor_class", f"is {have!r}; the model's is {want!r}")


def _pixels(name: str, path: str, image: Json, wanted: Json) -> Iterator[SideFileFault]:
    """``image``: the fields of an image processor or of a video processor."""
    defaults = _FRAME_DEFAULTS if "video_processor_type" in wanted else _IMAGE_DEFAULTS
    for field in (*_PIXEL_FIELDS, *(name for name in wanted if name.endswith("_processor_type"))):
        want = False if field in _NOT_DONE else wanted[field]
        have = image.get(field)
        left_out = "" if have is not None else " (left out, so the library's default applies)"
        have = defaults.get(field, want) if have is None else have
        if field.endswith("_processor_type"):
            # The library writes the class that it loaded with, which may be the faster twin of the same processor.
            if isinstance(have, str) and isinstance(want, str) and have.removesuffix("Fast") == want:
                continue
        elif _same(have, want):
            continue
        yield SideFileFault(name, path + field, f"is {have!r}{left_out}; the original's is {want!r}")


def _same(have: JsonValue, want: JsonValue) -> bool:
    if isinstance(want, dict):
        return isinstance(have, dict) and have.keys() == want.keys() and all(_same(have[k], want[k]) for k in want)
    if isinstance(want, list):
        return isinstance(have, list) and len(have) == len(want) and all(map(_same, have, want))
    if isinstance(want, bool) or not isinstance(want, int | float):
        return type(have) is type(want) and have == want
    return isinstance(have, int | float) and not isinstance(have, bool) and abs(have - want) <= 1e-9


# ---- the tokenizer


def _tokenizer(files: dict[str, bytes], plan: Plan) -> Iterator[SideFileFault]:
    vocabulary = {n: files[n] for n in TOKENIZER if n in files and n not in processor_files.TOKENIZER[:2]}
    if vocabulary:
        try:
            processor_files.check_vocabulary("the folder", vocabulary)
        except CannotRun as fault:
            first = next(iter(vocabulary))
            yield SideFileFault(first, "", fault.message)
    settings, special = (_json(files, name) for name in TOKENIZER[:2])
    name = TOKENIZER[0]
    if name not in files:
        return
    context, length = plan.architecture.called, settings.get("model_max_length")
    if length is not None and (type(length) not in (int, float) or length != context):
        yield SideFileFault(name, "model_max_length", f"is {length!r}; the model is called with {context}")
    for field, default in _TOKENIZER_DEFAULTS.items():
        have = settings.get(field)
        left_out = "" if have is not None else " (left out, so the library's default applies)"
        have = _token(default if have is None else have)
        if field not in _IDS:
            if have != default:
                yield SideFileFault(name, field, f"is {have!r}; the original's is {default!r}")
        elif _id(have, settings) != _IDS[field]:
            yield SideFileFault(name, field, f"is {have!r}{left_out}; the original's id for it is {_IDS[field]}")
    for field, number in _IDS.items():
        have = _token(special.get(field))
        if have is not None and _id(have, settings) != number:
            yield SideFileFault(TOKENIZER[1], field, f"is {have!r}; the original's id for it is {number}")


def _token(value: JsonValue) -> JsonValue:
    """The text of a token, which may be stored with settings of its own."""
    return value.get("content") if isinstance(value, dict) else value


def _id(token: JsonValue, settings: Json) -> int | None:
    """CLIP's id of a token that is used as a special one."""
    known = {"!": PAD, "<|startoftext|>": START, "<|endoftext|>": END}
    if not isinstance(token, str):
        return None
    added = settings.get("added_tokens_decoder")
    for number, entry in (added if isinstance(added, dict) else {}).items():
        if _token(entry) == token and str(number).isdecimal():
            return int(number)
    return known.get(token)
