"""The Python API: the commands on objects, with arguments in place of options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.checkpoint.selection import selection
from sam3lite_convert.commands.convert import Request
from sam3lite_convert.commands.convert_all import Callbacks, publish
from sam3lite_convert.commands.explain import explain_key
from sam3lite_convert.commands.folders import locate_folder
from sam3lite_convert.commands.reuse import find_current
from sam3lite_convert.commands.sources import HubLocation, Location, Source, locate
from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.processor_files import DEFAULT_TOKENIZER
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.hub.aliases import DEFAULT_REPO, DEFAULT_REVISION
from sam3lite_convert.plan import plan as planning
from sam3lite_convert.plan.architecture import Architecture
from sam3lite_convert.plan.plan import Dropped, Mapped, Options, Plan
from sam3lite_convert.plan.tables import Mappings, load_mappings
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.shared import Counts
from sam3lite_convert.unforeseen import in_our_errors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sam3lite_convert.records.convert import ConvertDocument, PushRecord
    from sam3lite_convert.records.detector import DetectorDocument
    from sam3lite_convert.records.diff import DiffDocument
    from sam3lite_convert.records.explain import ExplainDocument
    from sam3lite_convert.records.parity import ParityDocument
    from sam3lite_convert.records.restore import RestoreDocument
    from sam3lite_convert.records.verify import VerifyDocument


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose index has been read.

    name: as it was given to ``open_checkpoint``.
    tensors: by key of the file: dtype, shape, and where the bytes lie.
    context: as it was given to ``open_checkpoint``.
    """

    name: str
    location: Location
    source: Source
    index: Checkpoint
    mappings: Mappings
    context: int | None = None

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return self.index.tensors

    def __repr__(self) -> str:
        context = "" if self.context is None else f", context={self.context}"
        return f"OpenCheckpoint({self.name!r}{context}: {len(self.tensors):,} tensors)"

    @in_our_errors
    def read(self, key: str) -> Tensor:
        """The values of one tensor; of a file on the Hub only its bytes are fetched.

        Raises CannotRun if the file has no such key, Untrusted if the file changed since it was opened.
        """
        from sam3lite_convert.convert.text_weights import stored_tensor

        if key not in self.tensors:
            raise CannotRun(f"{self.name} has no tensor {key}", "unknown_key")
        with self.source.trusted():
            return stored_tensor(self.source.with_bytes_of(self.mappings, self.index, [self.tensors[key]]), key)


@in_our_errors
def write_demo_checkpoint(path: str | Path) -> None:
    """Write the checkpoint of ``sam3lite demo``: the keys of a released file, small shapes, random values; 33 MB.

    Raises CannotRun if the path exists or its folder does not.
    """
    from sam3lite_convert.plan.synthetic import write_checkpoint

    target = Path(_named(path, "the checkpoint"))
    if target.exists():
        raise CannotRun(f"{target} exists; give another path.", "output_exists")
    if not target.parent.is_dir():
        raise CannotRun(f"{target}: no such folder: {target.parent}", "no_such_folder")
    write_checkpoint(target)


@in_our_errors
def open_checkpoint(
    name: str | Path,
    *,
    repo_id: str = DEFAULT_REPO,
    revision: str = DEFAULT_REVISION,
    cache_dir: str | Path | None = None,
    mapping: str | Path | None = None,
    context: int | None = None,
    state_dict_key: str | None = None,
    strip_prefix: Sequence[str] = (),
    drop: Mapping[str, str] | None = None,
) -> OpenCheckpoint:
    """Read the index of a checkpoint: a local file, an index of shards, a folder that holds one of these, an alias
    (``s0``), a path in a repository on the Hub, or an address there.

    No tensor data is read, and nothing is downloaded but the index. ``mapping``: a folder of tables in place of ours.
    ``context``: the context in tokens that the model is called with; default what the file's meta or name states.
    ``state_dict_key``: path of the entry that holds the weights, its parts joined with dots; default the only one.
    ``strip_prefix``: text to take off the front of keys. ``drop``: regular expression that matches whole keys to leave
    out -> the reason why they may go.
    Raises CannotRun if there is no such file, Untrusted if it is damaged or hostile.
    """
    name = _named(name, "a checkpoint")
    _check_whole(context=context)
    prefixes = (strip_prefix,) if isinstance(strip_prefix, str) else strip_prefix
    chosen = selection(state_dict_key, prefixes, list(drop or {}), list((drop or {}).values()))
    location = locate(name, HubLocation(repo_id, revision, _path(cache_dir)), chosen)
    source, mappings = location.index(), load_mappings(_path(mapping))
    with source.trusted():
        index = source.read(mappings)
    return OpenCheckpoint(name, location, source, index, mappings, context)


