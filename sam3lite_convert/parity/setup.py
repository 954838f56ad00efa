"""Set up a parity run: load and record the reference, and check the candidate's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from original_ref import TextReference
from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.hashing import damaged_records
from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.reader import open_source
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.folder import NOT_TAKEN, PREFIX, WRAPPED, Folder, read_folder
from sam3lite_convert.convert.text_weights import folder_weights, planned_weights, source_weights
from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan, Untrusted
from sam3lite_convert.packed_encoder import ATTENTION
from sam3lite_convert.parity.candidates import CANDIDATES, check_candidate
from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
from sam3lite_convert.parity.compared_graph import ComparedGraph, beside_own, find_graph
from sam3lite_convert.parity.encoders import Activations, Candidate, Encoder
from sam3lite_convert.parity.faults.evidence import Evidence
from sam3lite_convert.parity.inputs import BATCH, Inputs, make_inputs
from sam3lite_convert.parity.judgement import check_tolerance, require_finite
from sam3lite_convert.parity.original import checkout_encoder, position_table, record_checkout, reference_encoder
from sam3lite_convert.parity.runtime import RuntimeChoice
from sam3lite_convert.plan.architecture import COUNTER, TEXT
from sam3lite_convert.plan.context import CalledContext, called_context
from sam3lite_convert.plan.families import family_of
from sam3lite_convert.plan.key_patterns import listed
from sam3lite_convert.plan.names import canonical_names
from sam3lite_convert.plan.operations import positions, with_positions
from sam3lite_convert.plan.plan import Mapped, Options, Plan, make_plan
from sam3lite_convert.plan.tables import Layout, Mappings
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.progress import bar
from sam3lite_convert.records.record import Json

# Fields of config.json that do not reach the candidate here.
_SET_HERE = frozenset(
    {
        "model_type",
        "dtype",
        "return_dict",
        "use_return_dict",
        "attn_implementation",
        "_attn_implementation",
        "detector_config",
    }
)
_RUNS_IN = ("float16", "bfloat16", "float32")

_TOLD = 5  # kinds of differences that a message names


@dataclass(frozen=True)
class ParityOptions:
    """The user's options for a comparison.

    ``candidate``: layout of the converted encoder. None: the folder's, or without a folder that of the checkpoint's
        family: packed, of SAM3 itself transformers.
    ``attention``: attention implementation of the candidate.
    ``dtype``: dtype that both sides run in. None: the folder's, or float32.
    ``tolerance``: largest max abs diff that passes. None: derived from the measured noise floors.
    ``seed``: seed of random ids. None: the dummy input.
    ``batch``: number of rows, without prompts.
    ``length``: sequence length. None: the context that the original is called with.
    ``prompts``: texts to compare on.
    ``causal``: whether the encoder masks causally.
    ``original``: the user's checkout, used instead of ``original_ref``.
    ``context``: the context that the original is called with. None: what the checkpoint's meta or name states, else the
        rows that the folder holds.
    ``runtime``: what runs the folder's graph, which is then the candidate. None: the candidate is a model of torch.
    """

    candidate: str | None = None
    attention: str = "eager"
    dtype: str | None = None
    tolerance: float | None = None
    seed: int | None = None
    batch: int = 1
    length: int | None = None
    prompts: tuple[str, ...] = ()
    causal: bool = False
    original: OriginalRepo | None = None
    context: int | None = None
    runtime: RuntimeChoice | None = None


@dataclass(frozen=True)
class Setup:
    """A loaded and recorded reference, and everything that a candidate is built from.

    ``plan``: the conversion plan, of the detector alone where another model holds it.
    ``conversion``: the plan of the whole folder, the same but for a folder of another model.
    ``layout``: name of the candidate's layout, or of what runs its graph.
    ``attention``: attention implementation of the candidate.
    ``dtype``: dtype that both sides run in.
    ``reference``: the original encoder, or that of the user's checkout.
    ``inputs``: the ids that are compared closely, in one batch; the first rows of ``every`` if there are many.
    ``recorded``: the reference's activations for ``inputs``.
    ``evidence``: what the diagnosis tries its hypotheses on.
    ``config``: the candidate's ``text_config``.
    ``weights``: the candidate's state dict by target key.
    ``folder``: the converted folder that they come from; None if they come from the plan.
    ``tolerance``: the user's; None if it is measured.
    ``every``: all inputs that were asked for.
    ``own``: activations of ``original_ref``; the same as ``recorded`` unless the reference is the user's checkout.
    ``context``: the context that the original is called with, in tokens.
    ``notes``: notes on the verdict.
    ``graph``: the graph that is the candidate; None if it is a model of torch.
    """

    plan: Plan
    conversion: Plan
    layout: str
    attention: str
    dtype: torch.dtype
    reference: Encoder
    inputs: Inputs
    recorded: Activations
    evidence: Evidence
    config: Json
    weights: dict[str, Tensor]
    folder: Folder | None
    tolerance: float | None
    every: Inputs
    own: Activations
    context: int
    notes: tuple[str, ...] = ()
    graph: ComparedGraph | None = None

    def compared(self) -> Candidate:
        """What is compared with the original. Raises as ``candidate`` does."""
        return self.graph.encoder if self.graph else self.candidate()

    def candidate(self, weights: Mapping[str, Tensor] | None = None, config: Json | None = None) -> Encoder:
        """Build the candidate in torch, by default with its own weights and config, and run it once.

        Raises UnsoundPlan if the encoder cannot be built or run, or if its number of layers is not the original's.
        """
        try:
            layout, given = self.plan.layout, (config or self.config, weights or self.weights)
            made = CANDIDATES[layout.loader.name](layout.family, *given, self.dtype, self.attention)
            made.run_quietly(self.inputs.ids)
        except Sam3LiteError:
            raise
        except Exception as fault:  # config.json is untrusted: the library may raise anything
            said = str(fault).strip().splitlines() or [type(fault).__name__]
            raise UnsoundPlan(
                f"the text config does not give an encoder that runs with these weights: {said[0]}", "bad_config"
            ) from fault
        if len(made.layers) != len(self.reference.layers):
            raise UnsoundPlan(
                f"the candidate has {len(made.layers)} layers, the original {len(self.reference.layers)}", "other_depth"
            )
        return made


def set_up(source: Checkpoint, mappings: Mappings, options: ParityOptions, converted: Path | None = None) -> Setup:
    """Load the reference from ``source`` and record it.

    The candidate's weights come from the folder ``converted``, or from the plan if it is None.

    With ``options.runtime`` the candidate is the folder's graph; ValueError without a folder.

    Raises CannotRun if options exclude each other, UnsoundPlan and Untrusted as a conversion does, UnsoundPlan if an
    encoder does not get all of its weights, and Untrusted if the folder contradicts itself.
    """
    if options.attention not in ATTENTION:
        raise CannotRun(f"--attention must be one of {', '.join(ATTENTION)}", "usage")
    check_tolerance(options.tolerance)
    runtime = options.runtime.open() if options.runtime else None
    folder: Folder | None = None
    notes = told(source)
    if converted is not None:
        folder = whole(read_folder(converted))
        notes += folder.notes
        plan = recognised(folder, source, mappings, options, notes)
    else:
        layout = chosen_layout(source, mappings, options.candidate)
        check_candidate(layout, mappings)
        plan = make_plan(source, mappings, Options(layout.name, "text", context=options.context, causal=options.causal))
    conversion, plan = plan, detector_of(plan)
    graph = None
    if runtime is not None:
        if folder is None:
            raise ValueError("a graph lies in a folder")
        graph = find_graph(folder.path)
        if options.dtype not in (None, graph.dtype):
            raise CannotRun(
                f"--dtype {options.dtype}: {graph.path.name} computes in {graph.dtype}; leave --dtype out, or convert "
                "with --dtype and export it again",
                "usage",
            )
        options = replace(options, dtype=graph.dtype)
    else:
        check_candidate(plan.layout, mappings)
        if folder is not None:
            check_settings(folder, plan, options)
    pieces = [m for m in plan.mapped.values() if m.canonical.startswith(TEXT)]
    check_source(source, plan, pieces)
    name = options.dtype or (plan.options.dtype if plan.options.dtype in _RUNS_IN else None) or "float32"
    if plan.options.dtype not in (None, name) and plan.options.dtype in ("float16", "bfloat16"):
        notes.append(
            f"the folder was cast to {plan.options.dtype} and both sides run in {name}, so the difference includes the "
            "rounding of the cast; without --dtype both run in the folder's dtype"
        )
    dtype = getattr(torch, name)
    held = planned_weights(plan) if folder is None else folder_weights(folder, plan.layout)
    if folder is not None:
        folder.check_unchanged()
    _check_weights(pieces, held, folder.elsewhere if folder else {})
    if folder is not None and plan.layout.loader.library is None:
        _check_one_dtype(held)
    called = called_context(source, plan.context.rows, options.context)
    notes += context_notes(called, plan, _rows_held(pieces, held))
    # Where nothing states the context, a folder with fewer rows was made for that call.
    context = plan.architecture.called if called.origin == "unknown" else called.called
    vocab = plan.architecture.sizes["vocab"]
    every = make_inputs(context, vocab, options.seed, options.batch, options.length, options.prompts)
    inputs = every if len(every.ids) <= BATCH else every.rows(range(BATCH))
    weights = source_weights(plan)
    table = position_table(weights)
    reference = reference_encoder(plan.architecture, weights, dtype, context)
    ours = reference.model
    assert isinstance(ours, TextReference)
    own = recorded = reference.record(inputs.ids)
    require_finite(recorded)
    if options.original is not None:
        reference = checkout_encoder(options.original, plan.architecture, weights, dtype, context)
        recorded = record_checkout(reference, options.original, inputs.ids, own)
        require_finite(recorded)
    del weights
    compared = None
    if runtime is not None and graph is not None and folder is not None:
        from sam3lite_convert.parity.graph_encoder import graph_encoder

        encoder = graph_encoder(graph.model, folder.path, runtime, inputs.ids, recorded)
        compared = beside_own(graph, folder, mappings, encoder)
        notes += compared.notes
    return Setup(
        plan,
        conversion,
        options.runtime.name if options.runtime else plan.layout.name,
        options.attention,
        dtype,
        reference,
        inputs,
        recorded,
        Evidence(ours, recorded, inputs.ids, table.to(dtype)),
        {} if compared else _text_config(plan, folder),
        held,
        folder,
        options.tolerance,
        every,
        own,
        context,
        tuple(notes),
        compared,
    )


def chosen_layout(source: Checkpoint, mappings: Mappings, candidate: str | None) -> Layout:
    """The candidate's layout, of the checkpoint's family.

    candidate: its name; None for the one that the family is described by.

    Raises CannotRun if no layout has the name, or if it is none of the family.
    """
    family = family_of(canonical_names(source, mappings.spellings).sources)
    own = {layout.name: layout for layout in mappings.of_family(family)}
    if candidate in mappings.names and candidate not in own:
        able = " or ".join(f"--candidate {name}" for name, layout in own.items() if layout.loader.name in CANDIDATES)
        raise CannotRun(
            f"--candidate {candidate}: {source.path.name} is a {family.name} checkpoint, of which there is no layout "
            f"{candidate}. Use {able}, or leave --candidate out",
            "usage",
        )
    return mappings.layout(candidate or family.layout, family)


def _rows_held(pieces: list[Mapped], held: Mapping[str, Tensor]) -> int:
    """Rows of the candidate's text position table."""
    return next(positions(tuple(held[m.target].shape)) or 0 for m in pieces if m.position_table)


