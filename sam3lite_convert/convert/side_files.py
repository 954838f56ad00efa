"""The other files of a converted folder: processor files, tokenizer files, licence files and the model card.

The receipt holds the hash of each, so that a later run can tell which files are missing and which were edited. Receipts
are immutable: a function that adds a file returns a new receipt that lists it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.hashing import git_blob_id, sha256_of
from sam3lite_convert.checkpoint.place import JSON_LIMIT
from sam3lite_convert.convert import processor_files
from sam3lite_convert.convert.card import CARD_NAME, with_card
from sam3lite_convert.convert.graph_files import GRAPH_SUFFIX, TEXT_MODEL
from sam3lite_convert.convert.processor_files import TOKENIZER, WHOLE, TokenizerFiles
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.files import json_bytes, write_whole
from sam3lite_convert.hub.licences import LicenceText
from sam3lite_convert.opened import holds, is_there, read_small
from sam3lite_convert.plan.loaders import LOADERS
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.export import QuantizedFile
from sam3lite_convert.records.receipt import LicenceFile, Receipt
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    from sam3lite_convert.checkpoint.origin import HubFile
    from sam3lite_convert.hub.repository import Repository

CONFIG_NAME = "config.json"
FINGERPRINT_NAME = "fingerprint.json"
_LONGEST_CARD = 4 << 20  # bytes; ours have some kB
# These mean that the named tokenizer is wrong; other errors, such as no network, only that it cannot be fetched now.
_MISTAKES = ("usage", "other_tokenizer", "no_tokenizer", "cannot_open")


def fetch_tokenizer(plan: Plan, source: str | None, asked: bool, cache: Path | None) -> Worker[TokenizerFiles] | None:
    """Start to fetch the tokenizer, while tensors are written; None if none is wanted.

    asked: whether the folder gets one even if its loader does not read it.
    """
    if source is None or not (asked or plan.layout.loader.processor):
        return None
    return Worker(lambda: processor_files.fetch_tokenizer(source, cache))


def add_processor_files(
    folder: Path, receipt: Receipt, plan: Plan, tokenizer: Worker[TokenizerFiles] | None
) -> tuple[Receipt, str | None]:
    """Write the processor files that are missing, and the tokenizer: of a layout whose loader reads neither, of the
    tokenizer the one file that runtimes of other languages read.

    tokenizer: the tokenizer to write, which replaces an existing one; None if none is wanted.

    Returns the receipt that lists the files, and why no tokenizer could be fetched: None if there is one or none is
    wanted. Raises CannotRun if the named tokenizer cannot be read or is not CLIP's.
    """
    reads = plan.layout.loader.processor
    files = processor_files.processor_files(plan) if reads and plan.options.component != "text" else {}
    files = {name: data for name, data in files.items() if not (folder / name).exists()}
    why = None
    try:
        if tokenizer is not None:
            found = tokenizer.result()
            if reads:
                made = processor_files.tokenizer_files(found, plan.architecture.called)
            else:
                made = {WHOLE: processor_files.tokenizer_json(found)}
            # Files of another tokenizer format that was here; the library would read both.
            others = set(TOKENIZER) - set(made) if reads else set()
            for name in others:
                (folder / name).unlink(missing_ok=True)
            beside = {name: digest for name, digest in receipt.beside.items() if name not in others}
            receipt = replace(receipt, tokenizer=found.record(), beside=beside)
            files |= made
    except CannotRun as fault:
        if fault.code in _MISTAKES:
            raise
        if tokenizer_lacks(folder, receipt):
            receipt = replace(receipt, tokenizer=None)
            why = fault.message
    for name, data in files.items():
        write_whole(folder / name, data)
    return with_files(receipt, files), why


def fetch_licences(repository: Repository, files: Sequence[HubFile] | None) -> Worker[list[LicenceText]] | None:
    """Start to fetch a source's licence files, while tensors are written; None if they were not listed."""
    return None if files is None else Worker(lambda: repository.licence_texts(files))


def add_licences(
    folder: Path, receipt: Receipt, fetched: Worker[list[LicenceText]] | None
) -> tuple[Receipt, str | None]:
    """Write the licence files that are missing; one that is there stays as it is, whoever wrote it.

    fetched: None if they are not known.

    Returns the receipt that lists the files, and why they could not be fetched, in words: None if they were.
    """
    if fetched is None:
        return receipt, None
    gone = missing_licences(folder, receipt)
    receipt = replace(receipt, beside={name: digest for name, digest in receipt.beside.items() if name not in gone})
    try:
        found = fetched.result()
    except (Sam3LiteError, OSError) as fault:
        message = fault.message if isinstance(fault, Sam3LiteError) else fault.strerror or str(fault)
        why = f"the licence of {receipt.source.repo} could not be fetched, and is not in the folder ({message})"
        return replace(receipt, licences=None), why
    listed = [licence for licence in receipt.licences or () if licence.name and licence.name not in gone]
    here = {licence.path for licence in listed}
    written: dict[str, bytes] = {}
    for text in (text for text in found if text.file.path not in here):
        entry = LicenceFile(path=text.file.path, commit=text.file.commit, name=None, why=text.why, blob_id=None)
        if text.data is not None:
            name = _free_name(PurePosixPath(text.file.path).name, [licence.name for licence in listed if licence.name])
            path = folder / name
            if os.path.lexists(path) and not holds(path, text.data):
                entry = replace(entry, why=f"another {name} was in the folder")
            else:
                entry, written[name] = replace(entry, name=name, blob_id=git_blob_id(text.data)), text.data
        listed.append(entry)
    for name, data in written.items():
        write_whole(folder / name, data)
    return with_files(replace(receipt, licences=tuple(listed)), written), None


