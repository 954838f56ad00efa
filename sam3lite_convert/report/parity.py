"""Shows a parity run: the table of taps, the verdict, the likely cause, and the self-test."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.table import Table

from sam3lite_convert.figures import VERDICTS, ids_shown, number, plural
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.parity import (
    CheckoutRecord,
    DiagnosisRecord,
    JudgementRecord,
    ParityDocument,
    SelfTestDocument,
    SuspectTensor,
    TapRecord,
    TapStatus,
    TrialRecord,
)
from sam3lite_convert.report import as_used, verbosity
from sam3lite_convert.report.terminal import conclude, listed, say, say_words, show, width

_LISTED = 20
_NAMED = 2  # taps in a sentence


def paritied(d: ParityDocument, debug: bool) -> None:
    """The comparison of two encoders; with ``debug`` a row for each tap."""
    sides, inputs, judgement = d.sides, d.inputs, d.judgement
    say(f"reference  {sides.reference}, from {sides.checkpoint}")
    if d.original_repo:
        _checkout(d.original_repo)
    say(f"candidate  {candidate(d)}")
    say(f"input      {computed_from(d)}")
    if not d.behaviour and inputs.prompts_total <= _LISTED:
        for prompt, ids in zip(inputs.prompts, inputs.ids, strict=False):
            say(f"  {prompt!r}: {ids_shown(ids)}")
    say()
    if debug:
        tap_table(judgement.layers)
    else:
        _outputs(d)
    read = [t for t in judgement.layers if t.read_by_detector]
    if inputs.prompts and read:
        last = read[-1]
        padded = "none" if last.padded_max_abs_diff is None else number(last.padded_max_abs_diff)
        say(f"{last.name}, max abs diff: {number(last.valid_max_abs_diff)} on words, {padded} on padding")
        _worst(d)
    if d.behaviour:
        as_used.behaved(d.behaviour)
    say()
    verdict(judgement)
    not_read(judgement.not_read, d.not_read_allowed)
    if d.diagnosis:
        diagnosis(d.diagnosis)
    if d.not_compared:
        others = f"the folder's other {d.not_compared:,} tensors"
        say(f"  only the text encoder was compared; for {others}: {sides.verify_command}")
    if d.released:
        say(f"released weights: {d.released.summary}", "bold green" if d.released.agrees else "yellow")
        say(f"  {d.released.request}")
    if d.graph is None:  # a graph is called in one way only
        as_used.verdict(d.behaviour)
    for text in d.notes:
        say(f"note: {text}")
    if d.saved_activations:
        say(f"Saved {d.saved_activations}. Next: sam3lite parity --judge {shell_path(d.saved_activations)}")
    elif judgement.verdict == "differs" and not debug:
        say("Next: the same command with --debug-intermediates shows every layer")


def _checkout(o: CheckoutRecord) -> None:
    """Which files of the user's checkout were run, and whether our own reference agrees with them."""
    say(f"           files that were run: {', '.join(o.files)}")
    if o.stood_in:
        say(f"           not run, replaced by stand-ins: {', '.join(o.stood_in)}")
    found, at = o.against_original_ref, ""
    if found.verdict == "differs":
        at = f", first at {found.first_divergence}; the causes below were found with original_ref"
    verdict = found.verdict.replace("_", " ")
    say(
        f"           compared with original_ref: {verdict}, max abs diff {number(found.max_abs_diff)}{at}",
        VERDICTS[found.verdict],
    )


def _worst(d: ParityDocument) -> None:
    """The prompts with the largest differences, unless all prompts are shown anyway."""
    if d.judgement.verdict == "exact" or not d.worst_prompts or d.inputs.prompts_total <= _LISTED:
        return
    say(f"the worst prompts, by max abs diff at {d.worst_prompts[0].tap}:")
    for w in d.worst_prompts:
        say(f"  {number(w.max_abs_diff)}  rel. L2 {number(w.relative_l2)}  no. {w.index + 1:,}: {w.prompt!r}")


def not_read(keys: tuple[str, ...], allowed: bool) -> None:
    """The text tensors that no module of the reference reads."""
    if not keys:
        return
    say(f"{len(keys):,} text tensors of the file are not read by the reference:", "yellow")
    listed(keys, lambda key: say(f"  {key}"))
    if not allowed:
        say("  --allow-not-read accepts this, and exits with 0 if nothing else differs")


