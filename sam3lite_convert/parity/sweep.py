"""Run many prompts through both encoders, batch by batch, and find the worst ones.

Isolated activations, noise floors and the likely cause need more than one pass of each side. They are computed for the
worst prompts only, so thousands of prompts cost little more than one pass of each side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam3lite_convert.parity.compare import Running, compare, row_means
from sam3lite_convert.parity.encoders import Activations, Candidate
from sam3lite_convert.parity.inputs import BATCH, Inputs
from sam3lite_convert.parity.judgement import Judgement, require_finite
from sam3lite_convert.parity.original import wrap_reference
from sam3lite_convert.parity.setup import Setup
from sam3lite_convert.parity.taps import text_features
from sam3lite_convert.records.parity import WorstPrompt

_LISTED = 10
_FIRST = 16  # prompts compared closely because they are the worst at the ranking tap


@dataclass(frozen=True)
class Sweep:
    """The differences over all prompts.

    ``inputs``: all prompts.
    ``totals``: tap -> difference over all prompts.
    ``greatest``: tap -> max abs diff of each prompt, (prompts,).
    ``means``: tap -> mean abs diff of each prompt, (prompts,).
    ``valid``: tap -> max abs diff at words; None if there are none.
    ``padded``: tap -> max abs diff at padding; None if there is none.
    """

    inputs: Inputs
    totals: dict[str, Running]
    greatest: dict[str, Tensor]
    means: dict[str, Tensor]
    valid: dict[str, float | None]
    padded: dict[str, float | None]

    def worst(self) -> list[int]:
        """The prompts to compare closely, the worst first.

        The worst prompts of every tap are included, by max and by mean abs diff.
        """
        chosen: dict[int, None] = {}
        first = self.greatest[ranking_tap({tap: float(g.max()) for tap, g in self.greatest.items()})]
        each = max(1, (BATCH - _FIRST) // (2 * len(self.greatest)))
        for figures, many in [(first, _FIRST), *((f, each) for f in (*self.greatest.values(), *self.means.values()))]:
            order = figures.argsort(descending=True, stable=True)[:many]
            chosen |= dict.fromkeys(n for n in order.tolist() if figures[n] > 0)
        return list(chosen)[:BATCH]


def ranking_tap(greatest: Mapping[str, float]) -> str:
    """The tap that prompts are ranked by: the text features, or the first tap that differs if they do not.

    ``greatest``: max abs diff by tap.
    """
    differing = [tap for tap, most in greatest.items() if most]
    features = text_features(list(greatest))
    return features if features in differing or not differing else differing[0]


def sweep(setup: Setup, candidate: Candidate, advance: Callable[[int], None] = lambda n: None) -> Sweep:
    """Run each side once over every input.

    ``advance``: called with the number of rows after each batch.

    Raises CannotRun if the reference gives NaN or infinity for an input.
    """
    inputs = setup.every
    taps = candidate.taps
    totals = {tap: Running() for tap in taps}
    greatest: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    means: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    valid: dict[str, float | None] = dict.fromkeys(taps)
    behind: dict[str, float | None] = dict.fromkeys(taps)
    for first in range(0, len(inputs.ids), BATCH):
        part = inputs.rows(range(first, min(first + BATCH, len(inputs.ids))))
        ids, padded = part.ids, part.padded
        ours, theirs = setup.reference.record(ids), candidate.record(ids)
        require_finite(ours)
        for tap in taps:
            reference = ours[tap]
            if torch.equal(reference, theirs[tap]):
                totals[tap].add_equal(reference)
                greatest[tap].append(torch.zeros(len(ids), dtype=torch.float64))
                means[tap].append(greatest[tap][-1])
                by_token = None
            else:
                difference = totals[tap].add(reference, theirs[tap])
                by_token = difference.amax(-1)
                greatest[tap].append(by_token.reshape(len(ids), -1).amax(1))
                means[tap].append(row_means(difference))
            if reference.shape[:-1] == padded.shape:
                valid[tap] = _greater(valid[tap], by_token, ~padded)
                behind[tap] = _greater(behind[tap], by_token, padded)
        advance(len(ids))
    most, mean = ({tap: torch.cat(found) for tap, found in kind.items()} for kind in (greatest, means))
    return Sweep(inputs, totals, most, mean, valid, behind)


def _greater(so_far: float | None, by_token: Tensor | None, where: Tensor) -> float | None:
    if not bool(where.any()):
        return so_far
    return max(so_far or 0.0, float(by_token[where].max()) if by_token is not None else 0.0)


def focus(setup: Setup, swept: Sweep) -> Setup:
    """The setup for comparing the worst prompts closely, or the first ones if no prompt differs."""
    rows = swept.worst() or list(range(min(BATCH, len(swept.inputs.ids))))
    inputs = swept.inputs.rows(rows)
    recorded = setup.reference.record(inputs.ids)
    evidence = replace(setup.evidence, recorded=recorded, ids=inputs.ids)
    own = recorded
    if setup.own is not setup.recorded:
        own = wrap_reference(setup.evidence.model).record(inputs.ids)
    return replace(setup, inputs=inputs, recorded=recorded, own=own, evidence=evidence)


def over_all(judgement: Judgement, swept: Sweep) -> Judgement:
    """The judgement of the worst prompts, with the propagated differences of all prompts."""
    taps = [
        replace(t, difference=swept.totals[t.name].difference(), valid=swept.valid[t.name], padded=swept.padded[t.name])
        for t in judgement.taps
    ]
    return replace(judgement, taps=tuple(taps))


def worst_prompts(
    tap: str, rows: Sequence[int], inputs: Inputs, reference: Activations, candidate: Activations
) -> tuple[WorstPrompt, ...]:
    """The prompts with the greatest difference at a tap, the worst first; empty if the ids have no prompts.

    ``rows``: the indexes of ``inputs`` among all prompts.
    """
    found: list[WorstPrompt] = []
    for n, (row, prompt) in enumerate(zip(rows, inputs.prompts, strict=False)):
        d = compare(reference[tap][n : n + 1], candidate[tap][n : n + 1])
        if d.max_abs:
            figures = {"max_abs_diff": d.max_abs, "relative_l2": d.relative_l2}
            found.append(WorstPrompt(index=row, prompt=prompt, tap=tap, **figures))
    return tuple(sorted(found, key=lambda p: -p.max_abs_diff)[:_LISTED])
