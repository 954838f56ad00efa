"""Run the candidate beside the original, judge the difference and find its likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sam3lite_convert.figures import number
from sam3lite_convert.parity.compared_graph import with_differences
from sam3lite_convert.parity.encoders import Activations, Candidate
from sam3lite_convert.parity.faults.hypotheses import Fit, explain, in_words
from sam3lite_convert.parity.judgement import Floor, Judgement, judge
from sam3lite_convert.parity.noise_floor import noise_floor
from sam3lite_convert.parity.port import likely_cause
from sam3lite_convert.parity.setup import Setup, of_detector
from sam3lite_convert.parity.taps import tensors_behind
from sam3lite_convert.plan.architecture import TEXT
from sam3lite_convert.plan.plan import Mapped
from sam3lite_convert.records.parity import DiagnosisRecord, OwnReferenceRecord, SuspectTensor
from sam3lite_convert.verify.config_check import check_config

if TYPE_CHECKING:
    from sam3lite_convert.parity.graph_encoder import GraphEncoder

# Beginnings of fields of config.json that do not concern the text encoder.
_NOT_TEXT = ("vision", "geometry", "detr", "mask", "tracker")


@dataclass(frozen=True)
class Outcome:
    """The result of one comparison.

    ``candidate``: the encoder that was run.
    ``recorded``: the reference's activations at the candidate's taps.
    ``propagated``: its activations by tap in a normal forward pass.
    ``isolated``: its activations by tap when each module reads the reference's recorded input; of a graph, taps may be
        missing.
    ``floors``: noise floors by tap; None if they were not measured.
    ``judgement``: the verdict.
    """

    candidate: Candidate
    recorded: Activations
    propagated: Activations
    isolated: Activations
    floors: dict[str, Floor] | None
    judgement: Judgement


def notes(setup: Setup, outcome: Outcome) -> list[str]:
    """Notes on the verdict: assumptions about the folder, and faults that these inputs or this dtype cannot show."""
    said = list(setup.notes)
    if setup.folder is not None and setup.folder.config is not None:
        faults = check_config(setup.plan, setup.folder.config).faults
        text = [f for f in faults if not of_detector(f.path).startswith(_NOT_TEXT)]
        said += [f"config.json: {f.path} {f.why}" for f in text]
    if outcome.judgement.verdict != "differs":
        text_tensors = [m for m in setup.plan.mapped.values() if m.canonical.startswith(TEXT)]
        for key, why in _tensor_faults(setup, text_tensors).items():
            said.append(f"not visible with these inputs: {key} {why}")
        if setup.dtype in (torch.float16, torch.bfloat16) and outcome.judgement.max_abs:
            said.append("half precision hides faults smaller than its rounding: compare in float32 too")
    if setup.graph is not None:
        said += _graph_notes(setup.graph.encoder, outcome)
    return said


def _graph_notes(encoder: GraphEncoder, outcome: Outcome) -> list[str]:
    """What is said of a graph beside its verdict."""
    said = []
    if missing := outcome.judgement.not_given:
        said.append(f"the graph does not name these taps, so they were not compared: {', '.join(missing)}")
    for tap, most in encoder.moved.items():
        floor = outcome.floors[tap].propagated if outcome.floors else 0.0
        if most > floor:
            said.append(
                f"{tap} of the graph as it lies in its file is up to {number(most)} off that of the same graph with "
                f"its taps as outputs, more than the noise floor of {number(floor)}: {encoder.runtime.name} rewrites "
                "the two in different ways, and the taps before it may not be what the graph itself computes"
            )
    return said


def _tensor_faults(setup: Setup, tensors: Sequence[Mapped]) -> dict[str, str]:
    """Target key -> fault, for those of these tensors that differ between the folder and the source."""
    if setup.folder is None:
        return {}
    from sam3lite_convert.verify.verify import tensor_faults

    targets = {m.key: m.target for m in tensors}
    return {targets[key]: why for key, why in tensor_faults(setup.folder, setup.plan, targets).items()}


def measured_floors(setup: Setup) -> dict[str, Floor]:
    """The reference's noise floors for the inputs of this run, by tap."""
    # Measured on original_ref: the floor of a faulty checkout would be as high as its fault.
    return noise_floor(setup.evidence.model, setup.own, setup.inputs.ids)


