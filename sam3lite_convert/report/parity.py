"""What people see of a parity run: the table of taps, the verdict, the likely cause, the self-test."""

from __future__ import annotations

import os
import shlex
from typing import Any

from rich.table import Table

from sam3lite_convert.figures import VERDICTS, ids_shown, number
from sam3lite_convert.report import as_used
from sam3lite_convert.report.terminal import say, show, width

Record = dict[str, Any]
_LISTED = 20


def paritied(r: Record, debug: bool) -> None:
    """Two encoders side by side; with ``debug`` a row for each tap."""
    say(f"reference  {r['reference']}, from {r['checkpoint']}")
    if r.get("original_repo"):
        _checkout(r["original_repo"])
    say(f"candidate  {r['candidate_encoder']}, from {r['converted'] or 'the plan, converted in memory'}")
    say(f"input      {r['inputs']['what']}; {r['dtype']}, compared in float64")
    shown = [] if r.get("behaviour") else list(zip(r["inputs"].get("prompts", ()), r["inputs"]["ids"], strict=False))
    if r["inputs"].get("prompts_total", 0) <= _LISTED:
        for prompt, ids in shown:
            say(f"  {prompt!r}: {ids_shown(ids)}")
    say()
    if debug:
        _tap_table(r)
    else:
        _outputs(r)
    if r["inputs"].get("prompts"):
        last = [t for t in r["layers"] if t["read_by_detector"]][-1]
        padded = "none" if last["padded_max_abs_diff"] is None else number(last["padded_max_abs_diff"])
        say(f"{last['name']}, max abs diff: {number(last['valid_max_abs_diff'])} on words, {padded} on padding")
        _worst(r)
    if r.get("behaviour"):
        as_used.behaved(r)
    say()
    _verdict(r)
    if r["diagnosis"]:
        _diagnosis(r["diagnosis"])
    if r.get("not_compared"):
        command = shlex.join(["sam3lite", "verify", r["converted"], "--checkpoint", r["checkpoint"]])
        say(f"  this is of the text encoder; the folder's other {r['not_compared']:,} tensors: {command}")
    as_used.verdict(r)
    for text in r["notes"]:
        say(f"note: {text}")
    if r.get("saved_activations"):
        say(f"Saved {r['saved_activations']}. Next: sam3lite parity --judge {shlex.quote(r['saved_activations'])}")
    elif r["verdict"] == "differs" and not debug:
        say("Next: the same command with --debug-intermediates shows every layer")


def _checkout(o: Record) -> None:
    """What was run of the user's checkout, and whether our own reference agrees with it."""
    say(f"           its code was run: {', '.join(o['files'])}")
    if o["stood_in"]:
        say(f"           not run, stood in for: {', '.join(o['stood_in'])}")
    found, at = o["against_original_ref"], ""
    if found["verdict"] == "differs":
        at = f", first at {found['first_divergence']}; the causes below are looked for with original_ref"
    verdict = found["verdict"].replace("_", " ")
    say(
        f"           beside it, original_ref: {verdict}, max abs diff {number(found['max_abs_diff'])}{at}",
        VERDICTS[found["verdict"]],
    )


def _worst(r: Record) -> None:
    """The prompts that are furthest off, where not all of them are shown anyway."""
    if r["verdict"] == "exact" or not r["worst_prompts"] or r["inputs"]["prompts_total"] <= _LISTED:
        return
    say(f"the worst prompts, by max abs diff at {r['worst_prompts'][0]['tap']}:")
    for w in r["worst_prompts"]:
        figures = f"{number(w['max_abs_diff'])}  rel. L2 {number(w['relative_l2'])}"
        say(f"  {figures}  no. {w['index'] + 1:,}: {w['prompt']!r}")


def _verdict(r: Record) -> None:
    limit = f"tolerance {number(r['tolerance'])}, {r['tolerance_is']}"
    name = "verdict 1, weights: "
    run = "" if r["dtype"] == "float32" else f", both sides in {r['dtype']}"
    words = {
        "exact": f"exact: 0.0 at every tap that the detector reads{run}",
        "within_tolerance": f"within tolerance: max abs diff {number(r['max_abs_diff'])}{run} ({limit})",
        "differs": f"differs: max abs diff {number(r['max_abs_diff'])} ({limit})",
    }
    say(name + words[r["verdict"]], VERDICTS[r["verdict"]])
    for t in r["layers"] if r["verdict"] == "exact" else ():
        if t["max_abs_diff"]:  # then the detector does not read it
            floors = f", {t['floors']:.2g} noise floors" if t["floor"] and t["floors"] else ""
            say(f"{t['name']}, which it does not read: {number(t['max_abs_diff'])}{floors}")
    if r["max_abs_diff"] != 0:
        say(f"smallest tolerance that would have passed: {number(r['smallest_passing_tolerance'])}")
    if r["first_divergence"]:
        others = r["also_diverging"]
        also = f" (and by themselves: {', '.join(others)})" if others else ""
        say(f"first divergence: {r['first_divergence']}{also}", "bold red")
        tap = next(t for t in r["layers"] if t["name"] == r["first_divergence"])
        if tap["isolated_max_abs_diff"] is not None and tap["isolated_max_abs_diff"] <= tap["isolated_tolerance"]:
            mean, floor = number(tap["isolated_mean_abs_diff"]), number(tap["floor"]["mean_isolated"])
            say(f"  by its mean abs diff of {mean}, where the floor is {floor}")
    elif r["verdict"] == "differs":
        say("no layer diverges by itself: small errors add up to more than the tolerance")


