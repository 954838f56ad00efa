"""Counts of tensors and parameters, from an index or a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.plan.architecture import TEXT, component_of
from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.shared import Accounting, ComponentRecord, DroppedKind

_BUFFERS = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "freqs_cis",
    "freqs_cis_real",
    "freqs_cis_imag",
    "freqs_cos",
    "freqs_sin",
    "positional_encoding_gaussian_matrix",
)


def parameters(tensors: Iterable[StoredTensor]) -> int:
    """Number of parameters in these tensors, without buffers (BatchNorm statistics, computed tables)."""
    return sum(t.numel for t in tensors if not t.key.endswith(_BUFFERS))


def mapped_names(plan: Plan) -> dict[str, str]:
    """The canonical name of each source that is mapped, by key."""
    canonical = {key: name for name, keys in plan.names.sources.items() for key in keys}
    return {source.key: canonical[source.key] for m in plan.mapped.values() for source in m.sources}


def text_parameters(plan: Plan) -> int:
    """Number of parameters of the converted text encoder with its projection."""
    pieces = (m for m in plan.mapped.values() if m.canonical.startswith(TEXT) and not m.canonical.endswith(_BUFFERS))
    out = 0
    for piece in pieces:
        count = 1
        for side in piece.shape:
            count *= side
        out += count
    return out


@dataclass
class ComponentCount:
    """One component of a checkpoint: tensors, parameters, and what the plan does with them."""

    keys: int = 0
    parameters: int = 0
    mapped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def record(self) -> ComponentRecord:
        """The counts as they are now."""
        return ComponentRecord(
            keys=self.keys, parameters=self.parameters, mapped=self.mapped, dropped=dict(self.dropped)
        )


def components(checkpoint: Checkpoint, names: Names, plan: Plan | None) -> dict[str, ComponentCount]:
    """Counts by component. Second spellings of a tensor, and keys that the user's selection leaves out, count as
    keys, not as parameters."""
    out: dict[str, ComponentCount] = {}
    for canonical, keys in names.sources.items():
        entry = out.setdefault(component_of(canonical), ComponentCount())
        entry.keys += len(keys)
        entry.parameters += parameters([checkpoint.tensors[keys[0]]])
    for key in names.left:
        out.setdefault(component_of(key), ComponentCount()).keys += 1
    if plan is not None:
        for canonical in mapped_names(plan).values():
            out[component_of(canonical)].mapped += 1
        for dropped in plan.dropped.values():
            out[component_of(dropped.canonical)].dropped[dropped.label] += 1
    return out


def accounting(checkpoint: Checkpoint, names: Names, plan: Plan | None) -> Accounting:
    """What becomes of every tensor, by component, with the sum and why tensors are dropped. Without a plan nothing is
    mapped or dropped."""
    parts = components(checkpoint, names, plan)
    total = ComponentCount(
        *(sum(getattr(c, name) for c in parts.values()) for name in ("keys", "parameters", "mapped"))
    )
    for part in parts.values():
        total.dropped += part.dropped
    reasons = {d.label: d.reason for d in plan.dropped.values()} if plan else {}
    reasons["twin"] = "second spelling of a tensor, equal to the bit"  # of each the plan names the first spelling
    kinds = (DroppedKind(kind=kind, tensors=n, reason=reasons[kind]) for kind, n in total.dropped.items())
    return Accounting(
        components={name: part.record() for name, part in parts.items()},
        total=total.record(),
        dropped_kinds=tuple(kinds),
    )


def dtype_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """Number of tensors by dtype, most frequent first."""
    return dict(Counter(t.dtype for t in checkpoint.tensors.values()).most_common())
