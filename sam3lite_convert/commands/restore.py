"""Makes a checkpoint of a converted folder: the inverse of ``convert``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from sam3lite_convert.checkpoint.file_set import members
from sam3lite_convert.checkpoint.index import Checkpoint, check_unchanged, files_of
from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.commands.sources import HubLocation, Source, locate
from sam3lite_convert.convert.folder import INDEX, NOT_TAKEN, TWICE, WEIGHTS, Folder, read_folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.convert.safetensors_writer import write_safetensors_file
from sam3lite_convert.convert.torch_writer import write_torch_file
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.files import check_space, place_of_file, resolved, whole_file
from sam3lite_convert.plan.architecture import TEXT, component_of
from sam3lite_convert.plan.context import META_KEY, context_in_name
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.plan.unsound import listed
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.restore import Remark, RestoreDocument
from sam3lite_convert.seen import Seen, look
from sam3lite_convert.workers import Advance

if TYPE_CHECKING:
    from sam3lite_convert.convert.assembled import Assembled
    from sam3lite_convert.verify.restoration import Restoration

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SAFETENSORS = ".safetensors"
_HEADROOM = 4 << 20  # bytes; names, headers and directory of some thousand tensors
_RELEASED_WRAPPER = "model"
_BROKEN = {INDEX, TWICE, WEIGHTS, NOT_TAKEN}

Progress = Callable[[str], Advance]


@dataclass(frozen=True)
class _Restored:
    """What is written, and what names it.

    meta: whole numbers beside the state dict.
    named_context: the context in tokens that only the original's name states.
    checkpoint: what is read beside the folder; ``opened``: its open files by path.
    """

    basis: Literal["checkpoint", "receipt", "layout"]
    turned: Restoration
    family: str
    kind: str
    layout: str
    component: str
    wrapper: str | None
    prefix: str
    meta: Mapping[str, int]
    named_context: int | None
    notes: Sequence[str]
    checkpoint: Checkpoint | None = None
    opened: Mapping[Path, BinaryIO] = field(default_factory=dict)


def check_restored_place(output: Path, overwrite: bool, folder: Path, original: Path | None = None) -> Seen:
    """What stands where the file will be, and may be replaced.

    Raises CannotRun, before anything is read, if the file cannot be written under this name, or must not be.

    folder, original: what is read; neither may be written over.
    """
    if output.suffix not in (*_TORCH, _SAFETENSORS):
        raise CannotRun(f"--output {output}: the name must end in .pt, .pth, .bin, .ckpt or .safetensors", "usage")
    if output.is_dir():
        raise CannotRun(f"{output} is a folder; --output must be a file", "output_is_a_folder")
    final = resolved(output)
    earlier = look(final)
    if final.parent == resolved(folder):
        raise CannotRun(
            f"{output} lies in the folder that is restored, and would be taken for a part of it; choose another "
            "--output FILE",
            "output_holds_input",
        )
    read = [resolved(path) for path in members(original)] if original is not None else []
    if final in read:
        raise CannotRun(f"{output} is the checkpoint that is read; choose another --output FILE", "output_holds_input")
    place_of_file(final)
    if output.exists() and not overwrite:
        raise CannotRun(
            f"{output} exists and was not changed. Replace it with --overwrite, or choose another file with "
            "--output FILE.",
            "output_exists",
        )
    return earlier


def restore_checkpoint(
    folder: Path,
    output: Path,
    mappings: Mappings,
    original: Source | None = None,
    overwrite: bool = False,
    causal: bool = False,
    progress: Progress | None = None,
) -> RestoreDocument:
    """Write the checkpoint that the folder was converted from, under the original's names; whole or not at all.

    output: .pt, .pth, .bin or .ckpt for a file of ``torch.save``, or .safetensors.
    original: the checkpoint that the folder was converted from: what the folder does not hold is its own, and so is
        what the folder holds unchanged.
    overwrite: replace an existing file.
    causal: the original's text encoder masks causally.
    progress: called with "compare", "hash" and "write".

    Raises CannotRun if the folder cannot be turned back without ``original``, if that is another file than the receipt
    names, or if the file cannot be written; UnsoundPlan if the folder does not fit; Untrusted if a file is damaged.
    """
    earlier = check_restored_place(output, overwrite, folder, original.path if original else None)
    found = read_folder(folder)
    _refuse_broken(found)
    advance = progress or (lambda what: lambda n: None)
    with ExitStack() as stack:
        if original is not None:
            original = original.as_stated(found.receipt)
            stack.enter_context(original.trusted())
            restored = _with_checkpoint(found, original, mappings, causal, advance, stack)
        else:
            receipt = _fitting_receipt(found)
            if isinstance(receipt, Receipt):
                restored = _by_receipt(found, receipt)
            else:
                restored = _by_layout(found, locate(str(folder), HubLocation()).whole(), mappings, receipt, stack)
        tensors, files = restored.turned.tensors, dict(restored.opened)
        for path in sorted(_places(tensors) - files.keys()):
            files[path] = stack.enter_context(open_file(path))
        wrapper = restored.wrapper.split(".") if restored.wrapper else []
        nbytes = sum(tensor.out_nbytes for tensor in tensors)
        check_space(output.parent, nbytes + _HEADROOM, f"to write {output}")
        with whole_file(resolved(output), earlier) as out:
            if output.suffix == _SAFETENSORS:
                write_safetensors_file(out, tensors, files, advance("write"))
            else:
                write_torch_file(out, wrapper, tensors, files, advance("write"), restored.meta if wrapper else None)
            for each in files_of(restored.checkpoint) if restored.checkpoint else ():
                check_unchanged(each, each.path)
            found.check_unchanged()
    return _document(restored, folder, output, original)


def _refuse_broken(folder: Folder) -> None:
    """Raises Untrusted if files of the folder contradict each other, or lack what is to be restored."""
    faults = [f"{fault.key} {fault.why}" for fault in folder.faults if fault.code in _BROKEN]
    if faults:
        raise Untrusted(f"{folder.path}: {listed(faults)}. Make the folder whole first.", "broken_folder")


def _places(tensors: Sequence[Assembled]) -> set[Path]:
    return {stretch.path for tensor in tensors for stretch in tensor.stretches if not stretch.tensor.absent}


# ---- with the checkpoint


def _with_checkpoint(
    folder: Folder, original: Source, mappings: Mappings, causal: bool, advance: Progress, stack: ExitStack
) -> _Restored:
    """What the folder and the checkpoint give together."""
    from sam3lite_convert.verify.recognise import recognise
    from sam3lite_convert.verify.restoration import restoration_with_checkpoint

    hashing = stack.enter_context(original.hashing())
    checkpoint = original.read(mappings)
    options = (folder.receipt or {}).get("options")
    causal = causal or bool(isinstance(options, dict) and options.get("causal"))
    plan = recognise(folder, checkpoint, mappings, causal)
    source = stack.enter_context(open_source(checkpoint))
    hashing.check(checkpoint)
    hashing.follow(advance("hash"))
    check_twins(source, plan.twins)
    try:
        turned = restoration_with_checkpoint(folder, plan, source, advance("compare"))
    except UnsoundPlan as fault:
        if other := _other_file(folder, original, hashing.result()[0]):
            fault.message = f"{other}. {fault.message}"
        raise
    sha256, notes = hashing.result()
    notes += _check_origin(folder, original, sha256, turned)
    if any(piece.casts for piece in plan.mapped.values()):
        notes.append(
            f"the folder was cast to {plan.floating_dtype}: what equals the cast of the original's values is taken for "
            "unchanged, and the original's values are written"
        )
    left = [f"{name} ({count:,} tensors)" for name, count in checkpoint.left.items()]
    if beside := [*left, *sorted(checkpoint.others)]:
        notes.append(f"not restored, beside the weights of the checkpoint: {', '.join(beside)}")
    return _Restored(
        basis="checkpoint",
        turned=turned,
        family=plan.layout.family.name,
        kind=plan.kind,
        layout=plan.layout.name,
        component=plan.options.component,
        wrapper=checkpoint.wrapper,
        prefix=plan.names.prefix,
        meta=checkpoint.meta,
        named_context=plan.context.name if plan.context.meta is None else None,
        notes=notes,
        checkpoint=checkpoint,
        opened={checkpoint.path: source},
    )


def _check_origin(folder: Folder, original: Source, sha256: str | None, turned: Restoration) -> list[str]:
    """Notes on a checkpoint that is not the file that the receipt names, but of which the folder is the conversion.

    Raises CannotRun if it is another file, and the folder differs from it: what of that was trained, and what is
    another checkpoint, cannot be told.
    """
    if folder.receipt is None:
        return [f"no {RECEIPT_NAME}: that {original.name} is what the folder was made from is taken as given"]
    other = _other_file(folder, original, sha256)
    if other is None:
        return []
    if not turned.changed:
        return [
            f"{original.name} is not the file that {RECEIPT_NAME} names, but what it is converted to is all that the "
            "folder holds"
        ]
    raise CannotRun(
        f"{other}, and {len(turned.changed):,} tensors of {folder.path} differ from it. Give that file. "
        f"If this one is the same checkpoint, saved anew, take {RECEIPT_NAME} out of the folder.",
        "other_checkpoint",
        {"stated": str(_stated_hash(folder)), "found": sha256, "changed": turned.changed},
    )


def _stated_hash(folder: Folder) -> object:
    """The SHA-256 or etag of the source that the receipt names; None if it names none."""
    source = folder.receipt.get("source") if folder.receipt else None
    return (source.get("sha256") or source.get("etag")) if isinstance(source, dict) else None


def _other_file(folder: Folder, original: Source, sha256: str | None) -> str | None:
    """In words, that the checkpoint is not the file that the receipt names; None if it is, or there is no receipt."""
    stated = _stated_hash(folder)
    if folder.receipt is None or (stated is not None and stated in (sha256, original.hub and original.hub.etag)):
        return None
    return (
        f"{original.name} is not the file that {RECEIPT_NAME} names (its SHA-256 is {str(sha256)[:16]}..., there it is "
        f"{str(stated)[:16]}...)"
    )


# ---- alone


def _fitting_receipt(folder: Folder) -> Receipt | str:
    """The folder's receipt; if there is none, or if it is no longer that of the tensors, that in words."""
    from sam3lite_convert.verify.restoration import misfits

    if folder.receipt is None:
        return f"there is no {RECEIPT_NAME}"
    try:
        receipt = Receipt.from_json(folder.receipt)
    except ValueError as fault:
        return f"{RECEIPT_NAME} is not that of a conversion ({fault})"
    faults = misfits(folder, receipt)
    return f"{RECEIPT_NAME} is no longer that of the tensors ({listed(faults)})" if faults else receipt