Checkpointlike = OpenCheckpoint | str | Path
_DTYPES = ("float32", "float16", "bfloat16")


def _named(value: str | Path, what: str) -> str:
    """A name of a file or folder as text. Raises CannotRun for an object of another type, and for an empty name, which
    would be the working directory."""
    if isinstance(value, ConversionPlan):
        raise CannotRun(f"{what} is expected, not a plan; the plan's is plan.checkpoint", "usage")
    if not isinstance(value, (str, os.PathLike)):
        raise CannotRun(f"{what} is given by its name or path, not as {type(value).__name__}", "usage")
    if not os.fspath(value):
        raise CannotRun(f"the name of {what} is empty", "usage")
    return os.fspath(value)


def _check_whole(**given: int | None) -> None:
    """Raises CannotRun unless each of the arguments is a whole number or None."""
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise CannotRun(f"{name} is {value!r}; it has to be a whole number", "usage")


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _check_dtype(dtype: str | None, without: str) -> None:
    if dtype not in (None, *_DTYPES):
        raise CannotRun(f"dtype is {dtype!r}; it may be {', '.join(_DTYPES)}, or None {without}", "usage")


def _opened(checkpoint: Checkpointlike) -> OpenCheckpoint:
    return checkpoint if isinstance(checkpoint, OpenCheckpoint) else open_checkpoint(checkpoint)


@dataclass(frozen=True)
class ConversionPlan:
    """A sound plan: every source tensor mapped or dropped with a reason, every target filled once."""

    checkpoint: OpenCheckpoint
    plan: Plan

    def __repr__(self) -> str:
        counts, options = self.counts, self.plan.options
        sources = f"{counts.source:,} source tensors = {counts.mapped:,} mapped + {counts.dropped:,} dropped"
        return f"ConversionPlan({self.checkpoint.name!r}, {options.layout}: {sources}; {counts.target:,} targets)"

    @property
    def mapped(self) -> dict[str, Mapped]:
        """By key of the written file: the source and the operation of each target."""
        return self.plan.mapped

    @property
    def dropped(self) -> dict[str, Dropped]:
        """By source key: why it has no target."""
        return self.plan.dropped

    @property
    def architecture(self) -> Architecture:
        """What the shapes say the model is."""
        return self.plan.architecture

    @property
    def counts(self) -> Counts:
        """Source tensors, mapped, dropped, and target tensors."""
        return self.plan.counts

    @in_our_errors
    def explain(self, key: str) -> ExplainDocument:
        """What happens to one tensor, by its name in the checkpoint or in any layout; shown is the layout of the plan.

        Raises CannotRun, with the nearest names, if there is no such tensor.
        """
        return explain_key(self.checkpoint.source, key, self.checkpoint.mappings, self.plan.options)

    @in_our_errors
    def state_dict(self) -> dict[str, Tensor]:
        """The converted tensors in memory, by key of the written file, made by the code that writes the folder.

        Raises Untrusted if the source is damaged.
        """
        from sam3lite_convert.convert.text_weights import planned_tensors

        opened = self.checkpoint
        with opened.source.trusted():
            sources = {source.key: source for m in self.mapped.values() for source in m.sources}
            index = opened.source.with_bytes_of(opened.mappings, opened.index, sources.values())
            plan = planning.make_plan(index, opened.mappings, self.plan.options)
            return planned_tensors(plan)


