"""The section of a parity page about the model as it is called: what moves its output, and what mends that."""

from __future__ import annotations

import math
from typing import Any

from sam3lite_convert.report.html import charts
from sam3lite_convert.report.html.layers import runs
from sam3lite_convert.report.html.parts import (
    badge,
    cosine,
    count,
    folded,
    lines,
    listing,
    measure,
    number,
    paragraph,
    plural,
    quoted,
    section,
    shown,
    text,
)

Record = dict[str, Any]

_OPEN = 5  # prompts that are shown at once


def behaviour_words(b: Record | None) -> str:
    """The sentence below the verdict."""
    if not b:
        return "This run compared the weights alone."
    together, total = b.get("together"), b.get("prompts_total")
    kind = "built-in prompt" if b.get("built_in") else "prompt"
    over = f" over {plural(total, kind)}" if isinstance(total, int) else ""
    if b.get("verdict") == "exact":
        return f"The output is the original's{over}."
    causes = [c for c in b.get("causes") or [] if c.get("prompts") != 0]
    why = f", by {plural(len(causes), 'cause')} named below" if causes else ""
    return f"Relative L2 {shown(measure(together, 'relative_l2'))}, cosine {cosine(together)}{over}{why}."


def behaviour_section(b: Record | None) -> str:
    """Causes, their sum, the recipe, and the ids of both sides."""
    if not b:
        return section("Behaviour", paragraph("Not looked at in this run.", "muted"))
    said = "The usual call, held against the original's own."
    if b.get("candidate"):
        said += f" It is {text(b['candidate'])}."
    if b.get("tokenizer"):
        said += f" Its tokenizer: {text(b['tokenizer'])}."
    return section(
        "Behaviour",
        paragraph(badge(b.get("verdict"))),
        paragraph(said, "muted"),
        listing([text(note) for note in b["notes"]]) if b.get("notes") else "",
        _causes(b),
        _same(b.get("absent") or []),
        _recipe(b),
        _prompts(b),
    )


def _figures(r: Record | None) -> str:
    """The numbers of one comparison in a line."""
    values = [f"relative L2 {shown(measure(r, 'relative_l2'))}", f"cosine {cosine(r)}"]
    values.append(f"max abs diff {shown(measure(r, 'max_abs_diff'))}")
    return " &middot; ".join(values)


def _causes(b: Record) -> str:
    causes, together = [c for c in b.get("causes") or [] if c.get("prompts") != 0], b.get("together")
    if not causes:
        return paragraph("No cause of a difference was found.", "muted") if b.get("verdict") == "exact" else ""
    errors = [measure(r, "relative_l2") or 0.0 for r in [*causes, *([together] if together else [])]]
    greatest = max((e for e in errors if math.isfinite(e)), default=0.0)
    items = [_cause(c, greatest, b.get("prompts_total")) for c in causes]
    if together:
        words = "<strong>All of them together</strong>"
        items.append(_bar_row(words, "what the usual call gives", "all together", together, greatest, "", "sum"))
    said = "Each cause alone, everything else as the original does it. Bars show relative L2 on a linear scale up to "
    said += f"{shown(greatest)}."
    return f'<h3>What moves the output</h3>{paragraph(said, "muted small")}<ol class="causes">{"".join(items)}</ol>'


def _cause(c: Record, greatest: float, total: Any) -> str:
    moved = c.get("prompts")
    of = f" of {count(total)}" if isinstance(total, int) else ""
    words = str(c.get("words") or c.get("name") or "?")
    name = str(c.get("name") or "").replace("_", " ")
    moves = f" &middot; moves {count(moved)}{of} prompts" if isinstance(moved, int) else ""
    return _bar_row(f"<strong>{text(name or words)}</strong>", text(words) if name else "", words, c, greatest, moves)


def _same(absent: list[Record]) -> str:
    """What could have moved the output and does not."""
    said = [text(a.get("words") or a.get("name") or "?") for a in absent]
    return paragraph(f"The same on both sides: {'; '.join(said)}.", "muted small") if said else ""


def _bar_row(title: str, words: str, spoken: str, r: Record, greatest: float, moves: str, css: str = "") -> str:
    error = measure(r, "relative_l2") or 0.0
    share = 1.0 if math.isinf(error) else error / greatest if greatest else 0.0
    drawn = charts.bar(share, f"{spoken}: relative L2 {number(error)}", css)
    lonely = r.get("tokens_without_counterpart")
    if isinstance(lonely, int) and lonely:
        # The numbers are of the tokens that both sides have; what only one has is not in them.
        moves += f" &middot; {plural(lonely, 'token')} on one side only"
    return (
        f"<li><div><p>{title}</p>{paragraph(words, 'muted small') if words else ''}</div>"
        f'<div>{drawn}<p class="small">{_figures(r)}{moves}</p></div></li>'
    )


def _recipe(b: Record) -> str:
    recipe = b.get("recipe")
    if not recipe:
        return ""
    said = f"{badge(recipe.get('verdict'))} <span class='small'>{_figures(recipe)}</span>"
    intro = "Called like this, with the same weights:"
    example = f'<pre class="code" tabindex="0">{lines(recipe["code"])}</pre>' if recipe.get("code") else ""
    return f"<h3>The recipe</h3>{paragraph(intro, 'muted small')}{paragraph(said)}{example}"


def _prompts(b: Record) -> str:
    prompts = b.get("prompts") or []
    if not prompts:
        return ""
    rows = [_prompt(p) for p in prompts]
    total = b.get("prompts_total")
    of = f", {count(len(rows))} of {count(total)}" if isinstance(total, int) and total > len(rows) else ""
    said = f"Worst first{of}. Ids that the other side does not have at their position are underlined; repeated "
    said += "ids are counted, so padding is one entry."
    out = f'<ol class="plain prompts">{"".join(rows[:_OPEN])}</ol>'
    if len(rows) > _OPEN:
        rest = f'<ol class="plain prompts">{"".join(rows[_OPEN:])}</ol>'
        out += folded(f"{plural(len(rows) - _OPEN, 'more prompt')}", rest)
    return f"<h3>The ids on both sides</h3>{paragraph(said, 'muted small')}{out}"


def _prompt(p: Record) -> str:
    original, used, mask = p.get("original") or [], p.get("as_used") or [], p.get("mask")
    sides = [("original", runs(original, used)), ("as used", runs(used, original))]
    sides += [("mask", runs(mask))] if mask else []
    rows = "".join(f'<dt>{name}</dt><dd class="mono">{ids}</dd>' for name, ids in sides if ids)
    figures = f'<p class="small muted">{_figures(p)}</p>'
    return f'<li><p>{quoted(p.get("prompt", ""))}</p>{figures}<dl class="ids">{rows}</dl></li>'
