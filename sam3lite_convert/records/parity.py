"""What ``parity`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.fingerprint import ReleasedCheck
from sam3lite_convert.records.record import Document, Record, flat, optional
from sam3lite_convert.records.shared import Fetched, HubOrigin, PageFacts, refuses

Verdict = Literal["exact", "within_tolerance", "incomplete", "differs"]
TapStatus = Literal["equal", "within", "carried", "unknown", "diverges"]
TrialOutcome = Literal["found", "missed", "not revealed"]


@dataclass(frozen=True, kw_only=True)
class FloorRecord(Record):
    """The noise floor of a tap: of the max abs diff and of the largest mean abs diff of a row, with errors carried
    from the taps before (``propagated``) and made here alone (``isolated``)."""

    propagated: float
    isolated: float
    mean_propagated: float
    mean_isolated: float


@dataclass(frozen=True, kw_only=True)
class TapRecord(Record):
    """One tap of a comparison.

    read_by_detector: the detector's result follows from it (all taps but pooled).
    isolated_max_abs_diff: of the candidate's module on the reference's recorded input; null if that was not given (see
        judged_by), or if it is not finite.
    isolated_mean_abs_diff: the largest mean of a row, likewise.
    judged_by: which error tells whether the tap diverges: propagated where no isolated activation was given.
    floors: the largest error divided by its noise floor.
    valid_max_abs_diff: on words and on padding, null if the inputs have none.
    padded_max_abs_diff: on words and on padding, null if the inputs have none.
    position: where the largest difference is.
    reference_value: both values there.
    candidate_value: both values there.
    status: carried means that the error was made at an earlier tap, unknown that it was carried or made here.
    """

    name: str
    read_by_detector: bool
    shape: tuple[int, ...]
    max_abs_diff: float
    mean_abs_diff: float
    relative_l2: float
    cosine: float
    position: tuple[int, ...]
    reference_value: float
    candidate_value: float
    isolated_max_abs_diff: float | None
    isolated_mean_abs_diff: float | None
    judged_by: Literal["isolated", "propagated"]
    tolerance: float
    isolated_tolerance: float
    floor: FloorRecord | None
    floors: float
    diverges: bool
    within: bool
    status: TapStatus
    valid_max_abs_diff: float | None
    padded_max_abs_diff: float | None


@dataclass(frozen=True, kw_only=True)
class MisshapenTap(Record):
    """A tap that was given in a shape that cannot be read as the original's, and so was not compared.

    called: its name in the port's file.
    shape: as it was given.
    reference_shape: of the original's, for the same input.
    """

    name: str
    called: str
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]

    @property
    def words(self) -> str:
        """Both shapes, in words."""
        called = f" ({self.called} of the port)" if self.called != self.name else ""
        return f"{self.name}{called} is {self.shape}; the original's is {self.reference_shape}"


@dataclass(frozen=True, kw_only=True)
class JudgementRecord(Record):
    """The verdict on the weights, and the taps that it follows from, in order of execution.

    tolerance: the largest that holds at a tap.
    smallest_passing_tolerance: the smallest --tolerance that would have passed.
    first_divergence: the first tap whose isolated error is above its tolerance; where no isolated activations were
        given, the first tap that is off.
    place: where it was made, in words: that tap, or "between layers.1 and layers.4" if taps between were not given.
    unseen: the taps between.
    not_given: taps of the encoder that were not compared.
    summary: what stands behind the verdict's name, in words.
    not_read: source keys of text tensors that no module of the reference reads. With any, the verdict is incomplete or
        differs: the original may compute something with them.
    misshapen: taps of another shape than the original's. With any, the verdict is differs.
    needed: those of not_given without which nothing is exact: what the detector receives, or what it returns.
    """

    verdict: Verdict
    tolerance: float
    tolerance_is: str
    smallest_passing_tolerance: float
    max_abs_diff: float
    first_divergence: str | None
    place: str | None
    unseen: tuple[str, ...]
    also_diverging: tuple[str, ...]
    not_given: tuple[str, ...]
    layers: tuple[TapRecord, ...]
    summary: str
    not_read: tuple[str, ...]
    misshapen: tuple[MisshapenTap, ...] = ()
    needed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InputsRecord(Record):
    """What both sides were run on.

    what: in words.
    shape: (batch, sequence); ``ids`` are those that were compared closely, if there were many.
    ids: (batch, sequence); ``ids`` are those that were compared closely, if there were many.
    prompts_total: prompts that were given.
    """

    what: str
    prompts: tuple[str, ...]
    prompts_total: int
    shape: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Sides(Record):
    """A few values of both sides."""

    reference: tuple[float, ...]
    candidate: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class FitRecord(Record):
    """A known fault that explains a divergence.

    remaining_error: max abs diff that it leaves unexplained.
    likely: whether it fits as well as the closest one, so that the cause names it.
    """

    key: str
    cause: str
    remaining_error: float
    likely: bool


@dataclass(frozen=True, kw_only=True)
class SuspectTensor(Record):
    """A tensor behind a divergence: target and source key, the rule and operation that made it, and what is wrong with
    it in the folder (null: nothing)."""

    target: str
    source: str
    rule: str
    table: str
    operation: str
    fault: str | None


@dataclass(frozen=True, kw_only=True)
class GraphDifferenceRecord(Record):
    """A difference of a graph from the one that this version writes for the folder.

    name: of the node, initializer, input or output; empty for what is said of the whole graph.
    taps: those whose own part of the graph it is in.
    what: it, in words.
    tensors: keys of the folder's tensors that it is about.
    """

    name: str
    taps: tuple[str, ...]
    what: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphRecord(Record):
    """The graph that was run as the candidate.

    runtime: what ran it, with its version. provider: what computed in it, in its own word.
    optimised: whether the runtime might rewrite the graph.
    file: its name in the folder, null if it was written for this run.
    sha256: of the file.
    differences: from the graph that this version writes for the folder; null if that could not be told.
    """

    runtime: str
    provider: str
    optimised: bool
    file: str | None
    sha256: str
    differences: tuple[GraphDifferenceRecord, ...] | None


@dataclass(frozen=True, kw_only=True)
class DiagnosisRecord(Record):
    """Why the first diverging tap diverges.

    fits: faults that explain it, the closest first.
    graph: where a graph is the candidate: how it differs, in the part of this tap, from the one that this version
        writes for the folder.
    """

    tap: str
    cause: str
    fits: tuple[FitRecord, ...]
    tensors: tuple[SuspectTensor, ...]
    graph: tuple[GraphDifferenceRecord, ...] | None = field(default=None, metadata=optional())


@dataclass(frozen=True, kw_only=True)
class WorstPrompt(Record):
    """A prompt that is far off.

    index: its place among all, from 0.
    """

    index: int
    prompt: str
    tap: str
    max_abs_diff: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class OwnReferenceRecord(Record):
    """How our own reference compares with the user's clone of the original."""

    verdict: Verdict
    max_abs_diff: float
    first_divergence: str | None


