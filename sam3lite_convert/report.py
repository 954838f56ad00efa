"""The one place that prints: tables and sentences on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from sam3lite_convert.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.streams import Advance
from sam3lite_convert.summary import human_bytes, human_count

Record = dict[str, Any]
_LISTED = 20


def _out() -> Console:
    # Made per call: the width and the stream are those of the moment.
    return Console(highlight=False, markup=False)


def _err() -> Console:
    return Console(stderr=True, highlight=False, markup=False)


def say(text: str = "", style: str | None = None) -> None:
    """A line of results."""
    _out().print(_printable(text), style=style, soft_wrap=True)


def note(text: str) -> None:
    """A line beside the results."""
    _err().print(_printable(text), soft_wrap=True)


def as_json(record: Record) -> None:
    """The record as the one JSON document on stdout."""
    sys.stdout.write(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The record with null in the place of infinities and not-a-numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fault(message: str) -> None:
    """A foreseeable failure."""
    _err().print(_printable(f"error: {message}"), style="red", soft_wrap=True)


def _printable(text: str) -> str:
    """Names come out of files: what would steer the terminal is shown, not sent."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def byte_progress(totals: dict[str, int], labels: dict[str, str], quiet: bool) -> Iterator[Callable[[str], Advance]]:
    """Bars by bytes with rate and time left, on a terminal only."""
    console = _err()
    if quiet or not console.is_terminal:
        yield lambda what: lambda n: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {what: bars.add_task(labels[what], total=totals[what]) for what in totals}
        yield lambda what: lambda n: bars.advance(tasks[what], n)


def _headline(r: Record) -> None:
    dtypes = ", ".join(f"{n} {d}" for d, n in r["dtypes"].items())
    wrapper = f"wrapped in {r['wrapper']!r}" if r["wrapper"] else "bare state dict"
    prefix = f"prefix {r['prefix']!r}" if r["prefix"] else "no prefix"
    say(f"{r['checkpoint']}: {human_bytes(r['size'])}, {r['format']}, {wrapper}, {prefix}", "bold")
    say(f"tensors: {dtypes}")


def _text_encoder(r: Record) -> None:
    a = r["architecture"]
    if a is None:
        return
    count = r["text_parameters"]
    fewer = 100 * (1 - count / SAM3_TEXT_PARAMETERS)
    say(
        f"text encoder: {a['variant']}, {a['num_hidden_layers']} layers, {a['hidden_size']} wide, "
        f"{_plural(a['num_attention_heads'], 'head')}, context {a['context_length']}"
        + (", causal" if a["causal_masking"] else "")
    )
    say(f"  {human_count(count)} parameters; SAM3's has {SAM3_TEXT_PARAMETERS / 1e6:.2f} M, so {fewer:.0f} % fewer")


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _component_table(r: Record) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component", no_wrap=True)
    for name in ("keys", "mapped", "dropped", "parameters"):
        table.add_column(name, justify="right")
    total = [0, 0, 0, 0]
    for name, c in r["components"].items():
        row = [c["keys"], c["mapped"], sum(c["dropped"].values()), c["parameters"]]
        total = [a + b for a, b in zip(total, row, strict=True)]
        table.add_row(name, *[f"{n:,}" for n in row[:3]], human_count(row[3]))
    table.add_section()
    table.add_row("total", *[f"{n:,}" for n in total[:3]], human_count(total[3]), style="bold")
    _out().print(table)
    by_label: dict[str, int] = {}
    for c in r["components"].values():
        for label, n in c["dropped"].items():
            by_label[label] = by_label.get(label, 0) + n
    for label, n in by_label.items():
        reason = r["dropped"].get(label, label)
        say(f"  dropped {n:>4}  " + ("second spelling of a tensor, equal to the bit" if label == "twin" else reason))


def _sum(r: Record) -> None:
    c = r["counts"]
    if "mapped" in c:
        say(
            f"{c['source']:,} source tensors = {c['mapped']:,} mapped + {c['dropped']:,} dropped; "
            f"{c['target']:,} target tensors"
        )


def inspected(r: Record) -> None:
    """What a checkpoint is."""
    _headline(r)
    say(f"kind: {r['kind']}")
    _text_encoder(r)
    for name, n in r["spellings"].items():
        say(f"spelling: {name} ({n} keys)")
    say()
    _component_table(r)
    _sum(r)
    _notes(r)
    say()
    if r["convert"]["all"] == "yes":
        say(f"Next: sam3lite convert --checkpoint {r['checkpoint']}")
    else:
        say("convert refuses the whole file: " + _short(r["convert"]["all"]))
        if r["convert"]["text"] == "yes":
            say(f"Next: sam3lite convert --checkpoint {r['checkpoint']} --component text")


def _short(message: str) -> str:
    lines = message.splitlines()
    if len(lines) <= _LISTED:
        return message
    return "\n".join([*lines[:_LISTED], f"... ({len(lines) - _LISTED} more lines)"])