def _by_receipt(folder: Folder, receipt: Receipt) -> _Restored:
    """What the folder gives alone, under the names that its receipt tells."""
    from sam3lite_convert.verify.restoration import restoration_by_receipt

    source, context, cast = receipt.source, receipt.context, receipt.lost.cast
    notes = []
    if cast is not None:
        notes.append(
            f"the conversion cast to {cast.dtype}: {cast.changed_values:,} values are not restored, as the folder does "
            "not hold what was rounded off"
        )
    if source.left:
        notes.append(f"not restored, beside the weights of {source.name}: {', '.join(source.left)}")
    return _Restored(
        basis="receipt",
        turned=restoration_by_receipt(folder, receipt),
        family=receipt.family,
        kind=receipt.kind or receipt.family,
        layout=receipt.layout,
        component=receipt.component,
        wrapper=source.wrapper,
        prefix=source.prefix,
        meta={META_KEY: context.called} if context.origin == "meta" else {},
        named_context=context.called if context.origin == "name" else None,
        notes=notes,
    )


def _by_layout(folder: Folder, source: Source, mappings: Mappings, why: str, stack: ExitStack) -> _Restored:
    """What the folder gives alone, under the names of a released file, which the tables of its layout tell.

    source: the folder as a checkpoint. why: there is no receipt to go by, in words.
    Raises UnsoundPlan if the tables do not know all of its tensors.
    """
    from sam3lite_convert.verify.restoration import restoration_of_names

    checkpoint = source.read(mappings)
    layout = checkpoint.turned_back.layout if checkpoint.turned_back else "original"
    names = canonical_names(checkpoint, mappings.spellings).sources
    component = "text" if all(name.startswith(TEXT) for name in names) else "all"
    if checkpoint.turned_back and any(component_of(name) == "tracker" for name in names):
        component = "video"
    plan = make_plan(checkpoint, mappings, Options(layout, component))
    opened = stack.enter_context(open_source(checkpoint))
    check_twins(opened, plan.twins)
    turned = restoration_of_names(folder, checkpoint)
    notes = [note for note in checkpoint.notes if not any(key in note for key in turned.partly)]  # which are said
    return _Restored(
        basis="layout",
        turned=turned,
        family=plan.layout.family.name,
        kind=plan.kind,
        layout=layout,
        component=component,
        wrapper=_RELEASED_WRAPPER,
        prefix=plan.names.prefix,
        meta={},
        named_context=None,
        notes=[
            f"{why}; the names are those of a released file",
            "absent is what the layout has no place for, such as rotary tables, which the original computes: give the "
            "checkpoint that the folder was made from, if you have it",
            *notes,
        ],
        checkpoint=checkpoint,
        opened={checkpoint.path: opened},
    )


