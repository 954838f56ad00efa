"""Original and candidate text encoder side by side: set up, run, judge, and say why they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from original_ref import TextStudentEncoder
from sam3lite_convert.architecture import POSITION_TABLE, TEXT
from sam3lite_convert.checkpoint import read_checkpoint
from sam3lite_convert.config import make_config
from sam3lite_convert.config_check import check_config
from sam3lite_convert.encoders import CANDIDATES, Activations, Encoder, record, reference_encoder
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.evidence import Evidence
from sam3lite_convert.floor import noise_floor
from sam3lite_convert.folder import Folder, read_folder
from sam3lite_convert.hypotheses import Fit, explain
from sam3lite_convert.inputs import Inputs, make_inputs
from sam3lite_convert.judgement import Floor, Judgement, judge, require_finite
from sam3lite_convert.packed_encoder import ATTENTION
from sam3lite_convert.plan import Mapped, Options, Plan, make_plan
from sam3lite_convert.tables import Mappings
from sam3lite_convert.text_weights import folder_weights, planned_weights, source_weights


@dataclass(frozen=True)
class ParityOptions:
    """What the user asks of a comparison. None: the folder's, or packed, float32, the measured
    tolerance, the dummy input, the context."""

    candidate: str | None = None
    attention: str = "eager"
    dtype: str | None = None
    tolerance: float | None = None
    seed: int | None = None
    batch: int = 1
    length: int | None = None
    prompts: tuple[str, ...] = ()
    causal: bool = False


@dataclass(frozen=True)
class Setup:
    """The reference, loaded and recorded, and what a candidate is made from.

    ``config``: ``text_config`` for the candidate; ``weights``: its state dict by target key;
    ``folder``: where they come from, None for the plan alone.
    """

    plan: Plan
    layout: str
    attention: str
    dtype: torch.dtype
    reference: Encoder
    inputs: Inputs
    recorded: Activations
    evidence: Evidence
    config: dict[str, Any]
    weights: dict[str, Tensor]
    folder: Folder | None
    tolerance: float | None

    def candidate(self, weights: Mapping[str, Tensor] | None = None, config: dict[str, Any] | None = None) -> Encoder:
        """The candidate with these weights and this config, its own by default."""
        make = CANDIDATES[self.layout]
        return make(config or self.config, weights or self.weights, self.dtype, self.attention)


@dataclass(frozen=True)
class Outcome:
    """One comparison: both columns' activations, the floors if any were measured, and the judgement."""

    candidate: Encoder
    propagated: Activations
    isolated: Activations
    floors: dict[str, Floor] | None
    judgement: Judgement


def set_up(checkpoint: Path, mappings: Mappings, options: ParityOptions, converted: Path | None = None) -> Setup:
    """Load the reference from ``checkpoint`` and record it; take the candidate's weights from
    ``converted``, or from the plan.

    Raises CannotRun for options that do not go together, UnsoundPlan and Untrusted as a conversion
    does, and UnsoundPlan where an encoder does not get all of its weights.
    """
    if options.attention not in ATTENTION:
        raise CannotRun(f"--attention is one of {', '.join(ATTENTION)}", "usage")
    if options.tolerance is not None and not 0 <= options.tolerance < float("inf"):
        raise CannotRun("--tolerance is a number from 0 on", "usage")
    source = read_checkpoint(checkpoint)
    folder = None
    if converted is not None:
        from sam3lite_convert.verify import recognise

        folder = read_folder(converted)
        plan = recognise(folder, source, mappings, options.causal or _says_causal(folder))
        if options.candidate not in (None, plan.layout.name):
            raise CannotRun(
                f"{converted} is in the layout {plan.layout.name}, so the candidate is {plan.layout.name}, not "
                f"{options.candidate}; leave --candidate out",
                "usage",
            )
    else:
        plan = make_plan(source, mappings, Options(options.candidate or "packed", "text", causal=options.causal))
    layout = plan.layout.name
    if layout not in CANDIDATES:
        raise CannotRun(f"no encoder reads the layout {layout}; there are: {', '.join(CANDIDATES)}", "no_candidate")
    dtype = getattr(torch, options.dtype or plan.options.dtype or "float32")
    sizes = plan.architecture.sizes
    inputs = make_inputs(sizes["context"], sizes["vocab"], options.seed, options.batch, options.length, options.prompts)
    weights = source_weights(plan)
    table = weights[POSITION_TABLE.removeprefix(TEXT)]
    reference = reference_encoder(plan.architecture, weights, dtype)
    del weights
    assert isinstance(reference.model, TextStudentEncoder)
    recorded = record(reference, inputs.ids)
    require_finite(recorded)
    return Setup(
        plan,
        layout,
        options.attention,
        dtype,
        reference,
        inputs,
        recorded,
        Evidence(reference.model, recorded, inputs.ids, table.to(dtype)),
        _text_config(plan, folder),
        planned_weights(plan) if folder is None else folder_weights(folder, layout),
        folder,
        options.tolerance,
    )