def compare_encoders(setup: Setup, candidate: Candidate, closely: bool = False) -> Outcome:
    """Run the candidate and judge it. If nothing differs, one run gives both columns.

    ``closely``: measure floors even if nothing differs here, because other batches differ.
    """
    propagated = candidate.record(setup.inputs.ids)
    recorded = {tap: setup.recorded[tap] for tap in candidate.taps}
    same = all(torch.equal(propagated[tap], value) for tap, value in recorded.items())
    if same and not closely:
        # Every module read the same input as the reference's, so both columns are the same.
        isolated, floors = propagated, None
    else:
        isolated = candidate.record(setup.inputs.ids, setup.recorded)
        floors = measured_floors(setup)
    every = list(setup.recorded)
    judgement = judge(recorded, propagated, isolated, floors, setup.inputs.padded, setup.tolerance, every)
    judgement = replace(judgement, not_read=setup.plan.not_read)
    return Outcome(candidate, recorded, propagated, isolated, floors, judgement)


def against_own_reference(setup: Setup) -> OwnReferenceRecord:
    """Compare ``original_ref`` with the user's checkout, over ``setup.inputs``."""
    floors = None
    if not all(torch.equal(setup.own[name], value) for name, value in setup.recorded.items()):
        floors = measured_floors(setup)
    judgement = judge(setup.recorded, setup.own, {}, floors, setup.inputs.padded, setup.tolerance)
    return OwnReferenceRecord(
        verdict=judgement.verdict, max_abs_diff=judgement.max_abs, first_divergence=judgement.first_divergence
    )


@dataclass(frozen=True)
class Diagnosis:
    """Why a tap diverges.

    ``tap``: the first divergence.
    ``fits``: hypotheses that explain it, the closest first.
    ``tensors``: the tensors that the tap's module uses.
    ``faults``: target key -> what is wrong with the tensor in the folder.
    """

    tap: str
    fits: tuple[Fit, ...]
    tensors: tuple[Mapped, ...]
    faults: dict[str, str]

    @property
    def words(self) -> str:
        """The likely cause in one sentence."""
        if self.faults and not self.fits:
            return "tensors used at this tap differ from the source: " + "; ".join(
                f"{k} {why}" for k, why in self.faults.items()
            )
        return in_words(self.fits)

    def record(self) -> DiagnosisRecord:
        """The diagnosis for the JSON."""
        return DiagnosisRecord(
            tap=self.tap,
            cause=self.words,
            fits=tuple(fit.record() for fit in self.fits),
            tensors=tuple(
                SuspectTensor(
                    target=m.target,
                    source=m.source.key,
                    rule=m.rule.name,
                    table=m.rule.table,
                    operation=m.operation.name,
                    fault=self.faults.get(m.target),
                )
                for m in self.tensors
            ),
        )


def diagnose(setup: Setup, outcome: Outcome) -> Diagnosis | None:
    """The likely cause of the first divergence; None if nothing diverges."""
    tap = outcome.judgement.first_divergence
    if tap is None:
        return None
    found = next(t for t in outcome.judgement.taps if t.name == tap)
    fits = explain(setup.evidence, tap, outcome.isolated[tap], found.isolated_tolerance, found.mean_isolated_tolerance)
    behind = tuple(TEXT + start for start in tensors_behind(tap))
    tensors = tuple(m for m in setup.plan.mapped.values() if m.canonical.startswith(behind))
    return Diagnosis(tap, tuple(fits), tensors, _tensor_faults(setup, tensors))


def diagnosis(setup: Setup, outcome: Outcome) -> DiagnosisRecord | None:
    """The likely cause of the first divergence for the JSON, of a graph with the nodes and tensors at that place that
    are not those of the graph that this version writes; None if nothing diverges."""
    first = outcome.judgement.first
    if first is None:
        return None
    if first.isolated is None:
        values = outcome.propagated | outcome.isolated
        told = likely_cause(setup.plan, setup.evidence, outcome.judgement, values)
    else:
        found = diagnose(setup, outcome)
        told = found.record() if found else None
    if told is None or setup.graph is None or setup.graph.differences is None:
        return told
    return with_differences(told, setup.graph.differences, (*outcome.judgement.unseen, first.name))