@dataclass(frozen=True, kw_only=True)
class CheckoutRecord(Record):
    """The user's clone of the original: its commit, the files whose code was run, and what took the place of packages
    that are not installed."""

    path: str
    commit: str | None
    files: tuple[str, ...]
    stood_in: tuple[str, ...]
    against_original_ref: OwnReferenceRecord


@dataclass(frozen=True, kw_only=True)
class FeatureError(Record):
    """How far text features are from the original's.

    prompts: how many moved.
    tokens_without_counterpart: tokens that one side alone has; the numbers leave them out.
    calls_failed: prompts on which the call raises an error, because its ids are more than the position table has rows.
    """

    relative_l2: float
    cosine: float
    max_abs_diff: float
    prompts: int
    tokens_without_counterpart: int
    calls_failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Cause(Record):
    """One difference of the two calls, switched on alone."""

    name: str
    words: str
    error: FeatureError = field(metadata=flat())


@dataclass(frozen=True, kw_only=True)
class NoCause(Record):
    """A possible cause in which both calls agree."""

    name: str
    words: str


@dataclass(frozen=True, kw_only=True)
class ValidTokens(Record):
    """Number of ids before the padding, on both sides."""

    original: int
    as_used: int


@dataclass(frozen=True, kw_only=True)
class UsedPrompt(Record):
    """One prompt: its ids on both sides, and how far its features are off."""

    prompt: str
    original: tuple[int, ...]
    as_used: tuple[int, ...]
    valid: ValidTokens
    relative_l2: float
    cosine: float
    max_abs_diff: float


@dataclass(frozen=True, kw_only=True)
class RecipeRecord(Record):
    """The code that calls the model as the original is called, and how far its features are off.

    summary: what stands behind the verdict's name, in words.
    """

    code: str
    verdict: Verdict
    summary: str
    error: FeatureError = field(metadata=flat())


@dataclass(frozen=True, kw_only=True)
class BehaviourRecord(Record):
    """The verdict on the model as people call it.

    summary: what stands behind the verdict's name, in words.
    remedy: what to do, null if it does not differ.
    built_in: the prompts are the tool's own.
    longer_than_the_processor_pads: prompts of more tokens than the processor pads to.
    prompts: those that moved most.
    absent: causes in which both calls agree.
    """

    verdict: Verdict
    summary: str
    remedy: str | None
    notes: tuple[str, ...]
    tolerance: float
    candidate: str
    tokenizer: str
    context: int
    prompts_total: int
    built_in: bool
    longer_than_the_processor_pads: int
    prompts: tuple[UsedPrompt, ...]
    causes: tuple[Cause, ...]
    absent: tuple[NoCause, ...]
    together: FeatureError
    recipe: RecipeRecord


@dataclass(frozen=True, kw_only=True)
class Verdicts(Record):
    """Both verdicts.

    behaviour: null if it was not compared.
    """

    weights: Verdict
    behaviour: Verdict | None