@in_our_errors
def make_plan(
    checkpoint: Checkpointlike,
    layout: str = "packed",
    *,
    component: str = "all",
    dtype: str | None = None,
    context: int | None = None,
    causal: bool = False,
) -> ConversionPlan:
    """Plan a conversion from names and shapes alone.

    component: ``all`` or ``text``.
    dtype: cast floating tensors; None keeps each tensor's own.
    context: the context in tokens that the model is called with; a longer text position table is cut to it. Default:
        that of ``open_checkpoint``, else what the file's meta or name states, else all rows.
    causal: state that the text encoder masks causally.

    Raises UnsoundPlan, with all faults in ``details``, if the checkpoint does not fit; CannotRun for options that the
    checkpoint or the layout does not allow.
    """
    opened = _opened(checkpoint)
    _check_whole(context=context)
    with opened.source.trusted():
        _check_dtype(dtype, "to keep each tensor's")
        options = Options(layout, component, dtype, opened.context if context is None else context, causal)
        return ConversionPlan(opened, planning.make_plan(opened.index, opened.mappings, options))


@in_our_errors
def convert_checkpoint(
    plan: ConversionPlan,
    output: str | Path | None = None,
    *,
    verify: bool = False,
    parity: bool = False,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    tokenizer: str | Path | None = None,
) -> ConvertDocument:
    """Write the folder of a plan, whole or not at all; a folder that already is that conversion is left alone.

    output: default ``converted/<file stem>-<layout>``.
    verify, parity: checks to run on the folder.
    max_shard_size: bytes of tensor data in one file; None for a single file.
    tokenizer: a folder or repository with CLIP's tokenizer.

    Raises CannotRun if the place cannot be written or holds something else, Untrusted if the source is damaged.
    """
    if not isinstance(plan, ConversionPlan):
        raise CannotRun("convert_checkpoint takes a plan: convert_checkpoint(make_plan(checkpoint), output)", "usage")
    opened = plan.checkpoint
    request = Request(
        plan.plan.options,
        Path(_named(output, "the output folder")) if output is not None else None,
        overwrite,
        max_shard_size,
        verify,
        parity,
        str(tokenizer or DEFAULT_TOKENIZER),
        tokenizer is not None,
    )
    found = find_current(opened.location, opened.mappings, request)
    return publish(opened.location, opened.mappings, request, found, None, Callbacks())


@in_our_errors
def verify_folder(
    folder: str | Path,
    checkpoint: Checkpointlike,
    *,
    causal: bool = False,
    partial: bool = False,
    whole: bool = False,
    cache_dir: str | Path | None = None,
) -> VerifyDocument:
    """Prove that a converted folder, also one that another tool wrote, is its checkpoint.

    folder: a local folder, or ``OWNER/NAME[@revision]`` on the Hub, of which names, shapes, dtypes and config.json are
        compared by range requests (verdict ``structure_only``).
    partial: of a folder on the Hub, compare the values of the text encoder too (``partly_proven``).
    whole: download a folder on the Hub through the cache and compare all of it (``proven``).

    Raises CannotRun if the folder is of no known layout, or if ``partial`` or ``whole`` is set for a local one;
    Untrusted if one of the files is damaged.
    """
    from sam3lite_convert.commands import verify

    opened = _opened(checkpoint)
    place = locate_folder(_named(folder, "a converted folder"), _path(cache_dir))
    verify.check_extent(place, partial, whole)
    if place.where is not None and not whole:
        return verify.verify_repository(place, opened.location, opened.mappings, causal, partial)
    path, repository = place.whole()
    document = verify.verify_folder(path, opened.location.whole(), opened.mappings, causal, record=place.where is None)
    return replace(document, folder=place.name, repository=repository)


@in_our_errors
def diff_checkpoints(a: Checkpointlike, b: Checkpointlike) -> DiffDocument:
    """Compare two checkpoints tensor by tensor under canonical names: what is equal, what changed and by how much, what
    is only in one.

    The same file twice, opened with another ``state_dict_key``, compares two of its entries. Files on the Hub are
    downloaded. The mapping tables are those of ``a``.
    Raises UnsoundPlan if a file holds several copies of the model, Untrusted if one is damaged.
    """
    from sam3lite_convert.commands import diff

    first, second = _opened(a), _opened(b)
    return diff.diff_checkpoints(first.location.whole(), second.location.whole(), first.mappings)


