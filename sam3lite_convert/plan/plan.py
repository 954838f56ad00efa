"""The plan: every source key is mapped or dropped with a reason, and every target is filled once.

It is made from names and shapes only. ``make_plan`` returns a sound plan, or raises with all faults that it found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor, joined, zeros
from sam3lite_convert.checkpoint.kinds import Kind
from sam3lite_convert.errors import Sam3LiteError, UnsoundPlan
from sam3lite_convert.plan.architecture import COUNTER, POSITION_TABLES, TEXT, VISION, Architecture, component_of
from sam3lite_convert.plan.context import CalledContext, called_context
from sam3lite_convert.plan.copies import check_copies, unknown_prefix
from sam3lite_convert.plan.families import Family, Variant, family_of
from sam3lite_convert.plan.infer import FILLED_LEVELS, infer_architecture, with_levels
from sam3lite_convert.plan.kinds import NO_TEXT, kind_of_names
from sam3lite_convert.plan.names import OTHER_COPY, Names, canonical_names, released_key
from sam3lite_convert.plan.operations import Operation, Slice, Zeros, joined_shape
from sam3lite_convert.plan.refusal import refusal
from sam3lite_convert.plan.renamed import Trial
from sam3lite_convert.plan.stated import stated_causal, stated_vision
from sam3lite_convert.plan.tables import Layout, Mappings, Rule
from sam3lite_convert.plan.targets import MODEL, empty_lists, expected_targets, written_name
from sam3lite_convert.plan.twins import Twin, reason_of, twins_of
from sam3lite_convert.plan.unsound import Expected, PlanFault, shape_text
from sam3lite_convert.records.receipt import MappedTensor
from sam3lite_convert.records.shared import Counts

OUTSIDE_TEXT = "not part of the text encoder (--component text)"


@dataclass(frozen=True)
class Options:
    """The options that a plan depends on.

    ``layout``: name of the target layout; None for the one that the checkpoint's family is described by. A plan has
    its name.
    ``component``: ``all`` (the detector with its text encoder), ``text``, or another that a layout is for: ``video``.
    ``dtype``: of floating-point tensors; None keeps the dtype of each tensor.
    ``context``: the context that the model is called with, in tokens; None for what the file states.
    ``causal``: whether the text encoder uses a causal mask.
    """

    layout: str | None = None
    component: str = "all"
    dtype: str | None = None
    context: int | None = None
    causal: bool = False


@dataclass(frozen=True)
class Mapped:
    """One target tensor and the source it comes from.

    ``key`` is the name in the written file, ``target`` the name that the tables give it;
    ``operation`` is the rule's, with the cut of the context where the table is longer; ``slice``: which
    elements of the source it holds.
    """

    key: str
    target: str
    file: str
    source: StoredTensor
    canonical: str
    rule: Rule
    operation: Operation
    slice: Slice
    dtype: str

    @property
    def part(self) -> str | None:
        """q, k or v of a split."""
        return self.slice.label

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The tensors of the checkpoint that it comes from: several if they were joined, none if it is filled."""
        if self.source.absent:
            return ()
        return self.source.parts if self.operation.joins else (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slice.shape

    @property
    def begin(self) -> int:
        """Where the slice begins in the contiguous source tensor, in bytes."""
        return self.slice.begin * dtypes.itemsize(self.source.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the slice in the source."""
        return self.slice.numel * dtypes.itemsize(self.source.dtype)

    @property
    def position_table(self) -> bool:
        """Whether it is the text encoder's position table, which is cut to the context."""
        return self.canonical in POSITION_TABLES

    @property
    def casts(self) -> bool:
        return self.dtype != self.source.dtype

    @property
    def out_nbytes(self) -> int:
        return math.prod(self.shape) * dtypes.itemsize(self.dtype)

    def record(self) -> MappedTensor:
        """The entry of ``tensors`` in the receipt."""
        keys = tuple(source.key for source in self.sources)
        return MappedTensor(
            source=keys[0] if len(keys) > 1 else self.source.key,
            sources=keys if len(keys) > 1 else None,
            operation=self.operation.name,
            part=self.part,
            dtype=self.dtype,
            shape=self.shape,
        )


@dataclass(frozen=True)
class Dropped:
    """A source tensor without a target: ``label`` groups, ``reason`` explains."""

    source: StoredTensor
    canonical: str
    label: str
    reason: str
    rule: Rule | None = None

    @property
    def copy(self) -> bool:
        """Whether it is a second copy of a tensor, or of one in another copy of the model."""
        return self.label == "twin" or self.label.startswith(OTHER_COPY)


@dataclass(frozen=True)
class Plan:
    """A sound plan. ``mapped`` is by key of the written file, ``dropped`` by source key. ``variants``: of the family,
    that the checkpoint is. ``own_tables``: whether it was made with tables of the user's.
    ``absent``: targets that are not written, since the layout in whose names the checkpoint is has no place for their
    source, with why."""

    checkpoint: Checkpoint
    names: Names
    architecture: Architecture
    layout: Layout
    options: Options
    mappings_sha256: str
    mapped: dict[str, Mapped]
    dropped: dict[str, Dropped]
    twins: tuple[Twin, ...]
    variants: tuple[Variant, ...] = ()
    own_tables: bool = False
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the checkpoint is, in words."""
        return self.layout.family.described(self.names.sources)

    @property
    def context(self) -> CalledContext:
        """The context that the model is called with, beside the rows of its table.

        Raises ValueError if the plan was not made by ``make_plan``.
        """
        if self.architecture.context is None:
            raise ValueError("the architecture was made from shapes alone, which do not tell the context")
        return self.architecture.context

    @property
    def counts(self) -> Counts:
        """Source tensors in all, mapped and dropped (they add up), and target tensors, with those that are filled."""
        return Counts(
            source=len(self.checkpoint.tensors),
            mapped=len({source.key for m in self.mapped.values() for source in m.sources}),
            dropped=len(self.dropped),
            target=len(self.mapped),
            filled=len(self.filled) or None,
        )

    @property
    def dropped_by_label(self) -> dict[str, int]:
        return dict(Counter(d.label for d in self.dropped.values()))

    @property
    def filled(self) -> tuple[str, ...]:
        """Keys of the written files whose tensor the source lacks; they are filled with 0."""
        return tuple(key for key, piece in self.mapped.items() if piece.source.absent)

    @property
    def filled_levels(self) -> tuple[str, ...]:
        """Those of them that are no counters: of levels of the neck that the model throws away."""
        return tuple(key for key in self.filled if not key.endswith(COUNTER))

    @property
    def not_read(self) -> tuple[str, ...]:
        """Source keys of the text encoder that are dropped: the architecture that is known here has no place for them,
        so what the original computes with them is unknown. A key of no known component is taken for one of the text
        encoder if its name says so."""
        return tuple(k for k, d in self.dropped.items() if not d.copy and _may_be_text(d))

    @property
    def unchecked(self) -> int:
        """The number of targets that the layout takes as they are: nothing tells whether all are there."""
        return sum(m.target.startswith(self.layout.open) for m in self.mapped.values()) if self.layout.open else 0

    @property
    def out_nbytes(self) -> int:
        return sum(m.out_nbytes for m in self.mapped.values())

    @property
    def floating_dtype(self) -> str:
        """The widest floating dtype of the output: what config.json states."""
        present = {m.dtype for m in self.mapped.values()}
        return next((d for d in dtypes.FLOATING if d in present), "float32")


# Words in the names of tensors that text encoders were extended with.
_OF_TEXT = re.compile(r"text|lang|prompt|token|adapter|lora", re.IGNORECASE)


def _may_be_text(dropped: Dropped) -> bool:
    if dropped.canonical.startswith(TEXT):
        return True
    unknown = component_of(dropped.canonical) == "other" and dtypes.is_floating(dropped.source.dtype)
    return unknown and _OF_TEXT.search(dropped.canonical) is not None


def make_plan(checkpoint: Checkpoint, mappings: Mappings, options: Options) -> Plan:
    """Plan a conversion, reading no tensor data.

    Raises UnsoundPlan with all faults in ``details``; CannotRun if the checkpoint or the layout does not allow the
    options; Untrusted if the shapes of twins differ.
    """
    names = canonical_names(checkpoint, mappings.spellings)
    family = family_of(names.sources)
    variants = tuple(family.variants_in(names.sources))
    check_copies(checkpoint, names)
    twins = tuple(twins_of(checkpoint, names))
    try:
        _refuse_relatives(family, names.sources)
        asked = options.layout or family.layout
        layout = mappings.layout(asked, family, options.component, (v.name for v in variants))
        options = replace(options, layout=layout.name)
        architecture = _architecture(checkpoint, names, layout, options)
    except UnsoundPlan as fault:
        # A part of a detector may be one whose text encoder stands under other names.
        _refuse_kind(checkpoint, checkpoint.tensors, but=NO_TEXT)
        if fault.code != "unsupported_checkpoint":
            unknown_prefix(checkpoint, mappings.spellings, layout, names)
            if renamed := _refusal(checkpoint, names, None, mappings, layout, options):
                raise renamed from None
        _refuse_kind(checkpoint, checkpoint.tensors)
        fault.message = f"{checkpoint.path.name}: {fault.message}"
        raise
    if stated_causal(checkpoint.config) and not (options.causal or family.causal):
        raise UnsoundPlan(
            f"{checkpoint.path.name}: the config.json beside it states that its text encoder masks causally, which the "
            "weights do not tell. Say so with --causal.",
            "causal_not_stated",
        )
    if options.causal and not (layout.causal or family.causal):
        able = " or ".join(f"--layout {other.name}" for other in mappings.of_family(family) if other.causal)
        raise UnsoundPlan(
            f"the layout {layout.name} has no causal attention mask, so the converted model would compute something "
            f"else. Use {able}.",
            "causal_not_expressible",
        )
    architecture, kept = _in_context(checkpoint, architecture, options)
    gone = _without_place(checkpoint, mappings, family)
    mapped, dropped, faults, absent = _draft(checkpoint, names, architecture, layout, options, kept, gone)
    if faults:
        _refuse_kind(checkpoint, {k: t for k, t in checkpoint.tensors.items() if k not in dropped})
        unknown_prefix(checkpoint, mappings.spellings, layout, names)
        if refused := _refusal(checkpoint, names, faults, mappings, layout, options):
            raise refused
    for key, (label, reason) in names.left.items():
        dropped[key] = Dropped(checkpoint.tensors[key], key, label, reason)
    for canonical, keys in names.twins.items():
        for key in keys[1:]:
            dropped[key] = Dropped(checkpoint.tensors[key], canonical, "twin", reason_of(keys[0]))
    final = {}
    for piece in mapped.values():
        file, key = written_name(piece.target, layout, options.component)
        final[key] = replace(piece, file=file, key=key)
    return Plan(
        checkpoint, names, architecture, layout, options, mappings.sha256, final,
        {k: dropped[k] for k in checkpoint.tensors if k in dropped}, twins, variants, mappings.own, absent,
    )  # fmt: skip


def _without_place(checkpoint: Checkpoint, mappings: Mappings, family: Family) -> tuple[Rule, ...]:
    """The rules that drop what the layout in whose names the checkpoint is has no place for."""
    turned = checkpoint.turned_back
    if turned is None:
        return ()
    layout = mappings.layout(turned.layout, family, turned.component)
    return tuple(rule for rule in layout.rules if not rule.targets)


def _architecture(checkpoint: Checkpoint, names: Names, layout: Layout, options: Options) -> Architecture:
    """The architecture that names and shapes show. Raises UnsoundPlan if they show none, or a relative's."""
    shapes = {name: checkpoint.tensors[keys[0]].shape for name, keys in names.sources.items()}
    _refuse_variants(layout, shapes, options.component)
    architecture = infer_architecture(shapes, options.causal, stated_vision(checkpoint.config))
    if layout.neck_levels and options.component != "text" and architecture.vision is not None:
        return with_levels(architecture, layout.neck_levels)
    return architecture


def _in_context(
    checkpoint: Checkpoint, architecture: Architecture, options: Options
) -> tuple[Architecture, int | None]:
    """The architecture with the context that it is called with, and the rows that the text position table is cut to;
    None if it is kept whole."""
    rows = architecture.sizes["context"]
    architecture = architecture.with_context(called_context(checkpoint, rows, options.context))
    return architecture, architecture.sizes["context"] if architecture.sizes["context"] < rows else None


def _draft(
    checkpoint: Checkpoint,
    names: Names,
    architecture: Architecture,
    layout: Layout,
    options: Options,
    kept: int | None,
    gone: tuple[Rule, ...] = (),
) -> tuple[dict[str, Mapped], dict[str, Dropped], list[PlanFault], dict[str, str]]:
    """What is mapped, by target, what a rule drops, by source key, all faults, and the targets that may be absent.

    gone: rules for sources that the checkpoint cannot hold.

    Raises UnsoundPlan if a tensor that is mapped cannot be read.
    """
    expected = dict(expected_targets(layout, architecture, options.component))
    candidates, dropped, faults = _match(checkpoint, names, layout, options)
    mapped: dict[str, Mapped] = {}
    for rule, source, canonical, targets in _joined(candidates, faults):
        if source.overlaps:  # what is dropped need not be readable
            raise UnsoundPlan(
                f"{checkpoint.path.name}: {source.key} is an overlapping view; save it again after .contiguous()",
                "overlapping_view",
            )
        try:
            pieces = _pieces(rule, source, canonical, targets, options, kept)
        except ValueError as fault:
            faults.append(PlanFault("wrong_shape", source.key, f"is {shape_text(source.shape)}; {fault}"))
            # Its target is not reported a second time as unfilled.
            pieces = []
            for target in targets:
                expected.pop(target, None)
        for piece in pieces:
            faults += _place(piece, mapped, expected, layout.open)
    for found in faults:
        if found.kind == "not_joined":  # its target is not reported a second time as unfilled
            expected.pop(found.key, None)
    for piece in _filled(mapped, expected, layout, architecture, options):
        mapped[piece.target] = piece
    absent = dict(_absent((t for t in expected if t not in mapped), layout, gone))
    unmade = checkpoint.turned_back.unmade if checkpoint.turned_back else frozenset()

    def known(target: str) -> bool:
        """Whether it is reported already that the parts of its source could not make it."""
        return any(released_key(source) in unmade for _, sources in layout.leading_to(target) for source in sources)

    expected = {t: n for t, n in expected.items() if t not in absent and (t in mapped or not (unmade and known(t)))}
    faults += _unfilled(mapped, expected, layout, names, checkpoint.others)
    reported = tuple(f.key + "." for f in faults if f.kind == "missing_component")
    empty = empty_lists(layout, architecture, options.component)
    faults += [f for f in empty if not f"{f.key}.".startswith(reported)]
    return mapped, dropped, faults, absent


def _absent(empty: Iterable[str], layout: Layout, gone: tuple[Rule, ...]) -> Iterator[tuple[str, str]]:
    """Those of these targets whose source the checkpoint cannot hold, with why: ``gone`` are rules for such sources."""
    for target in empty if gone else ():
        sources = [source for _, some in layout.leading_to(target) for source in some]
        found = next((rule for source in sources for rule in gone if rule.apply(source) is not None), None)
        if found is not None:
            yield target, found.reason


def _refusal(
    checkpoint: Checkpoint,
    names: Names,
    faults: Sequence[PlanFault] | None,
    mappings: Mappings,
    layout: Layout,
    options: Options,
) -> UnsoundPlan | None:
    """The error for a plan that is not sound.

    faults: None if no architecture can be inferred. None if then none can, by whatever names.
    """

    def trial(names: Names, faults: Sequence[PlanFault] | None) -> Trial:
        ranks = {name: len(checkpoint.tensors[keys[0]].shape) for name, keys in names.sources.items()}
        return Trial(names, ranks, faults)

    def attempt(others: tuple[Rule, ...]) -> Trial:
        names = canonical_names(checkpoint, others)
        try:
            architecture, kept = _in_context(checkpoint, _architecture(checkpoint, names, layout, options), options)
            return trial(names, _draft(checkpoint, names, architecture, layout, options, kept)[2])
        except Sam3LiteError:
            return trial(names, None)

    return refusal(checkpoint.path.name, trial(names, faults), mappings, layout, options.component, attempt)


def _refuse_kind(checkpoint: Checkpoint, tensors: dict[str, StoredTensor], but: Kind | None = None) -> None:
    """Raises UnsoundPlan if these tensors, which gave no sound plan, tell what kind of file it is instead.

    but: a kind that is not told.
    """
    kind = kind_of_names(tensors, checkpoint.metadata)
    if kind is not None and kind is not but:
        refusal = kind.refusal()
        refusal.message = f"{checkpoint.path.name}: {refusal.message}"
        raise refusal


def _refuse_relatives(family: Family, names: Iterable[str]) -> None:
    """Raises UnsoundPlan if canonical names tell a kind that is converted to no layout."""
    names = list(names)
    if not (found := family.relatives_in(names)):
        return
    kinds = [*(r.kind for r in found), *(v.described(names) for v in family.variants_in(names))]
    raise UnsoundPlan(
        f"this is {found[0].kind}, not a {family.name} detector: {found[0].why}. This tool cannot convert it; give a "
        f"{family.name} checkpoint: sam3lite inspect s0 shows a released one.",
        "unsupported_checkpoint",
        {"kind": found[0].kind, "kinds": kinds, "component_text": False},
    )


def _refuse_variants(layout: Layout, names: Iterable[str], component: str) -> None:
    """Raises UnsoundPlan if canonical names tell a variant of the family that this layout does not take."""
    names, family = list(names), layout.family
    variants = family.variants_in(names)
    closed = [v for v in variants if not takes(layout, v, component)]
    if not closed:
        return
    kinds = [v.described(names) for v in variants]
    if component == "video" and all(v.whole for v in variants):
        way = "Its tracker has no class in transformers; leave out --component video to convert its detector."
    else:
        way = (
            f"Its text encoder is that of {family.name}: convert it with --component text, or the whole file to "
            "the original's own names with --layout original."
        )
    raise UnsoundPlan(
        f"this is {' and '.join(kinds)}, not a {family.name} detector: {'; '.join(v.why for v in closed)}. {way}",
        "unsupported_checkpoint",
        {"kind": closed[0].described(names), "kinds": kinds, "component_text": True},
    )


def takes(layout: Layout, variant: Variant, component: str) -> bool:
    """Whether a component of a variant can be converted to the layout."""
    if component == "text":
        return True
    if component == "video":
        return variant.video
    return variant.whole or layout.variant == variant.name


Candidate = tuple[Rule, StoredTensor, str, tuple[str, ...]]


def _match(
    checkpoint: Checkpoint, names: Names, layout: Layout, options: Options
) -> tuple[list[Candidate], dict[str, Dropped], list[PlanFault]]:
    candidates: list[Candidate] = []
    dropped: dict[str, Dropped] = {}
    faults: list[PlanFault] = []
    for canonical, keys in names.sources.items():
        source = checkpoint.tensors[keys[0]]
        if options.component == "text" and not canonical.startswith(TEXT):
            dropped[source.key] = Dropped(source, canonical, "outside text", OUTSIDE_TEXT)
            continue
        found = layout.taking(canonical)
        if not found:
            why = checkpoint.turned_back.why.get(source.key) if checkpoint.turned_back else None
            kind = "not_turned_back" if why else "unmatched"
            faults.append(PlanFault(kind, source.key, why or "no rule matches this key"))
        elif len(found) > 1 and any(targets for _, targets in found):
            rules = " and ".join(f"[{r.name}] of {r.table}" for r, _ in found)
            faults.append(PlanFault("overlap", source.key, f"more than one rule matches: {rules}"))
        elif not found[0][0].targets:
            rule = found[0][0]  # of several that drop it, which a table of the user's may bring about, the first
            dropped[source.key] = Dropped(source, canonical, rule.name, rule.reason, rule)
        else:
            candidates.append((found[0][0], source, canonical, found[0][1]))
    return candidates, dropped, faults


def _joined(candidates: list[Candidate], faults: list[PlanFault]) -> Iterator[Candidate]:
    """The candidates, with those that are joined into one target as one candidate. Adds to ``faults`` those that do not
    fit each other; that one of them is missing is found where its target stays unfilled."""
    several: dict[tuple[str, ...], dict[str, StoredTensor]] = {}
    for rule, source, canonical, targets in candidates:
        if not rule.operation.joins:
            yield rule, source, canonical, targets
            continue
        wanted = rule.sources(targets[0])
        there = several.setdefault(targets, {})
        there[canonical] = source
        if not all(name in there for name in wanted):
            continue
        parts = [there[name] for name in wanted]
        try:
            whole = joined(parts[0].key, joined_shape([part.shape for part in parts]), parts)
        except ValueError as fault:
            faults.append(PlanFault("not_joined", targets[0], str(fault), sources=tuple(part.key for part in parts)))
            continue
        yield rule, whole, wanted[0], targets


def _pieces(
    rule: Rule, source: StoredTensor, canonical: str, targets: tuple[str, ...], options: Options, kept: int | None
) -> list[Mapped]:
    """The targets of one source. ``kept``: rows that the text position table is cut to; None if it is kept whole.

    Raises ValueError if its shape does not allow the operation.
    """
    dtype = options.dtype if options.dtype and dtypes.is_floating(source.dtype) else source.dtype
    if dtypes.safetensors_code(dtype) is None:
        raise ValueError(f"its dtype {dtype} has no place in a safetensors file")
    operation = rule.operation
    if canonical in POSITION_TABLES and kept is not None:
        operation = operation.cut(kept)
    return [
        Mapped(target, target, MODEL, source, canonical, rule, operation, part, dtype)
        for target, part in zip(targets, operation.slices(source.shape), strict=True)
    ]


def _place(
    piece: Mapped, mapped: dict[str, Mapped], expected: dict[str, Expected], taken_as_they_are: tuple[str, ...]
) -> list[PlanFault]:
    other = mapped.get(piece.target)
    if other is not None:
        return [
            PlanFault(
                "collision",
                piece.target,
                f"two tensors would be written to this target: {other.source.key} (rule [{other.rule.name}]) and "
                f"{piece.source.key} (rule [{piece.rule.name}])",
            )
        ]
    mapped[piece.target] = piece
    if piece.target not in expected and piece.target.startswith(taken_as_they_are):
        return []
    if piece.target not in expected:
        detail = f"the layout has no such tensor; rule [{piece.rule.name}] writes {piece.source.key} to it"
        return [PlanFault("unknown_target", piece.target, detail, sources=(piece.source.key,))]
    want = expected[piece.target]
    if len(want) != len(piece.shape) or any(w not in (None, n) for w, n in zip(want, piece.shape, strict=True)):
        detail = (
            f"has shape {shape_text(piece.source.shape)}; {piece.target} would be {shape_text(piece.shape)}, "
            f"but the model needs {shape_text(want)}"
        )
        return [PlanFault("wrong_shape", piece.source.key, detail)]
    if not dtypes.is_floating(piece.source.dtype) and not piece.canonical.endswith(COUNTER):
        detail = f"has dtype {piece.source.dtype}; weights must be floating-point (quantised files are not supported)"
        return [PlanFault("wrong_dtype", piece.source.key, detail)]
    return []


def _filled(
    mapped: dict[str, Mapped],
    expected: dict[str, Expected],
    layout: Layout,
    architecture: Architecture,
    options: Options,
) -> list[Mapped]:
    """What no source fills and need not, as zeros. What else a layer lacks is reported as ever.

    BatchNorm counters: evaluation does not read them, and a file of parameters that were averaged has none. Levels of
    the neck that are not in the file: what reads the layout needs them and throws them away.
    """
    levels = tuple(f"{VISION}convs.{i}." for i in architecture.blocks.get(FILLED_LEVELS, ()))
    dtype = next((m.source.dtype for m in mapped.values() if m.canonical.startswith(f"{VISION}convs.")), "float32")
    out = []
    for target, shape in expected.items():
        if target in mapped or None in shape:
            continue
        module, _, leaf = target.rpartition(".")
        counter = leaf == COUNTER and f"{module}.weight" in mapped
        found = next(((rule, sources[0]) for rule, sources in layout.leading_to(target)), None)
        if found is None or not (counter or found[1].startswith(levels)):
            continue
        rule, source = found
        stored = zeros(source, "int64" if counter else dtype, tuple(n or 0 for n in shape))
        cast_to = options.dtype if options.dtype and not counter else stored.dtype
        (part,) = Zeros().slices(stored.shape)
        out.append(Mapped(target, target, MODEL, stored, source, rule, Zeros(), part, cast_to))
    return out


def _unfilled(
    mapped: dict[str, Mapped],
    expected: dict[str, Expected],
    layout: Layout,
    names: Names,
    others: frozenset[str],
) -> list[PlanFault]:
    empty = [t for t in expected if t not in mapped]
    by_module: dict[str, list[str]] = {}
    for target in expected:
        by_module.setdefault(layout.module(target), []).append(target)
    whole = {m for m, targets in by_module.items() if not any(t in mapped for t in targets)}
    faults = [
        PlanFault("missing_component", m, f"the file has none of the {len(by_module[m])} tensors of this component")
        for m in sorted(whole)
    ]
    for target in empty:
        if layout.module(target) in whole:
            continue
        sources = [source for _, some in layout.leading_to(target) for source in some]
        absent = [names.prefix + s for s in sources if s not in names.sources]
        detail = f"its source {' or '.join(absent)} is missing" if absent else "no rule writes it"
        if strange := [key for key in absent if key in others]:
            detail = f"its source {' or '.join(strange)} is in the file but is not a tensor"
        faults.append(PlanFault("unfilled", target, detail, sources=tuple(absent)))
    return faults
