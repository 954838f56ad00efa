"""Carries out a plan: streams the tensors while the source is hashed, and leaves a complete folder or none."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sam3lite_convert.checkpoint.hashing import SourceHash
from sam3lite_convert.checkpoint.nonfinite import not_finite, searching, words_of
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.convert.card import CARD_NAME, with_card
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.receipt import RECEIPT_NAME, make_receipt
from sam3lite_convert.convert.safetensors_writer import plan_shards, write_index, write_shard
from sam3lite_convert.convert.strict import Strict, overflow_words
from sam3lite_convert.convert.tensor_bytes import CastLoss
from sam3lite_convert.convert.whole_folder import Destination, check_destination, whole_folder
from sam3lite_convert.figures import plural
from sam3lite_convert.files import write_json, write_text
from sam3lite_convert.plan.plan import Options, Plan
from sam3lite_convert.plan.rotary import check_rotary
from sam3lite_convert.plan.targets import MODEL, TEXT_PROJECTION
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.workers import Advance

_LISTED = 5
_HEADROOM = 16 << 20  # headers, receipt, config


@dataclass(frozen=True)
class Converted:
    """A finished conversion: the folder, its files and its receipt."""

    folder: Path
    files: tuple[str, ...]
    receipt: Receipt


def default_output(stem: str, options: Options) -> Path:
    """``converted/<stem>-<layout>``, with the component and the dtype appended if they are not the default.

    ``stem``: of the checkpoint.
    """
    name = f"{stem}-{options.layout}"
    if options.component != "all":
        name += f"-{options.component}"
    if options.dtype not in (None, "float32"):
        name += f"-{options.dtype}"
    return Path("converted") / name


def _rotary_notes(plan: Plan, source: BinaryIO) -> list[str]:
    """What is dropped in the belief that the target computes the same, and is not the same."""
    faults, notes = check_rotary(plan, source)
    if faults:
        more = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        notes.append(
            f"{faults[0].key} {faults[0].why}{more}. The original computes with the stored table, the target with its "
            "own (sam3lite explain V-ROTARY)"
        )
    return notes


def plan_notes(plan: Plan) -> list[str]:
    """Notes for the user on this conversion, beyond the counts."""
    notes = [*([plan.checkpoint.taken] if plan.checkpoint.taken else []), *plan.checkpoint.notes]
    if plan.twins:
        held = f"{plural(len(plan.twins), 'tensor')} {'is' if len(plan.twins) == 1 else 'are'}"
        notes.append(f"{held} stored under two names; convert checks that both are equal")
    notes += filled_words(plan)
    notes += absent_words(plan)
    if plan.unchecked:
        notes.append(
            f"{plan.unchecked:,} tensors outside the text encoder are taken as they are: this tool does not know the "
            "model that they belong to, so nothing tells whether all of them are there"
        )
    if plan.not_read:
        notes.append(not_read_words(plan))
    notes += plan.layout.family.doubts(plan.architecture, plan.options.component, plan.variants)
    notes += [f"assumed {name}: {what}" for name, what in plan.architecture.assumed.items()]
    return notes


def filled_words(plan: Plan) -> list[str]:
    """What no tensor of the checkpoint fills: counters, and levels of the neck."""
    counters = len(plan.filled) - len(plan.filled_levels)
    out = []
    if counters:
        out.append(f"{counters} BatchNorm counters (num_batches_tracked) are not in the file; filled with 0")
    return out + levels_words(plan)


def levels_words(plan: Plan) -> list[str]:
    """The levels of the neck that no tensor of the checkpoint fills."""
    keys = plan.filled_levels
    if not keys:
        return []
    return [
        f"{len(keys)} tensors are filled, not converted: {', '.join(keys)}. The neck of this checkpoint has no such "
        "level; the model needs it, computes it and throws it away, so a conversion fills them with zeros"
    ]


def absent_words(plan: Plan) -> list[str]:
    """What the layout has and the checkpoint cannot hold, by why."""
    reasons = Counter(plan.absent.values())
    return [f"{n} tensors are not in the checkpoint and not written: {why}" for why, n in reasons.items()]


def not_read_words(plan: Plan) -> str:
    """What it means that a rule drops tensors of the text encoder."""
    listed = ", ".join(plan.not_read[:_LISTED])
    more = f" and {len(plan.not_read) - _LISTED:,} more" if len(plan.not_read) > _LISTED else ""
    return (
        f"dropped although they belong to the text encoder: {listed}{more}. The architecture that is known here has no "
        "place for them, so the converted model computes without them what the original may compute with them"
    )


def convert(
    plan: Plan,
    hashing: SourceHash,
    folder: Path,
    overwrite: bool = False,
    place: Destination | None = None,
    max_shard_size: int | None = None,
    progress: Callable[[str], Advance] | None = None,
    finish: Callable[[Path, Receipt], Receipt] = lambda work, receipt: receipt,
    model_id: str | None = None,
    strict: Strict | None = None,
) -> Converted:
    """Write the planned folder.

    hashing: the hash of the plan's source, already running.
    overwrite: replace an earlier conversion.
    place: what stood there when the run began, which alone is replaced; None for what stands there now.
    max_shard_size: in bytes; None for a single file.
    progress: called with "write" and "hash"; returns a function that is called with each number of bytes done.
    finish: called with the working folder, before it is renamed to ``folder``, and the receipt; may add files and
        check, and returns the receipt that lists them. If it raises, nothing is changed.
    model_id: the repository that the model card names.
    strict: which values are refused.

    Raises NotFinite if values that are refused are found, CannotRun if the folder cannot be written, Untrusted if the
    source is damaged or contradicts itself. Then nothing is written, and an earlier folder is unchanged.
    """
    now = check_destination(folder, overwrite, plan.checkpoint.path, plan.out_nbytes + _HEADROOM)
    place = now if place is None else place
    place.check_same(now)
    advance = progress or (lambda what: lambda n: None)
    pieces = list(plan.mapped.values())
    shards = plan_shards([p for p in pieces if p.file == MODEL], MODEL, max_shard_size)
    beside = plan_shards([p for p in pieces if p.file == TEXT_PROJECTION], TEXT_PROJECTION, None)
    beside = [s for s in beside if s.pieces]
    strict = strict or Strict()
    loss = CastLoss()
    lock = threading.Lock()

    def locked(what: str) -> Advance:
        inner = advance(what)

        def call(n: int) -> None:
            with lock:
                inner(n)

        return call

    sources = {source.key: source for piece in pieces for source in piece.sources}
    with (
        whole_folder(place.final, place.earlier) as work,
        open_source(plan.checkpoint) as source,
        searching(plan.checkpoint, sources.values()) as search,
    ):
        check_twins(source, plan.twins)
        hashing.follow(locked("hash"))
        written = locked("write")
        for shard in [*shards, *beside]:
            write_shard(work, shard, source, written, loss)
        write_index(work, shards)
        sha256, more = hashing.result()
        special = search.result() | not_finite(plan.checkpoint, hashing.suspects(sources.values()))
        strict.check(special, loss, plan.options.dtype)
        notes = plan_notes(plan) + more + _rotary_notes(plan, source)
        if special:
            notes.append(f"the checkpoint holds NaN or infinity, which are kept: {words_of(special)}")
        if loss.overflowed_values:
            notes.append(f"out of range for {plan.options.dtype} and now infinite: {overflow_words(loss)}")
        files = [s.name for s in [*shards, *beside]]
        receipt = make_receipt(plan, sha256, hashing.files, loss, files, notes, special, max_shard_size, model_id)
        write_json(work / "config.json", make_config(plan))
        write_json(work / RECEIPT_NAME, receipt.to_json())
        receipt, card = with_card(finish(work, receipt))
        write_text(work / CARD_NAME, card.decode())
        write_json(work / RECEIPT_NAME, receipt.to_json())
        names = tuple(sorted(p.name for p in work.iterdir()))
    return Converted(folder, names, receipt)
