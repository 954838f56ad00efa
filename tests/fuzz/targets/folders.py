"""A converted folder, of which one or several files are the input: read as ``verify`` reads it, as a checkpoint, and
as the folder of an earlier run.

The input is cut at ``CUT``. The first byte of each part says which file it stands for; the rest is its content, or,
where the byte is above 127, a path of keys in its JSON, a line break, and the value to put there.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from support.folders import convert, tiny_architecture, with_layers, write_safetensors

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.commands.fingerprint import read_fingerprint
from sam3lite_convert.commands.sources import HubLocation, locate
from sam3lite_convert.commands.verify import _document
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.up_to_date import earlier
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.plan.tables import Mappings, load_mappings
from sam3lite_convert.verify.recognise import recognise
from sam3lite_convert.verify.side_files_check import check_side_files
from sam3lite_convert.verify.verify import _config_differences, verify
from targets import check_refusal

CUT = b"\xfe\xff"
NAMES = (
    "config.json", "conversion.json", "model.safetensors.index.json", "model.safetensors", "preprocessor_config.json",
    "processor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json", "fingerprint.json",
    "special_tokens_map.json", "LICENSE", "adapter_config.json", "model-00001-of-00002.safetensors",
)  # fmt: skip
_READS_AS_SOURCE = NAMES[:4]


class _Base(NamedTuple):
    """The sound folder, its checkpoint, and the plan of the conversion."""

    folder: Path
    source: Path
    mappings: Mappings
    plan: Plan


@functools.cache
def base(place: Path) -> _Base:
    """A sound folder of a small checkpoint, made once."""
    place.mkdir(parents=True, exist_ok=True)
    state = synthetic.state_dict(with_layers(tiny_architecture(vit_layers=1), detr_encoder=1, detr_decoder=1))
    source = write_safetensors(place, {k: t for k, t in state.items() if not k.startswith("tracker.")})
    folder = convert(source, place / "sound", "--layout", "transformers")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}')
    (folder / "vocab.json").write_text('{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}')
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    mappings = load_mappings()
    return _Base(folder, source, mappings, recognise(read_folder(folder), read_checkpoint(source), mappings))


def _patched(held: bytes, path: str, value: str) -> bytes:
    """A JSON file with the value at the end of a path of keys, joined with slashes, replaced."""
    try:
        new = json.loads(value)
    except (ValueError, RecursionError):
        new = value
    tree: Any = json.loads(held)
    at, *keys = tree, *path.split("/")
    for key in keys[:-1]:
        at = at[int(key)] if isinstance(at, list) and key.isdigit() and int(key) < len(at) else at.get(key)
        if not isinstance(at, dict | list):
            return held
    if isinstance(at, dict):
        at[keys[-1]] = new
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def write(folder: Path, data: bytes) -> None:
    """Make the folder that the input stands for, ``given``."""
    sound, given = base(folder / "base").folder, folder / "given"
    given.mkdir(exist_ok=True)
    for path in given.iterdir():
        path.unlink()
    for path in sound.iterdir():
        (given / path.name).hardlink_to(path)
    for part in data.split(CUT)[:4]:
        if not part:
            continue
        name, rest = NAMES[part[0] % 128 % len(NAMES)], part[1:]
        path = given / name
        held = path.read_bytes() if path.exists() else b"{}"
        if name.endswith(".safetensors"):
            length = struct.unpack("<Q", held[:8])[0] if len(held) > 8 else 0
            header, tensors = held[8 : 8 + length], held[8 + length :]
            if part[0] > 127:
                header = _of_text(header or b"{}", rest)
            content = struct.pack("<Q", len(header)) + header + tensors if part[0] > 127 else rest + tensors
        else:
            content = _of_text(held, rest) if part[0] > 127 and name.endswith(".json") else rest
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def _of_text(held: bytes, rest: bytes) -> bytes:
    path, _, value = rest.decode("utf-8", "replace").partition("\n")
    try:
        return _patched(held, path, value)
    except (ValueError, RecursionError, AttributeError):  # what an earlier part of the input made is no JSON
        return rest


def check(folder: Path) -> None:
    """The folder is refused in words, or judged; everything that is said of it can be written as JSON."""
    held, given = base(folder / "base"), folder / "given"
    try:
        found = read_folder(given)
    except Sam3LiteError as fault:
        check_refusal(fault, 2, 3, 4)
    else:
        _check_folder(found, held)
    if not _same(given / "conversion.json", held.folder / "conversion.json"):
        kept = earlier(given)
        assert not isinstance(kept, str) or len(kept) < 5000
    if not _same(given / "fingerprint.json", held.folder / "fingerprint.json"):
        try:
            read_fingerprint(given)
        except Sam3LiteError as fault:
            check_refusal(fault, 2, 4)
    if _quarter(given, held, _READS_AS_SOURCE):
        _check_source(given, held)


def _same(one: Path, other: Path) -> bool:
    return not one.exists() or (other.exists() and one.samefile(other))


def _check_folder(found: Folder, held: _Base) -> None:
    for key, (path, tensor) in found.tensors.items():
        size, end = path.stat().st_size, tensor.offset + tensor.span * dtypes.itemsize(tensor.dtype)
        assert 0 <= tensor.offset <= end <= size, key
    source = locate(str(held.source), HubLocation(DEFAULT_REPO, DEFAULT_REVISION, None)).index()
    source = source.as_stated(found.receipt)
    try:
        plan = held.plan
        if _quarter(found.path, held, NAMES[:4]):
            plan = recognise(found, source.read(held.mappings), held.mappings)
        if not _whole(found.path, held):
            list(_config_differences(found, plan, []))
            list(check_side_files(found, plan))
            return
        outcome = verify(found, plan, values=frozenset())
    except Sam3LiteError as fault:
        check_refusal(fault, 2, 3, 4)
        return
    document = _document(outcome, found.path, source, None)
    json.dumps(document.to_json(), allow_nan=False)
    assert len(outcome.summary) < 5000
    assert all(len(finding.summary) < 5000 for finding in outcome.findings)
    if outcome.proven:
        assert {key: (p.dtype, p.shape) for key, p in plan.mapped.items()}.items() <= {
            key: (t.dtype, t.shape) for key, (_, t) in found.tensors.items()
        }.items()


def _whole(given: Path, held: _Base) -> bool:
    """Whether a folder is verified as a whole, which takes long: where its tensors or its receipt are other ones, and
    of a quarter of the rest."""
    return any(not _same(given / n, held.folder / n) for n in (*NAMES[1:4], NAMES[-1])) or _quarter(given, held, NAMES)


def _quarter(given: Path, held: _Base, names: Iterable[str]) -> bool:
    """Whether files of these names are other ones, of a quarter of the inputs: what takes longest is done then."""
    sizes = [(given / n).stat().st_size for n in names if not _same(given / n, held.folder / n)]
    return bool(sizes) and sum(sizes) % 4 == 0


def _check_source(given: Path, held: _Base) -> None:
    try:
        read = locate(str(given), HubLocation(DEFAULT_REPO, DEFAULT_REVISION, None)).index().read(held.mappings)
    except Sam3LiteError as fault:
        check_refusal(fault, 2, 3, 4)
        return
    for tensor in read.tensors.values():
        for part in tensor.stored:
            assert 0 <= part.offset <= part.extent[1] <= read.size
