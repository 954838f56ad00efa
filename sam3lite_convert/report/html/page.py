"""A parity run or a verification as one HTML file that needs nothing but itself, for a pull request."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from sam3lite_convert.report.html.as_used import behaviour_section, behaviour_words
from sam3lite_convert.report.html.layers import heat_map_section, layers_section
from sam3lite_convert.report.html.origin import accounting_section, last_sections, receipt_section, repository_section
from sam3lite_convert.report.html.parts import (
    card,
    code,
    count,
    facts,
    folded,
    listing,
    measure,
    number,
    page,
    paragraph,
    plural,
    quoted,
    section,
    shown,
    table,
    text,
)

Record = dict[str, Any]

_IN_MEMORY = "converted in memory"


def parity_page(record: Record) -> str:
    """The page of a ``parity`` record: both verdicts first, then what they rest on. Fields that a record
    lacks leave their sections out."""
    checkpoint = record.get("checkpoint") or "the original"
    candidate = record.get("converted") or record.get("candidate_encoder") or _IN_MEMORY
    return page(
        f"Parity of {candidate} with {checkpoint}",
        _parity_head(record, str(checkpoint)),
        _verdicts(record),
        _divergence(record),
        layers_section(record),
        heat_map_section(record),
        behaviour_section(record.get("behaviour")),
        _worst_prompts(record),
        accounting_section(record.get("accounting")),
        repository_section(record.get("original_repo")),
        receipt_section(record.get("receipt")),
        last_sections(record, record.get("notes") or []),
    )


def _parity_head(r: Record, checkpoint: str) -> str:
    inputs = r.get("inputs") or {}
    converted = r.get("converted")
    rows = [
        ("Original", f"{text(r.get('reference') or 'the original')}, from {code(checkpoint)}"),
        ("Candidate", f"{text(r.get('candidate_encoder') or r.get('candidate') or '-')}, "
         + (f"from {code(converted)}" if converted else f"from the plan, {_IN_MEMORY}")),
        ("Input", text(inputs["what"]) if inputs.get("what") else None),
        ("Computed in", f"{text(r['dtype'])}, compared in float64" if r.get("dtype") else None),
        ("Judged from", code(r["judged"]) if r.get("judged") else None),
    ]  # fmt: skip
    title = f"{text(converted)} <span class=muted>beside</span> {text(checkpoint)}"
    if not converted:
        title = f"{text(checkpoint)}<span class=muted>, {_IN_MEMORY}</span>"
    return f'<header><p class="kicker">sam3lite parity</p><h1>{title}</h1>{facts(rows)}</header>'


def _verdicts(r: Record) -> str:
    behaviour = r.get("behaviour")
    verdict = behaviour.get("verdict") if behaviour else None
    weights = card(
        "Weights",
        r.get("verdict"),
        paragraph("The same ids go into both text encoders, with no mask: is it converted right?"),
        paragraph(_weights_words(r), "muted small"),
        paragraph(_others(r), "muted small") if r.get("not_compared") else "",
    )
    called = card(
        "Behaviour",
        verdict,
        paragraph("The model as it is called: does it do what the original does?"),
        paragraph(behaviour_words(behaviour), "muted small"),
        paragraph(_remedy(r, behaviour)) if verdict == "differs" else "",
    )
    aside = "Two questions with an answer each: a right conversion can be called wrongly."
    return f'<div class="cards">{weights}{called}</div><p class="muted small" style="margin-top:1rem">{aside}</p>'


def _others(r: Record) -> str:
    command = shlex.join(["sam3lite", "verify", str(r.get("converted")), "--checkpoint", str(r.get("checkpoint"))])
    return f"The folder's other {count(r['not_compared'])} tensors were not looked at: {code(command)}"


def _remedy(r: Record, behaviour: Record | None) -> str:
    if r.get("verdict") == "differs":
        return "Settle the weights first: with other weights no way of calling gives the original's features."
    if ((behaviour or {}).get("recipe") or {}).get("verdict") in ("exact", "within_tolerance"):
        return "The weights are not the reason: call it by the recipe below."
    return "Called by the recipe below it still differs."


def _weights_words(r: Record) -> str:
    error, limit = shown(measure(r, "max_abs_diff")), shown(measure(r, "tolerance"))
    basis = f" ({text(r['tolerance_is'])})" if r.get("tolerance_is") else ""
    if r.get("verdict") == "exact":
        pooled = next((t for t in r.get("layers") or [] if t.get("name") == "pooled"), None)
        beside = measure(pooled, "max_abs_diff")
        said = "Max abs diff 0.0 at every tap that the detector reads."
        return said + (f" The pooled output, which it does not read: {shown(beside)}." if beside else "")
    if r.get("verdict") == "differs":
        passing = shown(measure(r, "smallest_passing_tolerance"))
        return f"Max abs diff {error}; the tolerance is {limit}{basis}. The smallest that would have passed: {passing}."
    return f"Max abs diff {error}, within the tolerance of {limit}{basis}."


def _divergence(r: Record) -> str:
    first, found = r.get("first_divergence"), r.get("diagnosis") or {}
    if not first and r.get("verdict") != "differs":
        return ""
    if not first:
        said = ["No layer diverges by itself: small errors add up to more than the tolerance."]
    else:
        said = [f"<strong>First divergence:</strong> {code(first)}"]
    if r.get("also_diverging"):
        said.append(f"Wrong by themselves as well: {', '.join(code(name) for name in r['also_diverging'])}")
    if found:
        said.append(f"<strong>Likely cause:</strong> {text(found.get('cause'))}")
        said += [f"Would fit as well: {text(fit.get('cause'))}" for fit in (found.get("fits") or [])[1:4]]
    return f'<div class="callout bad">{"".join(map(paragraph, said))}</div>{_tensors(found)}'


def _tensors(found: Record) -> str:
    tensors = sorted(found.get("tensors") or [], key=lambda t: t.get("fault") is None)
    if not tensors:
        return ""
    rows = []
    for t in tensors:
        made = f"{text(t.get('operation'))}, [{text(t.get('rule'))}] of {text(t.get('table'))}"
        row = f'{code(t.get("target"))}<p class="small muted">from {code(t.get("source"))}: {made}</p>'
        rows.append(row + (paragraph(text(t["fault"]), "small fault") if t.get("fault") else ""))
    title = f"The {plural(len(tensors), 'tensor')} behind {found.get('tap')}, and the rules that made them"
    return folded(title, listing(rows, "plain faults"))


def _worst_prompts(r: Record) -> str:
    rows = [
        [quoted(p.get("prompt", "")), count(p.get("index")), code(p.get("tap", "-")),
         number(measure(p, "max_abs_diff")), number(measure(p, "relative_l2"))]
        for p in r.get("worst_prompts") or []
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["prompt", "index", "worst tap", "max abs", "rel. L2"]
    return section("Worst prompts", table("Same ids on both sides, greatest error first", head, rows, [1, 3, 4]))


def verify_page(record: Record) -> str:
    """The page of a ``verify`` record."""
    folder, checkpoint = record.get("folder") or "the folder", record.get("checkpoint") or "the original"
    rows = [
        ("Folder", code(folder)),
        ("Original", code(checkpoint)),
        ("Layout", text(record["layout"]) if record.get("layout") else None),
        ("Component", text(record["component"]) if record.get("component") else None),
        ("Stored as", text(record["dtype"]) if record.get("dtype") else None),
    ]
    title = f"{text(folder)} <span class=muted>against</span> {text(checkpoint)}"
    return page(
        f"Verification of {folder} against {checkpoint}",
        f'<header><p class="kicker">sam3lite verify</p><h1>{title}</h1>{facts(rows)}</header>',
        _proof(record),
        _wrong(record.get("mismatched") or []),
        _keys("Missing", "In the target model, not in the folder.", record.get("missing") or []),
        _keys("Unexpected", "In the folder, where the model has no such tensor.", record.get("unexpected") or []),
        section("Not in the folder", _lost(record.get("lost") or {})),
        accounting_section(record.get("accounting")),
        receipt_section(record.get("receipt")),
        last_sections(record, record.get("notes") or []),
    )


def _proof(r: Record) -> str:
    up_to = f" up to {text(r['up_to'])}" if r.get("up_to") else ""
    counted = f"{count(r.get('checked'))} of {count(r.get('targets'))} tensors"
    if r.get("verdict") == "proven":
        said = f"{counted} turn back into their source bit for bit{up_to}."
    else:
        faults = sum(len(r.get(kind) or []) for kind in ("mismatched", "missing", "unexpected"))
        said = f"{plural(faults, 'fault')}; {counted} were compared."
    asked = "Each tensor is turned back and compared with its source: does the folder hold what the checkpoint holds?"
    proof = card("Tensors", r.get("verdict"), paragraph(said), paragraph(asked, "muted small"))
    return f'<div class="cards">{proof}</div>'


def _wrong(faults: list[Record]) -> str:
    rows = [f"{code(f.get('key'))}{paragraph(text(f.get('why') or ''), 'small')}" for f in faults]
    return section(f"Wrong ({len(rows):,})", listing(rows, "plain faults")) if rows else ""


def _keys(title: str, said: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return section(f"{title} ({len(keys):,})", paragraph(said, "muted"), listing([code(k) for k in keys]))


def _lost(lost: Record) -> str:
    rows = list(_losses(lost))
    return listing(rows) if rows else ""


def _losses(lost: Record) -> Iterator[str]:
    if dropped := lost.get("dropped"):
        kinds = ", ".join(f"{count(n)} {text(label)}" for label, n in (dropped.get("by_kind") or {}).items())
        yield f"{count(dropped.get('tensors'))} dropped tensors" + (f": {kinds}" if kinds else "")
    if row := lost.get("class_row"):
        yield f"the class row of {code(row.get('tensor'))}"
    if positions := lost.get("positions"):
        yield f"the last {count(positions.get('rows'))} rows of {code(positions.get('tensor'))}"
    if cast := lost.get("cast"):
        error = number(measure(cast, "max_abs_error"))
        yield f"what the cast rounded off: {count(cast.get('changed_values'))} values, max abs error {error}"