@in_our_errors
def restore_folder(
    folder: str | Path,
    output: str | Path,
    checkpoint: Checkpointlike | None = None,
    *,
    overwrite: bool = False,
    causal: bool = False,
    cache_dir: str | Path | None = None,
) -> RestoreDocument:
    """Write the checkpoint that a folder was converted from, whole or not at all: the inverse of
    ``convert_checkpoint``, also of a folder that was trained further.

    folder: as in ``verify_folder``; one on the Hub is downloaded.
    output: .pt, .pth, .bin or .ckpt for a file of ``torch.save``, or .safetensors.
    checkpoint: what the folder was converted from: what the folder does not hold, or holds rounded and unchanged, is
        taken from there.
    overwrite: replace an existing file.

    Raises CannotRun if the names are not known without the checkpoint, if it is another one than the receipt names, or
    if the file cannot be written; UnsoundPlan if the folder does not fit; Untrusted if a file is damaged.
    """
    from sam3lite_convert.commands import restore

    place = locate_folder(_named(folder, "a converted folder"), _path(cache_dir))
    target = Path(_named(output, "the output file"))
    opened = None if checkpoint is None else _opened(checkpoint)
    path, repository = place.whole()
    source = None if opened is None else opened.location.whole()
    mappings = load_mappings(None) if opened is None else opened.mappings
    document = restore.restore_checkpoint(path, target, mappings, source, overwrite, causal)
    return replace(document, folder=place.name, repository=repository)


@in_our_errors
def run_parity(
    checkpoint: Checkpointlike,
    converted: str | Path | None = None,
    *,
    candidate: str | None = None,
    attention: str = "eager",
    dtype: str | None = None,
    tolerance: float | None = None,
    seed: int | None = None,
    batch: int = 1,
    length: int | None = None,
    prompts: Sequence[str] = (),
    as_used: bool = False,
    causal: bool = False,
) -> ParityDocument:
    """Run the original and the converted text encoder on the same ids and compare them at every tap.

    ``converted``: a folder, or ``OWNER/NAME[@revision]`` on the Hub; None converts in memory. The
    others are the options of ``sam3lite parity``.
    Raises CannotRun for arguments that do not go together or a missing package, UnsoundPlan if an encoder does not get
    all of its weights.
    """
    from sam3lite_convert.commands import parity
    from sam3lite_convert.parity.setup import ParityOptions

    _check_dtype(dtype, "for that of the folder, or float32")
    opened = _opened(checkpoint)
    _check_whole(seed=seed, batch=batch, length=length)
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    given = (candidate, attention, dtype, tolerance, seed, batch, length, texts, causal)
    options = ParityOptions(*given, context=opened.context)
    called = _named(converted, "a converted folder") if converted is not None else None
    folder = locate_folder(called).whole()[0] if called is not None else None
    looks = parity.Looks(as_used=as_used)
    return parity.run_parity(opened.location.whole(), opened.mappings, options, folder, None, looks, called)


@in_our_errors
def run_detector_parity(
    checkpoint: Checkpointlike,
    converted: str | Path | None = None,
    *,
    candidate: str | None = None,
    attention: str = "eager",
    tolerance: float | None = None,
    size: int | None = None,
    image: str | Path | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    as_used: bool = False,
    device: str | None = None,
) -> DetectorDocument:
    """Run the original's and the converted detector on the same picture and compare them at every tap.

    ``converted``: as in ``run_parity``. ``boxes``: x, y, width, height in pixels of the picture. The others are the
    options of ``sam3lite parity --component detector``.
    Raises CannotRun for arguments that do not go together, a missing package or no room, UnsoundPlan if a side does not
    get all of its weights.
    """
    from sam3lite_convert.commands import detector
    from sam3lite_convert.parity.detector.inputs import DetectorOptions
    from sam3lite_convert.parity.setup import ParityOptions

    opened = _opened(checkpoint)
    options = ParityOptions(candidate, attention, tolerance=tolerance, context=opened.context)
    inputs = DetectorOptions(size, _path(image), prompt, seed, tuple(boxes))
    called = _named(converted, "a converted folder") if converted is not None else None
    folder = locate_folder(called).whole()[0] if called is not None else None
    looks = detector.DetectorLooks(as_used=as_used)
    return detector.run_detector_parity(
        opened.location.whole(), opened.mappings, options, inputs, folder, looks, called, device
    )