def candidate(d: ParityDocument) -> str:
    """The candidate and where it comes from, in a line."""
    sides, port = d.sides, d.port
    if d.graph is not None:
        where = f"{d.graph.file} of {sides.converted}" if d.graph.file else "the plan, written for this run"
        return f"{sides.candidate_encoder}, from {where}, SHA-256 {d.graph.sha256[:12]}"
    if port is None:
        return f"{sides.candidate_encoder}, from {sides.converted or 'the plan, converted in memory'}"
    given = len(d.judgement.layers)
    taps = f"{given} of {given + len(d.judgement.not_given)} taps"
    alone = f", {port.isolated} of them also isolated" if port.isolated else ""
    what = f"{sides.candidate_encoder}, from {port.file}" if port.file else sides.candidate_encoder
    what = port.file if port.file == sides.candidate_encoder else what
    form = f" ({port.format})" if port.file else ""
    return f"{what}{form}: {taps}{alone}, {sides.dtype}"


def computed_from(d: ParityDocument) -> str:
    """The input and the dtype, in a line."""
    dtype = f"the original in {d.port.reference_dtype}" if d.port else d.sides.dtype
    return f"{d.inputs.what}; {dtype}, compared in float64"


def verdict(
    j: JudgementRecord,
    kind: str = "verdict 1, weights",
    names: Mapping[str, str] = MappingProxyType({}),
    full: bool = True,
    explain: bool = True,
) -> None:
    """The verdict, and where the candidate diverges first.

    ``names``: by tap, what a port calls it.
    ``full``: also the smallest tolerance that would have passed.
    ``explain``: also what the words of the table of taps mean.
    """
    conclude(f"{kind}: {j.verdict.replace('_', ' ')}: {j.summary}", VERDICTS[j.verdict])
    if full and j.max_abs_diff != 0 and math.isfinite(j.smallest_passing_tolerance):
        say(f"smallest tolerance that would have passed: {number(j.smallest_passing_tolerance)}")
    if j.first_divergence:
        others = j.also_diverging
        many = not full and len(others) > _NAMED
        listed_taps = f"{len(others)} later taps" if many else ", ".join(others)
        also = f" (independently also: {listed_taps})" if others else ""
        own = names.get(j.first_divergence)
        called = f", which the port calls {own}" if own and j.place == j.first_divergence else ""
        say(f"first divergence: {j.place}{called}{also}", "bold red")
        tap = next(t for t in j.layers if t.name == j.first_divergence)
        _because_of_the_mean(tap)
    if explain and any(t.status == "unknown" for t in j.layers):
        say("  unknown: carried on from there, or made at the tap; isolated.TAP would tell")


def _because_of_the_mean(t: TapRecord) -> None:
    """Say so where a tap diverges although its max abs diff passes."""
    if t.floor is None:
        return
    own = (t.isolated_max_abs_diff, t.isolated_tolerance, t.isolated_mean_abs_diff, t.floor.mean_isolated)
    if t.judged_by == "propagated":
        own = (t.max_abs_diff, t.tolerance, t.mean_abs_diff, t.floor.mean_propagated)
    error, limit, mean, floor = own
    if error is not None and error <= limit:
        say(f"  because of its mean abs diff of {number(mean)}; the noise floor is {number(floor)}")


def cause(d: DiagnosisRecord) -> None:
    """The likely cause, and others that fit as well."""
    say(f"likely cause: {d.cause}", "bold")
    for fit in [fit for fit in d.fits if not fit.likely][:3]:
        say(f"  also possible: {fit.cause}")


def diagnosis(d: DiagnosisRecord) -> None:
    """The likely cause, and the tensors behind it."""
    cause(d)
    graph = d.graph or ()
    listed(graph, lambda difference: say(f"  graph: {difference.what}", "red"))
    tensors = sorted(d.tensors, key=lambda t: t.fault is None)
    ours, theirs = common_start([t.target for t in tensors]), common_start([t.source for t in tensors])
    say(f"the tensors used by {d.tap}, {ours}*, and the rules that made them from {theirs}*:")

    def tensor(t: SuspectTensor) -> None:
        target, source = t.target.removeprefix(ours), t.source.removeprefix(theirs)
        say_words([f"  {target:<28}", f" <- {t.operation},", f"[{t.rule}] of {t.table}:", source], 6)
        if t.fault:
            say(f"      {t.fault}", "red")

    wrong = [t for t in tensors if t.fault]
    if wrong and not verbosity.verbose():
        listed(wrong, tensor)
        if others := len(tensors) - len(wrong):
            say(f"  --verbose lists the {plural(others, 'other')}, in which nothing was found")
    else:
        listed(tensors, tensor)