def _notes(r: Record) -> None:
    assumed = (r["architecture"] or {}).get("assumed", {})
    said = [f"assumed {name}: {what}" for name, what in assumed.items()]
    for text in [*r["notes"], *(s for s in said if s not in r["notes"])]:
        say(f"note: {text}")


def planned(r: Record) -> None:
    """A conversion's plan."""
    _headline(r)
    _text_encoder(r)
    say()
    _component_table(r)
    _sum(r)
    _notes(r)
    say(f"layout {r['layout']}, component {r['component']}, {r['dtype']}: {human_bytes(r['bytes'])} to write")


def converted(r: Record) -> None:
    """What was written, and what to type next."""
    say()
    if r["dry_run"]:
        say(f"Dry run: the plan is sound, nothing was written. It would go to {r['output']}")
        return
    for text in r["late_notes"]:
        say(f"note: {text}")
    cast = r["lost"].get("cast")
    if cast:
        say(
            f"cast to {cast['dtype']}: {cast['changed_values']:,} values rounded, max abs error "
            f"{cast['max_abs_error']:.3g}, {cast['overflowed_values']:,} overflowed"
        )
    say(f"Wrote {r['output']}", "bold green")
    for name, size in r["files"].items():
        say(f"  {name}  {human_bytes(size)}")
    tables = f" --mapping {r['mapping']}" if r.get("mapping") else ""
    say(f"Next: sam3lite verify {r['output']} --checkpoint {r['checkpoint']}{tables}")


def verified(r: Record) -> None:
    """The verdict on a folder."""
    say(f"{r['folder']}: layout {r['layout']}, component {r['component']}, {r['dtype']}", "bold")
    _rows("wrong", [(m["key"], m["why"]) for m in r["mismatched"]])
    _rows("missing", [(k, "") for k in r["missing"]])
    _rows("unexpected, since the model has no such tensor", [(k, "") for k in r["unexpected"]])
    counters = [n for n in r["notes"] if "BatchNorm does not read it" in n]
    if counters:
        say(f"note: {len(counters)} BatchNorm counters (num_batches_tracked) are absent or differ; nothing reads them")
    for text in r["notes"]:
        if text not in counters:
            say(f"note: {text}")
    for text in _lost(r["lost"]):
        say(f"not in the folder: {text}")
    if r["verdict"] == "proven":
        up_to = f" up to {r['up_to']}" if r["up_to"] else ""
        counted = f"{r['checked']:,} of {r['targets']:,} tensors"
        say(f"proven{up_to}: {counted} turn back into their source bit for bit", "bold green")
    else:
        faults = len(r["mismatched"]) + len(r["missing"]) + len(r["unexpected"])
        say(
            f"mismatch: {_plural(faults, 'fault')}; {r['checked']:,} of {r['targets']:,} tensors were compared",
            "bold red",
        )


def _lost(lost: Record) -> Iterator[str]:
    if "dropped" in lost:
        kinds = ", ".join(f"{n} {label}" for label, n in lost["dropped"]["by_kind"].items())
        yield f"{lost['dropped']['tensors']} dropped tensors ({kinds})"
    if "class_row" in lost:
        yield f"the class row of {lost['class_row']['tensor']}"
    if "positions" in lost:
        yield f"the last {lost['positions']['rows']} rows of {lost['positions']['tensor']}"
    if "cast" in lost:
        c = lost["cast"]
        yield f"what the cast rounded off ({c['changed_values']:,} values, max abs error {c['max_abs_error']:.3g})"