@dataclass(frozen=True, kw_only=True)
class HeatMap(Record):
    """Max abs diff by position and channel, of the worst row at one tap.

    channels_per_column: neighbouring channels that share a column of ``values``.
    """

    tap: str
    isolated: bool
    prompt: str | None
    row: int
    positions: int
    channels: int
    channels_per_column: int
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ComparedSides(Record):
    """What was compared.

    converted: the folder, null for one that was converted in memory.
    option: the checkpoint in a command, with the options that it needs; of runs on one alone.
    """

    checkpoint: str
    converted: str | None
    reference: str
    candidate: str
    candidate_encoder: str
    attention: str
    dtype: str
    option: str | None = field(default=None, metadata=optional())

    @property
    def verify_command(self) -> str | None:
        """The command that compares the folder's other tensors; None without a folder."""
        if self.converted is None:
            return None
        return f"sam3lite verify {shell_path(self.converted)} {self.option or shell_path(self.checkpoint)}"


@dataclass(frozen=True, kw_only=True)
class PortRecord(Record):
    """A candidate that ran elsewhere, of which only activations are known.

    file: what they were read from, null for activations in memory.
    format: in words.
    dtypes: number of taps by dtype.
    reference_dtype: what the original ran in.
    isolated: number of taps with an isolated activation.
    ids: where the ids come from.
    checkpoint_sha256: of the original's file; null if only a part of it was downloaded, or if no checkpoint was read.
    names: by tap, its name in the file, where that is spelled otherwise.
    """

    file: str | None
    format: str
    dtypes: dict[str, int]
    reference_dtype: str
    isolated: int
    ids: str
    checkpoint_sha256: str | None
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecordedTap(Record):
    """One tap of the reference.

    what: what the activation is, in words.
    max_abs: its largest absolute value.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    max_abs: float


@dataclass(frozen=True, kw_only=True)
class RecordDocument(Document):
    """The reference's side alone: what a port has to compute.

    checkpoint_sha256: null if only a part of the file was downloaded.
    output: the file that was written. ``format``: safetensors, npz or compact.
    next: the command that judges a port.
    """

    checkpoint: str
    checkpoint_sha256: str | None
    source: HubOrigin | None
    reference: str
    variant: str
    dtype: str
    inputs: InputsRecord
    taps: tuple[RecordedTap, ...]
    output: str
    format: str
    size: int
    next: str


@dataclass(frozen=True, kw_only=True)
class ScriptTable(Record):
    """Where the script finds the taps of one component in one kind of model.

    taps: ``{i}`` is the number of a layer.
    """

    name: str
    component: str
    taps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScriptWritten(Document):
    """A script that records a port's activations was written. ``size`` in bytes.

    output: the file. ``module``: its name in Python.
    tables: the kinds of models whose modules it knows.
    next: the command that judges what it records.
    """

    output: str
    module: str
    size: int
    tables: tuple[ScriptTable, ...]
    next: str


@dataclass(frozen=True, kw_only=True)
class ParityDocument(Document):
    """Original and candidate side by side.

    port: where the candidate ran elsewhere.
    values: the first values of projected and pooled.
    graph: with a graph as the candidate.
    judged: the file of activations that was judged.
    not_compared: tensors of the folder that are not the text encoder's.
    not_read_allowed: --allow-not-read was given.
    released: the reference beside what was recorded of the released weights; null if the file can't be one of them.
    heat_map: with --report.
    page: with --report.
    """

    sides: ComparedSides = field(metadata=flat())
    inputs: InputsRecord
    judgement: JudgementRecord = field(metadata=flat())
    values: dict[str, Sides]
    diagnosis: DiagnosisRecord | None = None
    notes: tuple[str, ...]
    verdicts: Verdicts
    behaviour: BehaviourRecord | None = None
    worst_prompts: tuple[WorstPrompt, ...] = ()
    not_compared: int = 0
    not_read_allowed: bool = False
    released: ReleasedCheck | None = None
    original_repo: CheckoutRecord | None = None
    saved_activations: str | None = None
    judged: str | None = None
    source: HubOrigin | None = None
    fetched: Fetched | None = None
    heat_map: HeatMap | None = field(default=None, metadata=optional())
    page: PageFacts | None = field(default=None, metadata=optional())
    report_error: str | None = field(default=None, metadata=optional())
    port: PortRecord | None = field(default=None, metadata=optional())
    graph: GraphRecord | None = field(default=None, metadata=optional())

    @property
    def failed(self) -> bool:
        """Whether the weights did not pass."""
        return refuses(self.judgement.verdict, self.not_read_allowed)


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Record):
    """One fault made on purpose.

    made_in: its tap.
    cause: what the diagnosis said.
    """

    fault: str
    made_in: str
    outcome: TrialOutcome
    first_divergence: str | None
    cause: str | None


@dataclass(frozen=True, kw_only=True)
class SelfTestInputs(Record):
    """What a self-test runs on.

    what: in words.
    shape: (batch, sequence).
    """

    what: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SelfTestDocument(Document):
    """Known faults made one at a time: is each found in its layer and named?

    counts: faults by outcome.
    """

    checkpoint: str
    converted: str | None
    candidate: str
    inputs: SelfTestInputs
    verdict: Literal["passed", "failed"]
    counts: dict[str, int]
    faults: tuple[TrialRecord, ...]
