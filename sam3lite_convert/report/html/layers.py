"""The sections of a parity page about the taps: the chart of errors, the table behind it, the heat map."""

from __future__ import annotations

from typing import Any

from sam3lite_convert.report.html import charts
from sam3lite_convert.report.html.parts import (
    as_number,
    code,
    cosine,
    count,
    folded,
    listing,
    measure,
    number,
    paragraph,
    quoted,
    section,
    table,
    text,
    visible,
)

Record = dict[str, Any]

_SERIES = (
    ("propagated", "propagated", "each side on its own output"),
    ("isolated", "isolated", "the converted layer on the original's recorded input"),
    ("noise", "noise floor", "the original against itself in float64"),
)


def layers_section(r: Record) -> str:
    """The errors of every tap, drawn and in a table."""
    taps = r.get("layers") or []
    if not taps:
        return ""
    rows = [_row(t) for t in taps]
    legend = "".join(
        f"<li>{charts.legend_mark(kind)}<span><strong>{name}</strong> <span class=muted>{said}</span></span></li>"
        for kind, name, said in _SERIES
        if kind != "noise" or any(row.noise is not None for row in rows)
    )
    title = "Max abs diff at every tap on a logarithmic scale; the table below has the numbers"
    said = "Max abs diff at every tap, from the first to the last. The scale is logarithmic; 0 has a place of its own."
    if all(row.noise is None for row in rows):
        said += " No noise floor was needed, since nothing differs."
    return section(
        "Layer by layer",
        paragraph(said, "muted"),
        f'<figure class="panel"><ul class="legend">{legend}</ul>{charts.layer_chart(rows, title)}</figure>',
        folded("The numbers of every tap", _tap_table(taps)),
        _inputs(r.get("inputs") or {}),
    )


def _row(t: Record) -> charts.LayerRow:
    remark, _ = _status(t)
    return charts.LayerRow(
        visible(t.get("name", "?")),
        measure(t, "max_abs_diff"),
        measure(t, "isolated_max_abs_diff"),
        measure(t.get("floor"), "propagated"),
        remark if remark in ("diverges", "carried") else "",
        bool(t.get("diverges")),
    )


def _status(t: Record) -> tuple[str, str]:
    """The word behind a tap and its row's class."""
    if t.get("diverges"):
        return "diverges", "bad"
    if not t.get("within", True):
        return "carried", "fair"
    return ("equal" if t.get("max_abs_diff") == 0 == t.get("isolated_max_abs_diff", 0) else "within"), ""


def _tap_table(taps: list[Record]) -> str:
    head = ["tap", "propagated", "isolated", "noise floor", "&times; floor", "mean abs", "rel. L2", "cosine"]
    head += ["at", "original", "candidate", "verdict"]
    rows, css = [], []
    for t in taps:
        over = measure(t, "floors")
        status, name = _status(t)
        errors = [
            measure(t, "max_abs_diff"),
            measure(t, "isolated_max_abs_diff"),
            measure(t.get("floor"), "propagated"),
        ]
        rows.append(
            [
                code(t.get("name", "?")),
                *map(number, errors),
                "-" if not t.get("floor") or not over else f"{over:.2g}",
                number(measure(t, "mean_abs_diff")),
                number(measure(t, "relative_l2")),
                cosine(t),
                text(", ".join(map(str, t.get("position") or ["-"]))),
                _value(t, "reference_value"),
                _value(t, "candidate_value"),
                status,
            ]
        )
        css.append(name)
    caption = "Where the greatest error is (row, position, channel), and what both sides hold there"
    return table(caption, head, rows, range(1, 11), css=css, kind="wide")


def _value(t: Record, key: str) -> str:
    value = measure(t, key)
    return "-" if value is None else f"{value:.9g}"


def _inputs(inputs: Record) -> str:
    ids, prompts = inputs.get("ids") or [], inputs.get("prompts") or []
    if not ids:
        return ""
    rows = []
    for i, row in enumerate(ids):
        said = quoted(prompts[i]) if i < len(prompts) else f"row {i}"
        rows.append(f"{said}<br><span class='mono muted'>{runs(row)}</span>")
    return folded("The ids that went in", listing(rows))


def runs(ids: list[int], other: list[int] | None = None) -> str:
    """Ids in one line, three and more of the same as one with a count; those that the other side does not have
    at their position are marked."""
    differs = [other is not None and (i >= len(other) or other[i] != value) for i, value in enumerate(ids)]
    out: list[str] = []
    at = 0
    while at < len(ids):
        end = at
        while end < len(ids) and (ids[end], differs[end]) == (ids[at], differs[at]):
            end += 1
        size = end - at
        shown = (
            [f'<span class="rep">{text(ids[at])}&nbsp;&times;&nbsp;{size}</span>']
            if size > 2
            else [text(ids[at])] * size
        )
        out += [f"<mark>{s}</mark>" for s in shown] if differs[at] else shown
        at = end
    return " ".join(out)


def heat_map_section(r: Record) -> str:
    """Where the worst tap differs, by position and channel."""
    heat = r.get("heat_map")
    if not heat or not heat.get("values"):
        return ""
    values = [[as_number(v) for v in row] for row in heat["values"]]
    scale = charts.colour_scale(values)
    wide = heat.get("channels_per_column") or 1
    positions, channels = len(values), heat.get("channels") or max(map(len, values)) * wide
    said = f"The worst tap, {code(heat.get('tap'))}"
    if heat.get("prompt") is not None:
        said += f", for {quoted(heat['prompt'])}"
    elif heat.get("row") is not None:
        said += f", in row {count(heat['row'])} of the input"
    said += ". Positions from top to bottom, channels from left to right"
    said += f"; a column is the greatest error of {count(wide)} neighbouring channels." if wide > 1 else "."
    flat = [(v, y, x) for y, row in enumerate(values) for x, v in enumerate(row)]
    greatest, y, x = max(flat, key=lambda cell: cell[0])
    first = x * wide
    where = f"channel {first:,}" if wide == 1 else f"channels {first:,} to {min(first + wide, channels) - 1:,}"
    caption = f"Greatest: {number(greatest)} at position {y}, {where}."
    keys = ""
    if any(v == 0 for v, _, _ in flat):
        keys += '<li><span class="swatch cz"></span>0.0</li>'
    if any(v == float("inf") for v, _, _ in flat):
        keys += '<li><span class="swatch ci"></span>infinite or not a number</li>'
    title = f"Max abs diff of {positions} positions and {channels:,} channels. {caption}"
    steps = charts.colour_legend(scale, f"Colours from {number(scale.low)} to {number(scale.high)}") if scale else ""
    return section(
        "Where it differs",
        paragraph(said, "muted"),
        f'<figure class="panel">{charts.heat_map(values, channels, title)}<div class="key">{steps}'
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + f"</div><figcaption>{caption} The colours are on a logarithmic scale.</figcaption></figure>",
    )