@in_our_errors
def judge_activations(
    activations: Mapping[str, Tensor | np.ndarray] | str | Path,
    checkpoint: Checkpointlike,
    *,
    ids: Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
    name: str | None = None,
    tolerance: float | None = None,
    causal: bool = False,
) -> ParityDocument:
    """Judge what a port computed, in any framework, against the original on the same ids.

    activations: by tap: ``embeddings``, ``layers.0`` ..., ``final_layer_norm``, ``projected`` of shape (batch,
        sequence, width) or (sequence, batch, width), ``pooled`` of shape (batch, width). Any of them may be missing.
        ``isolated.layers.3`` is what layer 3 gave for the original's input. Or a file or folder, as of ``sam3lite
        judge``.
    ids: (batch, sequence), integers. Default: those of the file, or ``input_ids`` among the activations, or else the
        default input of ``run_parity``, which a note then says.
    name: what the port is called in the result. Default: the name of the file.
    tolerance: largest max abs diff that passes. Default: 4 times the noise floor measured at each tap.

    Raises CannotRun for an unknown tap or a shape that is not the original's, Untrusted for a damaged file.
    """
    from sam3lite_convert.commands import judge
    from sam3lite_convert.parity.port_files import given_activations, read_port_file

    file = Path(activations) if isinstance(activations, str | Path) else None
    port = given_activations(activations) if isinstance(activations, Mapping) else read_port_file(Path(activations))
    opened = _opened(checkpoint)
    return judge.judge_port(
        opened.location.whole(),
        opened.mappings,
        port,
        file,
        ids=ids,
        name=name,
        tolerance=tolerance,
        context=opened.context,
        causal=causal,
    )


@in_our_errors
def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    checkpoint: Checkpointlike | None = None,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str | None = None,
    replace: bool = False,
) -> PushRecord:
    """Verify a converted folder once more and push it to the Hub in one commit; what is there already is not sent.

    ``checkpoint``: what it was converted from; default the file on the Hub that the receipt names. ``replace``: also
    replace another conversion, or a card that somebody edited there.
    Raises CannotRun if the receipt names no file on the Hub, if the folder was edited, or if the Hub refuses; NotProven
    if the folder does not verify.
    """
    from sam3lite_convert.commands.push import PushTarget, check_name

    check_name(repo_id)
    try:
        receipt = Receipt.from_json(read_folder(Path(folder)).receipt)
    except ValueError as fault:
        raise CannotRun(f"{folder} holds no receipt of a conversion ({fault})", "no_receipt") from fault
    source = receipt.source
    if checkpoint is None:
        if source.repo is None or source.file is None or source.commit is None:
            raise CannotRun(
                f"{folder} was converted from the local file {source.name}; give it as checkpoint=", "no_checkpoint"
            )
        checkpoint = open_checkpoint(source.file, repo_id=source.repo, revision=source.commit)
    opened = _opened(checkpoint)
    stated = receipt.options
    request = Request(
        Options(receipt.layout, receipt.component, stated.dtype, stated.context, stated.causal),
        Path(folder),
        max_shard_size=stated.max_shard_size,
        verify=True,
    )
    found = find_current(opened.location, opened.mappings, request)
    target = PushTarget(repo_id, private, create_pr, commit_message, replace)
    done = publish(opened.location, opened.mappings, request, found, target, Callbacks())
    if done.written is None or done.written.push is None:
        raise CannotRun(f"{folder} was not pushed", "push_failed")
    return done.written.push
