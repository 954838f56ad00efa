"""What lies in a converted folder beside tensors, config and receipt: processor files, tokenizer, card.

The receipt holds the hash of each, so that a later run sees what is gone and what somebody edited.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sam3lite_convert.checkpoint.hashing import sha256_of
from sam3lite_convert.convert import processor_files
from sam3lite_convert.convert.card import CARD_FIELD, CARD_NAME, EDITED_FIELD, blob_id, card_of
from sam3lite_convert.convert.processor_files import TOKENIZER, TokenizerFiles
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import json_bytes, write_whole
from sam3lite_convert.plan.loaders import LOADERS
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.workers import Worker

FIELD = "beside"  # of the receipt: name -> SHA-256
CONFIG_NAME = "config.json"
# A tokenizer that was named and is none is a mistake; one that cannot be had now is not.
_MISTAKES = ("usage", "other_tokenizer", "no_tokenizer", "cannot_open")

Receipt = dict[str, Any]


def fetch_tokenizer(plan: Plan, source: str | None, cache: Path | None) -> Worker | None:
    """The tokenizer, on its way while tensors are written; None where none is wanted."""
    if source is None or not plan.layout.loader.processor:
        return None
    return Worker(lambda: processor_files.fetch_tokenizer(source, cache))


def add_processor_files(folder: Path, receipt: Receipt, plan: Plan, tokenizer: Worker | None) -> str | None:
    """Write what is not there; returns why a tokenizer cannot be had, None where there is one or none is
    wanted. ``tokenizer``: takes the place of one that is there.

    Raises CannotRun where the tokenizer that was named is none, or not CLIP's.
    """
    if not plan.layout.loader.processor:
        return None
    files = processor_files.processor_files(plan) if plan.options.component == "all" else {}
    files = {name: data for name, data in files.items() if not (folder / name).exists()}
    why = None
    try:
        if tokenizer is not None:
            found: TokenizerFiles = tokenizer.result()
            made = processor_files.tokenizer_files(found, plan.architecture.sizes["context"])
            for name in set(TOKENIZER) - set(made):
                # Of another form of the tokenizer that was here; the library would read both.
                (folder / name).unlink(missing_ok=True)
                receipt.get(FIELD, {}).pop(name, None)
            files |= made
            receipt["tokenizer"] = found.record()
    except CannotRun as fault:
        if fault.code in _MISTAKES:
            raise
        if not processor_files.has_tokenizer(folder):
            receipt["tokenizer"] = None
            why = fault.message
    for name, data in files.items():
        write_whole(folder / name, data)
    _note(receipt, files)
    return why


def takes_processor_files(receipt: Receipt) -> bool:
    """Whether what loads the folder reads processor and tokenizer files."""
    return LOADERS[receipt["loader"]].processor


def note_config(folder: Path, receipt: Receipt) -> None:
    """Keep the hash of config.json too."""
    _note(receipt, {CONFIG_NAME: (folder / CONFIG_NAME).read_bytes()})


def _note(receipt: Receipt, files: dict[str, bytes]) -> None:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    receipt[FIELD] = dict(sorted({**(receipt.get(FIELD) or {}), **hashes}.items()))


def missing(folder: Path, receipt: Receipt, tokenizer_wanted: bool) -> list[str]:
    """The names of files that should be there and are not."""
    names = [name for name in receipt.get(FIELD) or {} if not (folder / name).is_file()]
    if tokenizer_wanted and takes_processor_files(receipt) and not processor_files.has_tokenizer(folder):
        names += [name for name in TOKENIZER if not (folder / name).exists() and name not in names]
    return names


def edited(folder: Path, receipt: Receipt) -> list[str]:
    """The names of processor and tokenizer files that are not as they were written."""
    stated = receipt.get(FIELD) or {}
    there = {name: digest for name, digest in stated.items() if (folder / name).is_file()}
    return [n for n, digest in there.items() if sha256_of(folder / n) != digest]


def write_receipt(folder: Path, receipt: Receipt) -> str | None:
    """Write the receipt and its card where they changed; returns a note if the card was edited by hand,
    in which case it stays."""
    card = folder / CARD_NAME
    by_hand = card.exists() and receipt.get(CARD_FIELD) not in (None, blob_id(card.read_bytes()))
    if by_hand:
        receipt[EDITED_FIELD] = blob_id(card.read_bytes())  # pushed, it is known there as this folder's
    files = {} if by_hand else {CARD_NAME: card_of(receipt)}
    files[RECEIPT_NAME] = json_bytes(receipt)
    for name, data in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            write_whole(folder / name, data)
    return f"{CARD_NAME} was edited since it was written, and is kept as it is" if by_hand else None
