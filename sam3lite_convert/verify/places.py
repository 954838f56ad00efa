"""Where the faults of a folder lie: by component and layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sam3lite_convert.plan.architecture import component_of
from sam3lite_convert.records.verify import PlaceRecord
from sam3lite_convert.verify.findings import Values
from sam3lite_convert.verify.verify import Verification

_LAYER = re.compile(r"(?:^|\.)(\w+)\.(\d+)\.")


@dataclass
class _Place:
    tensors: int = 0
    off: int = 0
    filled: int = 0
    values: Values | None = None


def places(outcome: Verification) -> tuple[PlaceRecord, ...]:
    """Every layer of every component that the model has, in the order of the plan; keys that it lacks are in none."""
    wrong = {d.key: d for d in outcome.differences if d.fatal}
    found: dict[tuple[str, str, int | None], _Place] = {}
    for key, piece in outcome.plan.mapped.items():
        layer = _LAYER.search(piece.canonical)
        where = (layer[1], int(layer[2])) if layer else ("", None)
        place = found.setdefault((component_of(piece.canonical), *where), _Place())
        place.tensors += 1
        place.filled += not piece.sources
        if key in wrong:
            place.off += 1
            values = wrong[key].values
            if values:
                place.values = place.values + values if place.values else values
    return tuple(
        PlaceRecord(
            component=component,
            stack=stack,
            layer=layer,
            tensors=place.tensors,
            off=place.off,
            filled=place.filled,
            relative_l2=place.values.relative_l2 if place.values else None,
            max_abs_diff=place.values.max_abs if place.values else None,
        )
        for (component, stack, layer), place in found.items()
    )