def common_start(names: list[str]) -> str:
    """What all names begin with, up to a dot."""
    start = os.path.commonprefix(names)  # noqa: RUF071  these are not paths
    return start[: start.rfind(".") + 1]


def tap_table(taps: tuple[TapRecord, ...], most: int | None = None) -> None:
    """One row for each tap; narrow terminals get fewer columns.

    ``most``: rows without ``--verbose``; the others become one row where they are left out. None: all.
    """
    wide, narrow = width() >= 120, width() < 66
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tap", no_wrap=True)
    names = ["propagated", "isolated", "x floor", "rel. L2", "cosine"]
    names = ["shape", *names[:3], "mean abs", *names[3:], "at", "reference", "candidate"] if wide else names
    if narrow:
        names = names[:1]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    left_out: list[TapRecord] = []

    def gap() -> None:
        if left_out:
            words = dict.fromkeys(_STATUS[t.status][0] for t in left_out)
            table.add_row(f"... {len(left_out)} more", *[""] * (len(table.columns) - 2), ", ".join(words))
            left_out.clear()

    shown = _shown_taps(taps, most)
    for n, t in enumerate(taps):
        if n not in shown:
            left_out.append(t)
            continue
        gap()
        over = "-" if t.floor is None or t.floors == 0 else f"{t.floors:.2g}"
        alone = "-" if t.judged_by == "propagated" else number(t.isolated_max_abs_diff)
        cells = [number(t.max_abs_diff), alone, over]
        rest = [number(t.relative_l2), as_used.cosine(t.cosine)]
        if wide:
            cells = ["x".join(map(str, t.shape)), *cells, number(t.mean_abs_diff), *rest]
            cells += [str(list(t.position)), _value(t.reference_value), _value(t.candidate_value)]
        else:
            cells += rest
        if narrow:
            cells = cells[:1]
        word, style = _STATUS[t.status]
        table.add_row(t.name, *cells, word, style=style)
    gap()
    show(table)


def _shown_taps(taps: Sequence[TapRecord], most: int | None) -> set[int]:
    """Which taps get a row: the last, those around the first that is off, and those from the first on."""
    if most is None or verbosity.verbose() or len(taps) <= most:
        return set(range(len(taps)))
    off = next((n for n, t in enumerate(taps) if t.status not in ("equal", "within")), 0)
    order = [len(taps) - 1, off, max(off - 1, 0), len(taps) - 2, min(off + 1, len(taps) - 1), *range(len(taps))]
    return set(list(dict.fromkeys(order))[: most - 2])  # two rows for what is left out


# The word at the end of a row, and the colour of the row.
_STATUS: dict[TapStatus, tuple[str, str | None]] = {
    "equal": ("equal", None),
    "within": ("within", None),
    "carried": ("carried", "yellow"),
    "unknown": ("unknown", "yellow"),
    "diverges": ("DIVERGES", "bold red"),
}


def _value(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else "inf"


def _outputs(d: ParityDocument) -> None:
    final = {t.name: t for t in d.judgement.layers}
    for name, sides in d.values.items():
        say(f"{name}: max abs diff {number(final[name].max_abs_diff)}, cosine {_value(final[name].cosine)}")
        for side, numbers in (("reference", sides.reference), ("candidate", sides.candidate)):
            say(f"  {side:<9}  " + "  ".join(f"{n:>11.7f}" for n in numbers) + "  ...")


def tried(t: TrialRecord) -> None:
    """One fault of the self-test."""
    styles = {"found": "green", "missed": "bold red", "not revealed": "yellow"}
    say(f"{t.outcome:<12}  {t.fault}", styles[t.outcome])
    if t.outcome == "found":
        say(f"              {t.first_divergence}: {t.cause}")
    elif t.outcome == "missed":
        say(f"              made in {t.made_in}, but found in {t.first_divergence}: {t.cause}")
    else:
        say(f"              with these inputs {t.made_in} stays within the noise floor; try --seed N --batch 8")


def self_tested(d: SelfTestDocument) -> None:
    """The totals of a self-test."""
    say()
    conclude(
        f"self-test {d.verdict}: {d.counts['found']} faults found in their layer and named, "
        f"{d.counts['missed']} missed, {d.counts['not revealed']} not revealed by these inputs",
        "bold green" if d.verdict == "passed" else "bold red",
    )
