"""The tokenizer and processor files of a folder that transformers loads.

Written as JSON, without importing transformers. The vocabulary is CLIP's, from a folder or a repository; the
settings that make it the original's tokenizer are added here: the checkpoint's context, and padding with id 0
(the original specification). Field names are those of the library's processor, image processor and
``CLIPTokenizer``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3lite_convert.convert.clip_ids import END, PAD, START
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REVISION, is_path
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import is_there, read_small
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.receipt import TokenizerRecord
from sam3lite_convert.records.record import Json

DEFAULT_TOKENIZER = "openai/clip-vit-base-patch32"
# The repository's newest commit when this was written; a vocabulary does not change.
# Bytes; CLIP's tokenizer.json has 2.2 MB, its vocabulary 0.9 MB.
_MOST = 16 << 20
_PINNED = {DEFAULT_TOKENIZER: "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"}
# The files that a CLIPTokenizer is loaded from: either the first, or the other two.
WHOLE, _PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
# Ids that the original tokenizer gives (goldens): dog, a, yellow, bus.
_WORDS = {"dog</w>": 1929, "a</w>": 320, "yellow</w>": 4481, "bus</w>": 2840}
_LARGEST = 64 << 20  # bytes of a file of a tokenizer
_MERGES = END + 1 - 2 * 256 - 2
_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "!"
_SPECIAL = {_START: START, _END: END, _PAD: PAD}
# What the original's BPE takes for a word, but for the two special tokens.
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = (*_CONFIGS, WHOLE, *_PARTS)
TOKENIZER_NAMES = frozenset(TOKENIZER)
PROCESSOR = ("processor_config.json", "preprocessor_config.json")
FRAMES_NAME = "video_preprocessor_config.json"  # where other tools put what the first of these holds for frames
_MASK_STRIDE = 14 / 4  # image pixels per mask pixel at the released sizes, 1008 and 288


@dataclass(frozen=True)
class TokenizerFiles:
    """The vocabulary files of a tokenizer.

    source: the folder's name, or the repository.
    commit: the repository's commit; None for a folder.
    files: file name -> content.
    """

    source: str
    commit: str | None
    files: dict[str, bytes]

    def record(self) -> TokenizerRecord:
        """Source and hashes of the files, for the receipt."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())}
        return TokenizerRecord(source=self.source, commit=self.commit, files=hashes)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds all files that a tokenizer is loaded from."""
    parts = (*_CONFIGS, WHOLE) if (folder / WHOLE).is_file() else (*_CONFIGS, *_PARTS)
    return all((folder / name).is_file() for name in parts)


def fetch_tokenizer(source: str, cache: Path | None = None) -> TokenizerFiles:
    """A CLIP vocabulary from a folder or a repository on the Hub.

    Raises CannotRun if it cannot be fetched or read, or is not CLIP's vocabulary.
    """
    folder = Path(source)
    if folder.is_dir():
        found = TokenizerFiles(folder.resolve().name, None, _read(folder))
    elif folder.exists():
        raise CannotRun(f"--tokenizer {source} is a file; name a folder or a repository", "usage")
    elif is_path(source):
        raise CannotRun(f"--tokenizer {source}: no such folder", "no_such_file")
    else:
        found = _download(source, cache)
    if not _complete(found.files):
        raise CannotRun(f"{source} holds no CLIP tokenizer: neither {WHOLE} nor {' and '.join(_PARTS)}", "no_tokenizer")
    check_vocabulary(source, found.files)
    return found


def _read(folder: Path) -> dict[str, bytes]:
    try:
        return {name: read_small(folder / name, _MOST) for name in (WHOLE, *_PARTS) if is_there(folder / name)}
    except OSError as fault:
        raise CannotRun(f"{fault.filename}: {fault.strerror}", "cannot_open") from fault


def _download(source: str, cache: Path | None) -> TokenizerFiles:
    from sam3lite_convert.hub.repository import Repository

    repository = Repository(source, _PINNED.get(source, DEFAULT_REVISION), cache)
    listing = repository.listing()
    files = {f.path: f for f in listing.files if f.path in (WHOLE, *_PARTS)}
    if listing.unreached is not None and not _complete(files):
        raise listing.unreached  # the cache holds only other files of the repository
    for name in (WHOLE, *_PARTS):
        listing.check(source, name)
        if name in files and files[name].size > _LARGEST:
            raise CannotRun(f"{source}: {name} is too large for a CLIP tokenizer", "no_tokenizer")
    data = {name: read_small(repository.download(file), _MOST) for name, file in files.items()}
    return TokenizerFiles(source, next((f.commit for f in files.values()), None), data)


def _complete(names: Container[str]) -> bool:
    return WHOLE in names or all(name in names for name in _PARTS)


def check_vocabulary(source: str, files: Mapping[str, bytes]) -> None:
    """Raises CannotRun if the ids are not CLIP's: every prompt would then mean something else.

    CLIP's vocabulary consists of 256 byte symbols, the same symbols with an end-of-word mark, one token for each
    merge in the order of the merges, and two special tokens. So merges and ids must agree.
    """
    try:
        found = []
        if WHOLE in files:
            whole = parse_json(files[WHOLE])
            for added in whole.get("added_tokens") or []:
                if _SPECIAL.get(added["content"]) != added["id"]:
                    raise ValueError(f"it gives {added['content']!r} the id {added['id']}")
            merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
            found.append((dict(whole["model"]["vocab"]), merges))
        if all(name in files for name in _PARTS):
            lines = files["merges.txt"].decode("utf-8").splitlines()
            merges = [line for line in lines if line.strip() and not line.startswith("#version")]
            found.append((dict(parse_json(files["vocab.json"])), merges))
        wrong = [what for vocabulary, merges in found if (what := _not_clips(vocabulary, merges))]
        if not wrong and any(other != found[0] for other in found):
            wrong = ["its two vocabularies differ"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise CannotRun(f"{source}: its tokenizer cannot be read ({fault})", "no_tokenizer") from fault
    if wrong:
        raise CannotRun(
            f"{source}: this is not CLIP's vocabulary, which the checkpoint was trained with: {wrong[0]}",
            "other_tokenizer",
        )


def _not_clips(vocabulary: Mapping[str, int], merges: Sequence[str]) -> str | None:
    """Why ids and merges are not CLIP's; None if they are."""
    if len(vocabulary) != END + 1 or len(merges) != _MERGES:
        return f"{len(vocabulary):,} tokens and {len(merges):,} merges instead of {END + 1:,} and {_MERGES:,}"
    facts = {**_SPECIAL, **_WORDS}
    for token, number in facts.items():
        if vocabulary.get(token) != number:
            return f"{token!r} has the id {vocabulary.get(token)} instead of {number}"
    for number, merge in enumerate(merges, 2 * 256):
        token = "".join(merge.split())
        if vocabulary.get(token) != number:
            return f"{token!r} has the id {vocabulary.get(token)}, but by the place of its merge it is {number}"
    return None


