"""What a parity run starts from: the reference loaded and recorded, and the candidate's weights, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from original_ref import TextStudentEncoder
from sam3lite_convert.checkpoint.hashing import damaged_records
from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.reader import open_file
from sam3lite_convert.convert.config import make_config
from sam3lite_convert.convert.folder import Folder, read_folder
from sam3lite_convert.convert.text_weights import COUNTER, folder_weights, planned_weights, source_weights
from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan, Untrusted
from sam3lite_convert.packed_encoder import ATTENTION
from sam3lite_convert.parity.candidates import CANDIDATES, check_candidate
from sam3lite_convert.parity.checkout.original_repo import OriginalRepo
from sam3lite_convert.parity.encoders import Activations, Encoder, record
from sam3lite_convert.parity.faults.evidence import Evidence
from sam3lite_convert.parity.inputs import BATCH, Inputs, make_inputs
from sam3lite_convert.parity.judgement import check_tolerance, require_finite
from sam3lite_convert.parity.original import checkout_encoder, record_checkout, reference_encoder
from sam3lite_convert.plan.architecture import POSITION_TABLE, TEXT
from sam3lite_convert.plan.operations import positions, with_positions
from sam3lite_convert.plan.plan import Mapped, Options, Plan, make_plan
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.plan.twins import check_twins
from sam3lite_convert.records.record import Json

_RUNS_IN = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ParityOptions:
    """What the user asks of a comparison. None: the folder's, or packed, float32, the measured
    tolerance, the dummy input, the context. ``original``: the user's checkout, in the place of
    ``original_ref``."""

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


@dataclass(frozen=True)
class Setup:
    """The reference, loaded and recorded, and what a candidate is made from.

    ``config``: ``text_config`` for the candidate; ``weights``: its state dict by target key;
    ``folder``: where they come from, None for the plan alone. ``inputs`` are what is looked at closely, all
    at once; ``every`` what was asked for, of which they are the first rows where there are many.
    """

    plan: Plan
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
    own: Activations  # of original_ref, where the reference is the user's checkout; else the recorded ones
    notes: tuple[str, ...] = ()

    def candidate(self, weights: Mapping[str, Tensor] | None = None, config: Json | None = None) -> Encoder:
        """The candidate with these weights and this config, its own by default; it has run once.

        Raises UnsoundPlan where that makes no encoder, or not one that runs.
        """
        try:
            layout, given = self.plan.layout, (config or self.config, weights or self.weights)
            made = CANDIDATES[layout.loader.name](layout.family, *given, self.dtype, self.attention)
            made.run_quietly(self.inputs.ids)
        except Sam3LiteError:
            raise
        except Exception as fault:  # a config.json can hold anything, and the library raises as it likes
            said = str(fault).strip().splitlines() or [type(fault).__name__]
            raise UnsoundPlan(
                f"the text config makes no encoder that runs with these weights: {said[0]}", "bad_config"
            ) from fault
        if len(made.layers) != len(self.reference.layers):
            raise UnsoundPlan(
                f"the candidate has {len(made.layers)} layers, the original {len(self.reference.layers)}", "other_depth"
            )
        return made


def set_up(source: Checkpoint, mappings: Mappings, options: ParityOptions, converted: Path | None = None) -> Setup:
    """Load the reference from ``source`` and record it; take the candidate's weights from
    ``converted``, or from the plan.

    Raises CannotRun for options that do not go together, UnsoundPlan and Untrusted as a conversion
    does, UnsoundPlan where an encoder does not get all of its weights, and Untrusted for a folder
    that contradicts itself.
    """
    if options.attention not in ATTENTION:
        raise CannotRun(f"--attention is one of {', '.join(ATTENTION)}", "usage")
    check_tolerance(options.tolerance)
    folder: Folder | None = None
    notes: list[str] = []
    if converted is not None:
        folder = _whole(read_folder(converted))
        plan = _recognised(folder, source, mappings, options, notes)
    else:
        layout = mappings.layout(options.candidate or Options().layout)
        check_candidate(layout, mappings)
        plan = make_plan(source, mappings, Options(layout.name, "text", causal=options.causal))
    check_candidate(plan.layout, mappings)
    pieces = [m for m in plan.mapped.values() if m.canonical.startswith(TEXT)]
    _check_source(source, plan, pieces)
    name = options.dtype or (plan.options.dtype if plan.options.dtype in _RUNS_IN else None) or "float32"
    if plan.options.dtype not in (None, name) and plan.options.dtype in ("float16", "bfloat16"):
        notes.append(
            f"the folder was cast to {plan.options.dtype} and both sides run in {name}: the difference holds what the "
            "cast rounded off; without --dtype both run in the folder's"
        )
    dtype = getattr(torch, name)
    sizes = plan.architecture.sizes
    every = make_inputs(sizes["context"], sizes["vocab"], options.seed, options.batch, options.length, options.prompts)
    inputs = every if len(every.ids) <= BATCH else every.rows(range(BATCH))
    weights = source_weights(plan)
    table = weights[POSITION_TABLE.removeprefix(TEXT)]
    if table.shape[2] != sizes["context"]:
        notes.append(
            f"the folder holds the first {sizes['context']} of {table.shape[2]} positions; the original is cut too"
        )
    reference = reference_encoder(plan.architecture, weights, dtype)
    ours = reference.model
    assert isinstance(ours, TextStudentEncoder)
    own = recorded = record(reference, inputs.ids)
    require_finite(recorded)
    if options.original is not None:
        reference = checkout_encoder(options.original, plan.architecture, weights, dtype)
        recorded = record_checkout(reference, options.original, inputs.ids, own)
        require_finite(recorded)
    del weights
    held = planned_weights(plan) if folder is None else folder_weights(folder, plan.layout)
    _check_weights(pieces, held)
    return Setup(
        plan,
        plan.layout.name,
        options.attention,
        dtype,
        reference,
        inputs,
        recorded,
        Evidence(ours, recorded, inputs.ids, table.to(dtype)),
        _text_config(plan, folder),
        held,
        folder,
        options.tolerance,
        every,
        own,
        tuple(notes),
    )


def _whole(folder: Folder) -> Folder:
    """The folder, if loaders see in it what stands in it."""
    if folder.faults:
        listed = "; ".join(f"{key} {why}" for key, why in folder.faults[:5])
        raise Untrusted(f"{folder.path} contradicts itself: {listed}", "corrupt_folder")
    return folder


def _recognised(
    folder: Folder, source: Checkpoint, mappings: Mappings, options: ParityOptions, notes: list[str]
) -> Plan:
    from sam3lite_convert.verify.recognise import recognise

    said = (folder.receipt or {}).get("options")
    stated = isinstance(said, dict) and said.get("causal") is True
    if stated and not options.causal:
        notes.append("causal masking is taken from the folder's receipt; weights cannot tell")
    plan = recognise(folder, source, mappings, options.causal or stated)
    if options.candidate not in (None, plan.layout.name):
        raise CannotRun(
            f"{folder.path} is in the layout {plan.layout.name}, so the candidate is {plan.layout.name}, not "
            f"{options.candidate}; leave --candidate out",
            "usage",
        )
    return plan


def _check_source(source: Checkpoint, plan: Plan, pieces: list[Mapped]) -> None:
    """The text tensors' twins and checksums: a conversion would refuse a source that fails them."""
    begins = {m.source.offset for m in pieces}
    with open_file(source.path) as file:
        check_twins(file, tuple(t for t in plan.twins if t.first.offset in begins))
    records = [r for r in source.records if any(r.offset <= at < r.offset + r.nbytes for at in begins)]
    damaged = damaged_records(source.path, records)
    # Where not one matches, the file was written without checksums.
    if damaged and len(damaged) < len(records):
        raise Untrusted(
            f"{source.path.name} is damaged: {', '.join(damaged[:5])} do not match the checksum that the archive "
            "states for them. Fetch it again.",
            "corrupt_file",
            {"records": damaged},
        )