def context_notes(called: CalledContext, plan: Plan, rows: int) -> list[str]:
    """What is said where the context, the checkpoint's table and the candidate's table are not one number."""
    note = called.note(plan.layout.family.contexts)
    said = [note] if note else []
    if called.origin == "option":
        return said + [f"the folder holds {rows} rows of the position table"] * (rows != called.held)
    if called.origin == "unknown" and rows < called.rows:
        return [f"the folder holds the first {rows} of {called.rows} positions; the original is cut too"]
    if beside := called.beside(rows):
        return [beside]
    if called.called < called.rows:
        return [f"{called.says}; its position table has {called.rows} rows, and the original is cut as it cuts itself"]
    return said


def told(source: Checkpoint) -> list[str]:
    """What is said of a checkpoint that is in the names of a layout: the reference runs on what was made of it."""
    return list(source.notes) if source.turned_back else []


def whole(folder: Folder) -> Folder:
    """The folder itself. Raises Untrusted if its files contradict each other, UnsoundPlan if they do not but its reader
    does not find the tensors: whatever was compared then would not be what a model loads."""
    if not folder.faults:
        return folder
    listed = "; ".join(f"{fault.key} {fault.why}" for fault in folder.faults[:5])
    if {fault.code for fault in folder.faults} <= {PREFIX, WRAPPED, NOT_TAKEN}:
        raise UnsoundPlan(f"{folder.path}: {folder.reader} does not load its tensors: {listed}", "weights_not_loaded")
    raise Untrusted(f"{folder.path} contradicts itself: {listed}", "corrupt_folder")