def _diagnosis(d: Record) -> None:
    say(f"likely cause: {d['cause']}", "bold")
    for fit in d["fits"][1:4]:
        say(f"  would fit as well: {fit['cause']}")
    tensors = sorted(d["tensors"], key=lambda t: t["fault"] is None)
    ours, theirs = (_common([t[side] for t in tensors]) for side in ("target", "source"))
    say(f"the tensors behind {d['tap']}, {ours}*, and the rules that made them of {theirs}*:")
    for t in tensors[:_LISTED]:
        target, source = t["target"].removeprefix(ours), t["source"].removeprefix(theirs)
        say(f"  {target:<28}  <- {t['operation']}, [{t['rule']}] of {t['table']}: {source}")
        if t["fault"]:
            say(f"      {t['fault']}", "red")
    if len(tensors) > _LISTED:
        say(f"  ... and {len(tensors) - _LISTED:,} more; --json lists all of them")


def _common(names: list[str]) -> str:
    """What all names begin with, up to a dot."""
    start = os.path.commonprefix(names)  # noqa: RUF071  these are no paths
    return start[: start.rfind(".") + 1]


def _tap_table(r: Record) -> None:
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
    for t in r["layers"]:
        over = "-" if t["floor"] is None or t["floors"] == 0 else "inf" if t["floors"] is None else f"{t['floors']:.2g}"
        cosine = "-" if t["cosine"] is None else f"{t['cosine']:.6f}"
        cells = [number(t["max_abs_diff"]), number(t["isolated_max_abs_diff"]), over]
        rest = [number(t["relative_l2"]), cosine]
        if wide:
            cells = ["x".join(map(str, t["shape"])), *cells, number(t["mean_abs_diff"]), *rest]
            cells += [str(t["position"]), _value(t["reference_value"]), _value(t["candidate_value"])]
        else:
            cells += rest
        if narrow:
            cells = cells[:1]
        status, style = _status(t)
        table.add_row(t["name"], *cells, status, style=style)
    show(table)


def _status(t: Record) -> tuple[str, str | None]:
    """The word behind a row, and its colour."""
    if t["diverges"]:
        return "DIVERGES", "bold red"
    if not t["within"]:
        return "carried", "yellow"
    return ("equal" if t["max_abs_diff"] == 0 == t["isolated_max_abs_diff"] else "within"), None


def _value(value: float | None) -> str:
    return "inf" if value is None else f"{value:.9g}"


def _outputs(r: Record) -> None:
    final = {t["name"]: t for t in r["layers"]}
    for name, sides in r["values"].items():
        say(f"{name}: max abs diff {number(final[name]['max_abs_diff'])}, cosine {_value(final[name]['cosine'])}")
        for side, numbers in sides.items():
            say(f"  {side:<9}  " + "  ".join(f"{n:>11.7f}" for n in numbers) + "  ...")


def tried(t: Record) -> None:
    """One fault of the self-test."""
    styles = {"found": "green", "missed": "bold red", "not revealed": "yellow"}
    say(f"{t['outcome']:<12}  {t['fault']}", styles[t["outcome"]])
    if t["outcome"] == "found":
        say(f"              {t['first_divergence']}: {t['cause']}")
    elif t["outcome"] == "missed":
        say(f"              made in {t['made_in']}; found {t['first_divergence']}: {t['cause']}")
    else:
        say(f"              these inputs keep {t['made_in']} within the noise floor; try --seed N --batch 8")


def self_tested(r: Record) -> None:
    """The sum of a self-test."""
    c = r["counts"]
    say()
    say(
        f"self-test {r['verdict']}: {c['found']} faults found in their layer and named, {c['missed']} missed, "
        f"{c['not revealed']} not revealed by these inputs",
        "bold green" if r["verdict"] == "passed" else "bold red",
    )
