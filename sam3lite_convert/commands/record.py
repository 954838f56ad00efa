"""Records the reference's side alone: what a port has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert import __version__
from sam3lite_convert.commands.sources import Source
from sam3lite_convert.errors import CannotRun, Sam3LiteError
from sam3lite_convert.files import resolved, write_whole
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.detector import DetectorRecordDocument
from sam3lite_convert.records.fingerprint import FingerprintWritten
from sam3lite_convert.records.parity import RecordDocument, RecordedTap, ScriptTable, ScriptWritten
from sam3lite_convert.records.record import Json
from sam3lite_convert.seen import look

if TYPE_CHECKING:
    from sam3lite_convert.parity.detector.inputs import DetectorCall, DetectorOptions
    from sam3lite_convert.plan.architecture import Architecture

_DTYPE = "float32"


def record_fingerprint(
    source: Source,
    mappings: Mappings,
    output: Path | None = None,
    context: int | None = None,
    causal: bool = False,
) -> FingerprintWritten:
    """Make the fingerprint of a checkpoint and write it to a file.

    ``output``: the file. None: ``<stem of the checkpoint>-fingerprint.json``, here.

    Raises CannotRun if the file exists and is not a fingerprint or cannot be written, UnsoundPlan and Untrusted as a
    conversion does.
    """
    from sam3lite_convert.commands.fingerprint import fingerprint_of, read_fingerprint
    from sam3lite_convert.parity.fingerprint import in_lines

    path = output or Path(f"{source.stem}-fingerprint.json")
    earlier = look(path)
    if path.exists():
        try:
            read_fingerprint(path)
        except Sam3LiteError:
            raise CannotRun(
                f"{path} exists and is not a fingerprint, so it was not overwritten; choose another name",
                "output_exists",
            ) from None
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        hashing = stack.enter_context(source.hashing()) if source.path.is_file() else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        checkpoint = source.read(mappings)
        plan = make_plan(checkpoint, mappings, Options(component="text", context=context, causal=causal))
        made = fingerprint_of(plan)
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            made = replace(made, source=replace(made.source, sha256=hashing.result()[0]))
    data = in_lines(made)
    write_whole(path, data, earlier)
    return FingerprintWritten(
        checkpoint=source.name,
        output=str(path),
        size=len(data),
        variant=plan.architecture.variant,
        ids=made.ids,
        taps=tuple(tap.name for tap in made.taps),
        next=f'sam3lite judge mine.safetensors --fingerprint {shell_path(path)} --name "my port"',
    )


def record_detector(
    source: Source,
    mappings: Mappings,
    inputs: DetectorOptions,
    output: Path | None = None,
    *,
    compact: bool = False,
    context: int | None = None,
) -> DetectorRecordDocument:
    """Run the original's detector and write its activations to a file.

    ``output``: .safetensors. None: ``<stem of the checkpoint>-detector.safetensors``, here.
    ``compact``: write figures and some values of each tap, not whole activations.
    ``context``: tokens that the text encoder is called with. None: what the checkpoint states.

    Raises CannotRun for options that do not go together, no room, or a file that cannot be written, UnsoundPlan and
    Untrusted as a conversion does.
    """
    from sam3lite_convert.commands.detector import activations_place
    from sam3lite_convert.parity.detector.inputs import make_call
    from sam3lite_convert.parity.detector.reference_file import figures, replaceable_output, save_detector_reference
    from sam3lite_convert.parity.detector.setup import set_up_original
    from sam3lite_convert.parity.detector.store import TapStore

    path = output or Path(f"{source.stem}-detector.safetensors")
    earlier = replaceable_output(path)

    def make(architecture: Architecture, called: int) -> DetectorCall:
        return make_call(inputs, architecture, called)

    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        hashing = stack.enter_context(source.hashing()) if source.path.is_file() else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        checkpoint = source.read(mappings)
        place = stack.enter_context(activations_place())
        setup = set_up_original(checkpoint, mappings, make, place, context)
        plan, run, call, store = setup.plan, setup.run, setup.run.call, TapStore(place)
        run.record(run.reference(), store)
        digest = None
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            digest = hashing.result()[0]
        asked, variant = call.record(), plan.architecture.variant
        taps: list[RecordedTap] = []
        about_taps: Json = {}
        for tap in filter(run.holds, run.taps):
            value, what = store.read(tap), run.taps[tap].what
            about_taps[tap] = {"what": what, **figures(value)}
            taps.append(RecordedTap(name=tap, what=what, shape=tuple(value.shape), max_abs=float(value.abs().max())))
        about: Json = {
            "version": 1,
            "tool": f"sam3lite-convert {__version__}",
            "component": "detector",
            "checkpoint": source.name,
            "checkpoint_sha256": digest,
            "reference": "original detector",
            "variant": variant,
            "dtype": _DTYPE,
            "inputs": asked.to_json(),
            "taps": about_taps,
        }
        names = [tap.name for tap in taps]
        size = save_detector_reference(path, earlier, about, call, store, names, variant, compact)
    return DetectorRecordDocument(
        checkpoint=source.name,
        checkpoint_sha256=digest,
        source=source.provenance(),
        fetched=source.fetched(),
        reference="original detector",
        variant=variant,
        dtype=_DTYPE,
        inputs=asked,
        taps=tuple(taps),
        output=str(path),
        compact=compact,
        size=size,
        next=f'sam3lite judge mine.safetensors {source.option} --name "my port"',
        notes=setup.notes,
    )


def record_script(output: Path) -> ScriptWritten:
    """Write the script that records what a model computes where this tool is not installed.

    ``output``: a .py file whose name Python can import.

    Raises CannotRun if the name is another, or if the file exists and is no such script or cannot be written.
    """
    from sam3lite_convert.parity.hooks import detector_tables, hooks_script, is_hooks_script, text_tables

    if output.suffix != ".py" or not output.stem.isidentifier() or iskeyword(output.stem):
        raise CannotRun(
            f"--script {output}: the name must end in .py and be one that Python imports, such as sam3lite_hooks.py",
            "usage",
        )
    earlier = look(resolved(output))
    if output.exists() and not is_hooks_script(output):
        raise CannotRun(
            f"{output} exists and is not a script of sam3lite record, so it was not overwritten; choose another name",
            "output_exists",
        )
    tables = (*text_tables(), *detector_tables())
    data = hooks_script(tables, output.stem).encode()
    write_whole(resolved(output), data, earlier)
    return ScriptWritten(
        output=str(output),
        module=output.stem,
        size=len(data),
        tables=tuple(
            ScriptTable(name=table.name, component=table.component, taps=tuple(row.tap for row in table.rows))
            for table in tables
        ),
        next='sam3lite judge mine.safetensors CHECKPOINT --name "my port"',
    )


def record_reference(
    source: Source,
    mappings: Mappings,
    output: Path | None = None,
    *,
    compact: bool = False,
    seed: int | None = None,
    batch: int = 1,
    length: int | None = None,
    prompts: Sequence[str] = (),
    context: int | None = None,
    causal: bool = False,
) -> RecordDocument:
    """Run the original on ids and write its activations to a file.

    ``output``: .safetensors or .npz, or .json if ``compact``. None: ``<stem of the checkpoint>-reference``, here.
    ``compact``: write a few numbers of each tap, not whole activations.
    ``seed``, ``batch``, ``length``, ``prompts``: the ids, as of ``parity``.
    ``context``: what the model is called with, in tokens. None: what the checkpoint states.

    Raises CannotRun for options that do not go together or a file that cannot be written, UnsoundPlan and Untrusted as
    a conversion does.
    """
    import torch

    from sam3lite_convert.convert.text_weights import source_weights
    from sam3lite_convert.parity.inputs import make_inputs
    from sam3lite_convert.parity.judgement import require_finite
    from sam3lite_convert.parity.original import reference_encoder
    from sam3lite_convert.parity.reference_file import format_of, replaceable, save_reference
    from sam3lite_convert.parity.taps import layer_of, point_of

    path = output or Path(f"{source.stem}-reference.{'json' if compact else 'safetensors'}")
    form = format_of(path, compact)
    earlier = replaceable(path)
    with ExitStack() as stack:
        stack.enter_context(source.trusted())
        hashing = stack.enter_context(source.hashing()) if source.path.is_file() else None
        if hashing is not None:
            stack.enter_context(hashing.shown())
        checkpoint = source.read(mappings)
        plan = make_plan(checkpoint, mappings, Options(component="text", context=context, causal=causal))
        sizes = plan.architecture.sizes
        inputs = make_inputs(plan.architecture.called, sizes["vocab"], seed, batch, length, prompts)
        reference = reference_encoder(plan.architecture, source_weights(plan), torch.float32)
        recorded = reference.record(inputs.ids)
        require_finite(recorded)
        digest = None
        if hashing is not None:
            hashing.check(replace(checkpoint, records=()))
            digest = hashing.result()[0]
    taps = tuple(
        RecordedTap(
            name=tap,
            what=point_of(tap).what.replace("{i}", str(layer_of(tap)) if point_of(tap).per_layer else ""),
            shape=tuple(value.shape),
            max_abs=float(value.abs().max()),
        )
        for tap, value in recorded.items()
    )
    asked = inputs.record(len(prompts))
    mine = "mine.npz" if form == "npz" else "mine.safetensors"
    what: Json = {tap.name: tap.what for tap in taps}
    about: Json = {
        "version": 1,
        "tool": f"sam3lite-convert {__version__}",
        "checkpoint": source.name,
        "checkpoint_sha256": digest,
        "reference": reference.name,
        "variant": plan.architecture.variant,
        "causal_masking": plan.architecture.causal_masking,
        "dtype": _DTYPE,
        "inputs": {"what": asked.what, "prompts": list(asked.prompts)},
        "taps": what,
    }
    size = save_reference(path, earlier, form, about, inputs.ids, recorded, plan.architecture.variant)
    return RecordDocument(
        checkpoint=source.name,
        checkpoint_sha256=digest,
        source=source.provenance(),
        reference=reference.name,
        variant=plan.architecture.variant,
        dtype=_DTYPE,
        inputs=asked,
        taps=taps,
        output=str(path),
        format=form,
        size=size,
        next=f'sam3lite judge {mine} {source.option} --name "my port"',
    )