# ---- the document


def _document(restored: _Restored, folder: Path, output: Path, original: Source | None) -> RestoreDocument:
    turned = restored.turned
    alone = original is None
    name = restored.named_context
    notes = list(restored.notes)
    if name is not None and context_in_name(output) != name:
        notes.append(
            f"the original's name states the context (ctx{name}), which the name {output.name} does not: put ctx{name} "
            f"into it, or pass --context {name} where it is converted"
        )
    suffix = output.suffix == _SAFETENSORS
    if suffix and restored.wrapper:
        notes.append(f"safetensors has no entries: the original's tensors lie under {restored.wrapper!r}")
    if restored.meta and (suffix or not restored.wrapper):
        notes.append("not restored: the original's meta: " + ", ".join(f"{k} {v}" for k, v in restored.meta.items()))
    return RestoreDocument(
        folder=str(folder),
        output=str(output),
        format="safetensors" if suffix else "torch",
        size=output.stat().st_size,
        basis=restored.basis,
        checkpoint=None if original is None else original.name,
        source=None if original is None else original.provenance(),
        family=restored.family,
        kind=restored.kind,
        layout=restored.layout,
        component=restored.component,
        wrapper=None if suffix else restored.wrapper,
        prefix=restored.prefix,
        tensors=len(turned.tensors),
        equal=len(turned.equal),
        changed=tuple(turned.changed),
        from_checkpoint=dict(Counter(turned.from_checkpoint.values())),
        turned_back=len(turned.tensors) if alone else 0,
        absent=turned.absent,
        partly=tuple(Remark(key=key, why=why) for key, why in turned.partly.items()),
        unplaced=tuple(Remark(key=key, why=why) for key, why in turned.unplaced.items()),
        summary=_summary(turned, alone),
        notes=tuple(notes),
        next=f"sam3lite inspect {shell_path(output)}",
    )


def _summary(turned: Restoration, alone: bool) -> str:
    """What stands in the file, in one sentence."""
    total = f"{len(turned.tensors):,} tensors"
    if alone:
        gone = sum(turned.absent.values())
        lack = f"; {gone:,} more that the original holds are not in the folder" if gone else ""
        return f"{total} under the original's names{lack}"
    parts = [f"{len(turned.equal):,} equal to the original"]
    parts += [f"{len(turned.changed):,} changed in the folder"] * bool(turned.changed)
    parts += [f"{len(turned.from_checkpoint):,} from the original, not in the folder"] * bool(turned.from_checkpoint)
    return f"{total} = {' + '.join(parts)}"
