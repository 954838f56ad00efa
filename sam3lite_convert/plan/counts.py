"""Counts of tensors and parameters, from an index or a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sam3lite_convert.checkpoint.index import Checkpoint, StoredTensor
from sam3lite_convert.plan.architecture import TEXT, component_of
from sam3lite_convert.plan.names import Names
from sam3lite_convert.plan.plan import Plan

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "freqs_cis", "positional_encoding_gaussian_matrix")


def parameters(tensors: Iterable[StoredTensor]) -> int:
    """Number of parameters in these tensors, without buffers (BatchNorm statistics, computed tables)."""
    return sum(t.numel for t in tensors if not t.key.endswith(_BUFFERS))


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

    def record(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "parameters": self.parameters,
            "mapped": self.mapped,
            "dropped": dict(self.dropped),
        }


def components(checkpoint: Checkpoint, names: Names, plan: Plan | None) -> dict[str, ComponentCount]:
    """Counts by component. Second spellings of a tensor count as keys, not as parameters."""
    out: dict[str, ComponentCount] = {}
    for canonical, keys in names.sources.items():
        entry = out.setdefault(component_of(canonical), ComponentCount())
        entry.keys += len(keys)
        entry.parameters += parameters([checkpoint.tensors[keys[0]]])
    if plan is not None:
        for canonical in {m.source.key: m.canonical for m in plan.mapped.values()}.values():
            out[component_of(canonical)].mapped += 1
        for dropped in plan.dropped.values():
            out[component_of(dropped.canonical)].dropped[dropped.label] += 1
    return out


def dtype_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """Number of tensors by dtype, most frequent first."""
    return dict(Counter(t.dtype for t in checkpoint.tensors.values()).most_common())