def recognised(
    folder: Folder, source: Checkpoint, mappings: Mappings, options: ParityOptions, notes: list[str]
) -> Plan:
    """The plan of the conversion that the folder seems to be. ``notes``: what is taken from its receipt is added.

    Raises CannotRun if ``--candidate`` names another layout, and what ``recognise`` raises.
    """
    from sam3lite_convert.verify.recognise import recognise

    said = (folder.receipt or {}).get("options")
    stated = isinstance(said, dict) and said.get("causal") is True
    if stated and not options.causal:
        notes.append("causal masking is taken from the folder's receipt, since the weights do not show it")
    plan = recognise(folder, source, mappings, options.causal or stated)
    if options.candidate not in (None, plan.layout.name):
        raise CannotRun(
            f"{folder.path} is in the layout {plan.layout.name}, so the candidate cannot be {options.candidate}; leave "
            "--candidate out",
            "usage",
        )
    return plan


def detector_of(plan: Plan) -> Plan:
    """The plan of the detector alone where another model holds it, a video model's: without that model's other tensors,
    and with the targets that the detector's own layout has. ``Mapped.key`` stays that of the folder."""
    inside = plan.layout.inside
    if not inside:
        return plan
    pieces = {key: m for key, m in plan.mapped.items() if m.target.startswith(inside)}
    return replace(plan, mapped={key: replace(m, target=m.target.removeprefix(inside)) for key, m in pieces.items()})