def tokenizer_files(found: TokenizerFiles, context: int) -> dict[str, bytes]:
    """The tokenizer files: the vocabulary, and the settings that a checkpoint with this context was trained with."""
    special: Json = {"bos_token": _START, "eos_token": _END, "pad_token": _PAD, "unk_token": _END}
    config: Json = {
        "tokenizer_class": "CLIPTokenizer",
        **special,
        "model_max_length": context,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        # Otherwise every "!" in a prompt would become the padding token, which is a special token here. The
        # original also splits special tokens that are spelled out in a prompt.
        "split_special_tokens": True,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    files = {**found.files, WHOLE: tokenizer_json(found)}
    return files | {"tokenizer_config.json": _json(config), "special_tokens_map.json": _json(special)}


def tokenizer_json(found: TokenizerFiles) -> bytes:
    """``tokenizer.json``, the one file that tokenizers of other languages read: the one that was found, or one made of
    the two parts of a vocabulary."""
    if WHOLE in found.files:
        whole: Json = parse_json(found.files[WHOLE])
        # Otherwise readers of this file alone would take every "!" in a prompt for padding.
        listed = whole.get("added_tokens")
        tokens = listed if isinstance(listed, list) else []
        added = [token for token in tokens if not (isinstance(token, dict) and token.get("content") == _PAD)]
        # The caller sets padding and truncation; settings saved by an earlier user are removed.
        return _json(whole | {"added_tokens": added, "padding": None, "truncation": None})
    lines = found.files["merges.txt"].decode("utf-8").splitlines()
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    return _json(_whole(parse_json(found.files["vocab.json"]), merges))


def _whole(vocabulary: Json, merges: Sequence[str]) -> Json:
    """CLIP's tokenizer in the format of the library ``tokenizers``."""
    flags: Json = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": _SPECIAL[token], "content": token, **flags} for token in (_START, _END)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [_END, END],
            "cls": [_START, START],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": list(merges),
        },
    }


def processor_files(plan: Plan) -> dict[str, bytes]:
    """The files that the library's processor is loaded from: image size, and normalization to [-1, 1]; of the video
    model also those of its frames.

    Raises ValueError if the plan has no vision encoder.
    """
    if plan.architecture.vision is None:
        raise ValueError("a text encoder alone has no image processor")
    names, size = plan.layout.family.library, plan.architecture.vision.image_size
    mask = int(size / _MASK_STRIDE)
    video = plan.options.component == "video"
    pixels: Json = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image: Json = {"image_processor_type": names.image_processor, **pixels}
    image["mask_size"] = {"height": mask, "width": mask}
    name = names.video_processor if video else names.processor
    processor: Json = {"processor_class": name, "image_processor": image, "target_size": size}
    if video:
        # Its own mean and deviation are ImageNet's, and its size is SAM 2's.
        processor["video_processor"] = {"video_processor_type": names.frame_processor, **pixels}
    else:
        processor["point_pad_value"] = -10
    contents: tuple[Json, ...] = (processor, {**image, "processor_class": name})
    return {name: _json(content) for name, content in zip(PROCESSOR, contents, strict=True)}


def _json(data: Json) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