def _free_name(name: str, taken: Iterable[str]) -> str:
    """A name for a licence file beside others, which no file system takes for one of theirs."""
    used = {other.casefold() for other in taken}
    stem, dot, suffix = name.partition(".")
    numbers = (f"{stem}-{n}{dot}{suffix}" for n in itertools.count(2))
    return next(free for free in itertools.chain([name], numbers) if free.casefold() not in used)


def missing_licences(folder: Path, receipt: Receipt) -> list[str]:
    """The names of licence files that were written into the folder and are not there."""
    return [
        licence.name for licence in receipt.licences or () if licence.name and not (folder / licence.name).is_file()
    ]


def wants_licences(folder: Path, receipt: Receipt) -> bool:
    """Whether licence files of the source's repository may be missing from the folder."""
    return receipt.source.repo is not None and (receipt.licences is None or bool(missing_licences(folder, receipt)))


def takes_processor_files(receipt: Receipt) -> bool:
    """Whether the loader of the folder reads processor and tokenizer files."""
    return LOADERS[receipt.loader].processor


def wants_tokenizer(receipt: Receipt, source: str | None, asked: bool) -> bool:
    """Whether the folder should have a tokenizer. ``source``, ``asked``: as ``fetch_tokenizer`` takes them."""
    return source is not None and (asked or takes_processor_files(receipt))


def tokenizer_lacks(folder: Path, receipt: Receipt) -> list[str]:
    """The names of tokenizer files that are not there, of those that the folder's tokenizer consists of."""
    if not takes_processor_files(receipt):
        return [] if (folder / WHOLE).is_file() else [WHOLE]
    return [] if processor_files.has_tokenizer(folder) else [n for n in TOKENIZER if not (folder / n).exists()]


def without_tokenizer(folder: Path) -> str | None:
    """What to say of a folder of graphs that runtimes of other languages cannot make ids with; None if they can."""
    if (folder / WHOLE).is_file():
        return None
    return (
        f"{folder} holds no {WHOLE}, with which other runtimes turn prompts into ids. To add it: sam3lite convert "
        f"CHECKPOINT --output {shell_path(folder)} --tokenizer DIR_OR_REPO"
    )


def with_config(folder: Path, receipt: Receipt) -> Receipt:
    """The receipt with the hash of config.json added."""
    return with_files(receipt, {CONFIG_NAME: read_small(folder / CONFIG_NAME, JSON_LIMIT)})


def add_file(folder: Path, receipt: Receipt, name: str, data: bytes) -> Receipt:
    """Write one file into a folder; the receipt that lists it."""
    write_whole(folder / name, data)
    return with_files(receipt, {name: data})


def with_files(receipt: Receipt, files: Mapping[str, bytes]) -> Receipt:
    """The receipt with the hashes of files that were written, by name."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return replace(receipt, beside=dict(sorted({**receipt.beside, **hashes}.items())))


def with_graphs(receipt: Receipt, files: Mapping[str, bytes]) -> Receipt:
    """The receipt with graphs that were written, by name; what was found of another graph goes."""
    listed = with_files(receipt, files)
    same = listed.beside.get(TEXT_MODEL) == receipt.beside.get(TEXT_MODEL)
    return replace(listed, graph_parity=receipt.graph_parity if same else None)


def with_quantized(receipt: Receipt, files: Sequence[QuantizedFile]) -> Receipt:
    """The receipt with quantised graphs that were written, and with what they lose."""
    hashes, losses = {file.name: file.sha256 for file in files}, {file.name: file.loss for file in files}
    return replace(
        receipt,
        beside=dict(sorted({**receipt.beside, **hashes}.items())),
        graph_losses=dict(sorted({**(receipt.graph_losses or {}), **losses}.items())),
    )


def without_lost_graphs(folder: Path, receipt: Receipt) -> Receipt:
    """The receipt without graphs that were taken away."""
    beside = {n: d for n, d in receipt.beside.items() if not n.endswith(GRAPH_SUFFIX) or (folder / n).is_file()}
    losses = {name: loss for name, loss in (receipt.graph_losses or {}).items() if name in beside}
    parity = receipt.graph_parity if TEXT_MODEL in beside else None
    return replace(receipt, beside=beside, graph_parity=parity, graph_losses=losses or None)


def missing(folder: Path, receipt: Receipt, tokenizer_wanted: bool) -> list[str]:
    """The names of files that should be in the folder but are not."""
    names = [name for name in receipt.beside if not (folder / name).is_file()]
    if tokenizer_wanted:
        names += [name for name in tokenizer_lacks(folder, receipt) if name not in names]
    return names


def edited(folder: Path, receipt: Receipt) -> list[str]:
    """The names of processor and tokenizer files that were changed since they were written."""
    there = {name: digest for name, digest in receipt.beside.items() if (folder / name).is_file()}
    return [n for n, digest in there.items() if sha256_of(folder / n) != digest]


def write_receipt(folder: Path, receipt: Receipt) -> tuple[Receipt, str | None]:
    """Write the receipt and its card if they changed.

    A card that was edited by hand is kept. Returns the receipt as written, and a note if the card was kept.
    """
    card = folder / CARD_NAME
    there = git_blob_id(read_small(card, _LONGEST_CARD)) if is_there(card) else None
    files: dict[str, bytes] = {}
    note = None
    if there is not None and receipt.card_blob_id not in (None, there):
        receipt = replace(
            receipt, edited_card_blob_id=there
        )  # so that a push recognises the edited card as this folder's
        note = f"{CARD_NAME} was edited since it was written and is kept as it is"
    else:
        receipt, files[CARD_NAME] = with_card(receipt)
    files[RECEIPT_NAME] = json_bytes(receipt.to_json())
    for name, data in files.items():
        if not holds(folder / name, data):
            write_whole(folder / name, data)
    return receipt, note