def detector_config(plan: Plan, config: Json) -> Json:
    """The detector's own config of a folder's config.json."""
    inner = config.get("detector_config")
    return inner if plan.layout.inside and isinstance(inner, dict) else config


def check_settings(folder: Folder, plan: Plan, options: ParityOptions) -> None:
    """Raises UnsoundPlan if config.json makes transformers load another model, or load this one in another way, where
    a comparison does not show it: the class, and what is set here in place of config.json."""
    from sam3lite_convert.verify.config_check import check_config

    if plan.layout.loader.library is None or folder.config is None:
        return
    for fault in check_config(plan, folder.config).faults:
        section, _, field = of_detector(fault.path).rpartition(".")
        if section not in ("", "text_config") or (field == "dtype" and options.dtype is not None):
            continue
        if field in _SET_HERE:
            raise UnsoundPlan(
                f"{folder.path}: config.json: {fault.path} {fault.why}. What transformers loads is not what would be "
                f"compared here; correct the field{', or give --dtype' if field == 'dtype' else ''}",
                "bad_config",
            )


def of_detector(path: str) -> str:
    """A field of config.json as the detector's own config names it."""
    return path.removeprefix("detector_config.")


def check_source(source: Checkpoint, plan: Plan, pieces: list[Mapped]) -> None:
    """Check twins and checksums of the text tensors, as a conversion does.

    Raises Untrusted if a checksum does not match.
    """
    begins = {stored.offset for m in pieces for stored in m.source.stored}
    with open_source(source) as file:
        check_twins(file, tuple(t for t in plan.twins if t.of(m.source for m in pieces)))
    records = [r for r in source.records if any(r.offset <= at < r.offset + r.nbytes for at in begins)]
    with bar("checking the checksums", sum(r.nbytes for r in records), "byte") as advance:
        damaged = damaged_records(source, records, look=lambda record, data: advance(len(data)))
    # If none matches, the file was written without checksums.
    if damaged and len(damaged) < len(records):
        raise Untrusted(
            f"{source.path.name} is damaged: {', '.join(damaged[:5])} do not match their checksums in the archive. "
            "Download it again.",
            "corrupt_file",
            {"records": damaged},
        )