def _rows(title: str, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    say(f"{len(rows):,} {title}:", "red")
    for key, why in rows[:_LISTED]:
        say(f"  {key}")
        if why:
            say(f"      {why}")
    if len(rows) > _LISTED:
        say(f"  ... and {len(rows) - _LISTED:,} more; --json lists all of them")


_VERDICTS = {"exact": "bold green", "within_tolerance": "bold green", "differs": "bold red"}


def paritied(r: Record, debug: bool) -> None:
    """Two encoders side by side; with ``debug`` a row for each tap."""
    say(f"reference  {r['reference']}, from {r['checkpoint']}")
    say(f"candidate  {r['candidate_encoder']}, from {r['converted'] or 'the plan, converted in memory'}")
    say(f"input      {r['inputs']['what']}; {r['dtype']}, compared in float64")
    for prompt, ids in zip(r["inputs"].get("prompts", ()), r["inputs"]["ids"], strict=False):
        say(f"  {prompt!r}: {' '.join(map(str, ids))}")
    say()
    if debug:
        _tap_table(r)
    else:
        _outputs(r)
    if r["inputs"].get("prompts"):
        last = next(t for t in r["layers"] if t["name"] == "projected")
        padded = "none" if last["padded_max_abs_diff"] is None else _number(last["padded_max_abs_diff"])
        say(f"projected, max abs diff: {_number(last['valid_max_abs_diff'])} on words, {padded} on padding")
    say()
    _verdict(r)
    if r["diagnosis"]:
        _diagnosis(r["diagnosis"])
    for text in r["notes"]:
        say(f"note: {text}")
    if r.get("saved_activations"):
        say(f"Saved {r['saved_activations']}. Next: sam3lite parity --judge {r['saved_activations']}")
    elif r["verdict"] == "differs" and not debug:
        say("Next: the same command with --debug-intermediates shows every layer")


def _verdict(r: Record) -> None:
    limit = f"tolerance {_number(r['tolerance'])}, {r['tolerance_is']}"
    words = {
        "exact": "exact: 0.0 at every tap that the detector reads",
        "within_tolerance": f"within tolerance: max abs diff {_number(r['max_abs_diff'])} ({limit})",
        "differs": f"differs: max abs diff {_number(r['max_abs_diff'])} ({limit})",
    }
    say(words[r["verdict"]], _VERDICTS[r["verdict"]])
    pooled = next(t for t in r["layers"] if t["name"] == "pooled")
    if r["verdict"] == "exact" and pooled["max_abs_diff"]:
        text = f"pooled, which it does not read: {_number(pooled['max_abs_diff'])}"
        floor = pooled["floor"]
        say(text + (f", {pooled['max_abs_diff'] / floor['propagated']:.1f} noise floors" if floor else ""))
    if r["max_abs_diff"] != 0:
        say(f"smallest tolerance that would have passed: {_number(r['smallest_passing_tolerance'])}")
    if r["first_divergence"]:
        others = r["also_diverging"]
        also = f" (and by themselves: {', '.join(others)})" if others else ""
        say(f"first divergence: {r['first_divergence']}{also}", "bold red")
        tap = next(t for t in r["layers"] if t["name"] == r["first_divergence"])
        if tap["isolated_max_abs_diff"] is not None and tap["isolated_max_abs_diff"] <= tap["isolated_tolerance"]:
            mean, floor = _number(tap["isolated_mean_abs_diff"]), _number(tap["floor"]["mean_isolated"])
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
    console = _out()
    wide = console.width >= 120
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tap", no_wrap=True)
    names = ["propagated", "isolated", "x floor", "rel. L2", "cosine"]
    names = ["shape", *names[:3], "mean abs", *names[3:], "at", "reference", "candidate"] if wide else names
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for t in r["layers"]:
        over = "-" if t["floor"] is None or t["floors"] == 0 else "inf" if t["floors"] is None else f"{t['floors']:.2g}"
        cosine = "-" if t["cosine"] is None else f"{t['cosine']:.6f}"
        cells = [_number(t["max_abs_diff"]), _number(t["isolated_max_abs_diff"]), over]
        rest = [_number(t["relative_l2"]), cosine]
        if wide:
            cells = ["x".join(map(str, t["shape"])), *cells, _number(t["mean_abs_diff"]), *rest]
            cells += [str(t["position"]), _value(t["reference_value"]), _value(t["candidate_value"])]
        else:
            cells += rest
        status, style = _status(t)
        table.add_row(t["name"], *cells, status, style=style)
    console.print(table)


def _status(t: Record) -> tuple[str, str | None]:
    """The word behind a row, and its colour."""
    if t["diverges"]:
        return "DIVERGES", "bold red"
    if not t["within"]:
        return "carried", "yellow"
    return ("equal" if t["max_abs_diff"] == 0 == t["isolated_max_abs_diff"] else "within"), None


def _number(value: float | None) -> str:
    if value is None:
        return "inf"
    return "0.0" if value == 0 else f"{value:.2e}"


def _value(value: float | None) -> str:
    return "inf" if value is None else f"{value:.9g}"


def _outputs(r: Record) -> None:
    final = {t["name"]: t for t in r["layers"]}
    for name, sides in r["values"].items():
        say(f"{name}: max abs diff {_number(final[name]['max_abs_diff'])}, cosine {_value(final[name]['cosine'])}")
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


def explained(r: Record) -> None:
    """One key."""
    source = r["source"]
    say(f"source  {source['key']}  {_tensor(source)}")
    if source.get("canonical") != source["key"]:
        say(f"        canonical name {source['canonical']}")
    if r["outcome"] == "dropped":
        say(f"dropped {r['reason']}")
    else:
        say(f"op      {r['operation']}")
    for target in r["targets"]:
        say(f"target  {target['key']}  {_tensor(target)}" + (f"  ({target['part']})" if "part" in target else ""))
    if r["rule"]:
        say(f"rule    [{r['rule']['name']}] in {r['rule']['table']}")
        say(f"        {r['rule']['pattern']}")


def _tensor(t: Record) -> str:
    return f"{t['dtype']} {'x'.join(map(str, t['shape'])) or 'scalar'}"