def _says_causal(folder: Folder) -> bool:
    said = (folder.receipt or {}).get("options")
    return bool(isinstance(said, dict) and said.get("causal"))


def _text_config(plan: Plan, folder: Folder | None) -> dict[str, Any]:
    """The candidate's text config: the folder's own where it has one, faults included."""
    config = make_config(plan) if folder is None else folder.config
    if config is None:
        raise CannotRun(f"{folder.path if folder else ''} has no config.json, so no encoder can be built", "no_config")
    inner = config.get("text_config")
    if isinstance(inner, dict):
        return inner
    return config


def config_notes(setup: Setup) -> list[str]:
    """What config.json says of the text encoder and the weights do not, seen by these inputs or not."""
    if setup.folder is None or setup.folder.config is None:
        return []
    faults = check_config(setup.plan, setup.folder.config).faults
    text = [f for f in faults if not f.path.startswith(("vision", "geometry", "detr", "mask"))]
    return [f"config.json: {f.path} {f.why}" for f in text]


def compare_encoders(setup: Setup, candidate: Encoder) -> Outcome:
    """Run the candidate, once where one run fills both columns, and judge it."""
    propagated = record(candidate, setup.inputs.ids)
    same = all(torch.equal(propagated[name], value) for name, value in setup.recorded.items())
    if same:
        # Every module read what the reference's module read, so the columns are the same.
        isolated, floors = propagated, None
    else:
        isolated = record(candidate, setup.inputs.ids, setup.recorded)
        floors = noise_floor(setup.evidence.model, setup.recorded, setup.inputs.ids)
    judgement = judge(setup.recorded, propagated, isolated, floors, setup.inputs.padded, setup.tolerance)
    return Outcome(candidate, propagated, isolated, floors, judgement)


@dataclass(frozen=True)
class Diagnosis:
    """Why a tap diverges. ``fits``: hypotheses that explain it, the closest first; ``tensors``: those
    behind the tap; ``faults``: target key -> what is wrong with it in the folder."""

    tap: str
    fits: tuple[Fit, ...]
    tensors: tuple[Mapped, ...]
    faults: dict[str, str]

    @property
    def words(self) -> str:
        """The likely cause in one sentence."""
        if self.fits:
            return self.fits[0].words
        if self.faults:
            return "tensors behind it are not the source's: " + "; ".join(
                f"{k} {why}" for k, why in self.faults.items()
            )
        return "no simple fault explains it; the tensors behind it are the place to look"

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "tap": self.tap,
            "cause": self.words,
            "fits": [{"key": f.key, "cause": f.words, "remaining_error": f.error} for f in self.fits],
            "tensors": [
                {
                    "target": m.target,
                    "source": m.source.key,
                    "rule": m.rule.name,
                    "table": m.rule.table,
                    "operation": m.operation,
                    "fault": self.faults.get(m.key),
                }
                for m in self.tensors
            ],
        }


def diagnose(setup: Setup, outcome: Outcome) -> Diagnosis | None:
    """The likely cause of the first divergence; None where nothing diverges."""
    tap = outcome.judgement.first_divergence
    if tap is None:
        return None
    limit = next(t.isolated_tolerance for t in outcome.judgement.taps if t.name == tap)
    fits = explain(setup.evidence, tap, outcome.isolated[tap], limit)
    tensors = tuple(m for m in setup.plan.mapped.values() if m.target.startswith(_behind(tap)))
    faults: dict[str, str] = {}
    if setup.folder is not None:
        from sam3lite_convert.verify import tensor_faults

        faults = tensor_faults(setup.folder, setup.plan, [m.key for m in tensors])
    return Diagnosis(tap, tuple(fits), tensors, faults)


def _behind(tap: str) -> tuple[str, ...]:
    """How the target keys of a tap's tensors start."""
    return {
        "embeddings": ("text_encoder.token_embedding.", "text_encoder.position_embedding.", "text_encoder.embeddings."),
        "projected": ("text_projection.",),
        "pooled": ("text_encoder.projection",),
    }.get(tap, (f"text_encoder.{tap}.",))
