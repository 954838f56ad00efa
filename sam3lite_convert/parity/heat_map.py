"""The heat map of the HTML report: differences at one tap by position and channel."""

from __future__ import annotations

from collections.abc import Sequence

from sam3lite_convert.parity.compare import absolute_difference
from sam3lite_convert.parity.encoders import Activations
from sam3lite_convert.parity.judgement import Judgement
from sam3lite_convert.parity.taps import point_of
from sam3lite_convert.records.parity import HeatMap

_COLUMNS = 64  # each shows one channel, or the greatest of several adjacent ones


def heat_map(
    judgement: Judgement,
    reference: Activations,
    candidate: Activations,
    isolated: Activations,
    prompts: Sequence[str] = (),
) -> HeatMap | None:
    """Max abs diff by position and channel of the worst row; None if the verdict is exact.

    The tap is the first divergence, or else the one with the greatest difference. ``isolated`` may lack taps.
    """
    if judgement.verdict == "exact":  # only taps that the detector does not read may differ, within their floors
        return None
    tap = judgement.first_divergence
    # A module that is wrong by itself is shown with the right input.
    alone = tap is not None and tap in isolated
    if tap is None:
        wide = [t for t in judgement.taps if point_of(t.name).has_positions and t.difference.max_abs]
        tap = max(wide or judgement.taps, key=lambda t: t.difference.max_abs).name
    difference = absolute_difference(reference[tap], isolated[tap] if alone else candidate[tap])
    row = int(difference.flatten(1).amax(1).argmax())
    picture = difference[row].reshape(-1, difference.shape[-1])
    step = -(-picture.shape[1] // _COLUMNS)
    return HeatMap(
        tap=tap,
        isolated=alone,
        prompt=prompts[row] if prompts else None,
        row=row,
        positions=picture.shape[0],
        channels=picture.shape[1],
        channels_per_column=step,
        values=tuple(tuple(float(piece.max()) for piece in line.split(step)) for line in picture),
    )