def _check_weights(pieces: list[Mapped], held: Mapping[str, Tensor]) -> None:
    """Raises UnsoundPlan, naming the keys, where the candidate's tensors are not those of this original.

    The position table may have another number of rows: what that does is compared.
    """
    wanted = {m.target: m for m in pieces}
    faults = [f"{key} is missing" for key in wanted if key not in held and not key.endswith(COUNTER)]
    faults += [f"{key} is no part of the encoder" for key in held if key not in wanted]
    for key, piece in wanted.items():
        if key not in held or key.endswith(COUNTER):
            continue
        found, shape = held[key], piece.shape
        rows = positions(tuple(found.shape))
        if piece.position_table and rows is not None:
            shape = with_positions(shape, rows)
        if tuple(found.shape) != shape or not found.numel():
            faults.append(f"{key} is {tuple(found.shape)} where the original's would be {shape}")
        elif found.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            faults.append(f"{key} is {str(found.dtype).removeprefix('torch.')}, which no encoder here runs in")
    if faults:
        more = f" ... and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise UnsoundPlan(
            f"the candidate's weights are not those of this original, so there is nothing to compare: "
            f"{'; '.join(faults[:20])}{more}",
            "weights_not_loaded",
            {"faults": faults},
        )


def _text_config(plan: Plan, folder: Folder | None) -> Json:
    """The candidate's text config: the folder's own where it has one, faults included."""
    config = make_config(plan) if folder is None else folder.config
    if config is None:
        raise CannotRun(f"{folder.path if folder else ''} has no config.json, so no encoder can be built", "no_config")
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