def _check_one_dtype(held: Mapping[str, Tensor]) -> None:
    """Raises UnsoundPlan, naming the keys, if tensors are not of one dtype: our own reader takes them as they are, and
    cannot compute with two."""
    kinds = Counter(t.dtype for t in held.values() if t.is_floating_point())
    if len(kinds) > 1:
        most = kinds.most_common(1)[0][0]
        others = {k: t.dtype for k, t in held.items() if t.is_floating_point() and t.dtype != most}
        told = "; ".join(
            f"{listed([k for k, d in others.items() if d == kind], 5)}: {kind}" for kind in kinds if kind != most
        )
        raise UnsoundPlan(
            f"the candidate's weights are not of one dtype, so its reader cannot run them. {told}; the others are "
            f"{most}. Save them in one dtype.".replace("torch.", ""),
            "weights_not_loaded",
            {"faults": [f"{k} is {d}" for k, d in others.items()]},
        )


def _check_weights(pieces: list[Mapped], held: Mapping[str, Tensor], elsewhere: Mapping[str, str]) -> None:
    """Raises UnsoundPlan, naming the keys, if the candidate's tensors do not match this original.

    The position table may have another number of rows: the comparison shows its effect. ``elsewhere``: the file that
    holds a key which is not taken.
    """
    wanted = {m.target: m for m in pieces}
    faults: dict[str, list[str]] = {}  # by what is wrong
    for key, piece in wanted.items():
        if key not in held and not key.endswith(COUNTER):
            where = f" (it lies in {elsewhere[piece.key]}, which is not taken)" if piece.key in elsewhere else ""
            faults.setdefault(f"is missing{where}", []).append(key)
    for key in held:
        if key not in wanted:
            faults.setdefault("is not part of the encoder", []).append(key)
    for key, piece in wanted.items():
        if key not in held or key.endswith(COUNTER):
            continue
        found, shape = held[key], piece.shape
        rows = positions(tuple(found.shape))
        if piece.position_table and rows is not None:
            shape = with_positions(shape, rows)
        if tuple(found.shape) != shape or not found.numel():
            faults.setdefault(f"has shape {tuple(found.shape)}, expected {shape}", []).append(key)
        elif (dtype := str(found.dtype).removeprefix("torch.")) not in dtypes.FLOATING:
            faults.setdefault(f"is {dtype}, which is not supported here", []).append(key)
    if faults:
        told = [f"{listed(keys)} {what}" for what, keys in faults.items()]
        more = f" ... and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise UnsoundPlan(
            f"the candidate's weights do not match this original, so they cannot be compared: "
            f"{'; '.join(told[:_TOLD])}{more}",
            "weights_not_loaded",
            {"faults": [f"{key} {what}" for what, keys in faults.items() for key in keys]},
        )


def _text_config(plan: Plan, folder: Folder | None) -> Json:
    """The candidate's text config: the folder's own, unchecked, or that of the plan.

    Raises CannotRun if the folder has no config.json.
    """
    config = make_config(plan) if folder is None else folder.config
    if config is None:
        raise CannotRun(f"{folder.path if folder else ''} has no config.json, so no encoder can be built", "no_config")
    config = detector_config(plan, config)
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
