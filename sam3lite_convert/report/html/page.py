"""A parity run or a verification as one HTML file that needs nothing else, for a pull request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sam3lite_convert.figures import component_words, human_bytes, human_count, plural
from sam3lite_convert.records.detector import DetectorDocument, StageRecord
from sam3lite_convert.records.parity import BehaviourRecord, HeatMap, ParityDocument, TapRecord
from sam3lite_convert.records.record import Json, JsonValue
from sam3lite_convert.records.verify import PlaceRecord, VerifyDocument
from sam3lite_convert.report.html import GENERATOR, charts, filters

_SHOWN = 3  # patterns of keys of a finding, and
_FINDINGS = 8  # findings, that stand on the page without a click
_DRAWN = 40  # layers of the chart of errors
_LISTED = 200  # entries of a list; longer ones are slow on a phone, and --json has all of them
_FILTERS = (
    filters.breaking, filters.code, filters.coordinates, filters.cosine, filters.figure, filters.lines, filters.number,
    filters.png, filters.prose, filters.quoted, filters.runs, filters.sentence, filters.times, component_words, plural,
    human_count,
)  # fmt: skip


def parity_page(document: ParityDocument) -> str:
    """The page of a parity run: both verdicts, then what they rest on."""
    return _environment().get_template("page.html.jinja").render(command="parity", document=document)


def detector_page(document: DetectorDocument) -> str:
    """The page of a parity run of the whole detector: the verdict, then pictures, stages and taps."""
    return _environment().get_template("page.html.jinja").render(command="detector", document=document)


def verify_page(document: VerifyDocument) -> str:
    """The page of a verification."""
    return _environment().get_template("page.html.jinja").render(command="verify", document=document)


@cache
def _environment() -> Environment:
    loader = PackageLoader("sam3lite_convert.report.html", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=filters.output,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {f.__name__: f for f in _FILTERS}
    environment.globals |= {
        "generator": GENERATOR,
        "style_sheet": Markup(loader.get_source(environment, "report.css")[0]),  # nosec B704
        "listed": _LISTED,
        "shown": _SHOWN,
        "shown_findings": _FINDINGS,
        "legend_mark": lambda series: Markup(charts.legend_mark(series)),  # nosec B704
        "layer_chart": _layer_chart,
        "stage_chart": _stage_chart,
        "taps_of": _taps_of,
        "heat_facts": _heat_facts,
        "shares": _shares,
        "share_chart": lambda rows, title: Markup(charts.share_chart(rows, title, "number of tensors")),  # nosec B704
        "fault_map": _fault_map,
        "error_chart": _error_chart,
        "place_name": _place_name,
        "greatest_error": _greatest_error,
        "bar": _bar,
        "receipt_rows": _receipt_rows,
        "as_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return environment


def _drawn(value: float | None) -> float:
    """An error as the charts take it: infinity stands for NaN, and for the null that both are in JSON."""
    return value if value is not None and math.isfinite(value) else math.inf


def _layer_chart(taps: Iterable[TapRecord], title: str) -> Markup:
    rows = [
        charts.LayerRow(
            filters.visible(t.name),
            _drawn(t.max_abs_diff),
            None if t.judged_by == "propagated" else _drawn(t.isolated_max_abs_diff),
            _drawn(t.floor.propagated) if t.floor else None,
            t.status if t.status in ("diverges", "carried", "unknown") else "",
            t.diverges,
        )
        for t in taps
    ]
    return Markup(charts.layer_chart(rows, title, "max abs diff"))  # nosec B704


def _taps_of(stage: StageRecord, taps: Iterable[TapRecord]) -> list[TapRecord]:
    """The taps of a stage, in their order."""
    by_name = {t.name: t for t in taps}
    return [by_name[name] for name in stage.taps if name in by_name]


def _stage_chart(stages: Iterable[StageRecord], taps: Iterable[TapRecord], in_floors: bool, title: str) -> Markup:
    """The largest error of each stage's taps, in noise floors if they were measured."""
    taps, rows = list(taps), []
    for stage in stages:
        own = _taps_of(stage, taps)
        alone = [t for t in own if t.judged_by == "isolated"]
        propagated = [_drawn(t.max_abs_diff) for t in own]
        isolated = [_drawn(t.isolated_max_abs_diff) for t in alone]
        if in_floors:
            propagated = [_times(t.max_abs_diff, t.floor.propagated) for t in own if t.floor]
            isolated = [_times(t.isolated_max_abs_diff, t.floor.isolated) for t in alone if t.floor]
        found = {t.status for t in own}
        remark = next((status for status in ("diverges", "carried", "unknown") if status in found), "")
        rows.append(
            charts.LayerRow(
                filters.visible(stage.name),
                max(propagated, default=None),
                max(isolated, default=None),
                1.0 if in_floors else None,
                "diverges" if stage.diverges else remark,
                stage.diverges,
            )
        )
    return Markup(charts.layer_chart(rows, title, "times the noise floor" if in_floors else "max abs diff"))  # nosec B704


def _times(error: float | None, floor: float) -> float:
    """An error in noise floors. Any error is infinitely many floors of 0."""
    error = _drawn(error)
    return 0.0 if error == 0 else error / floor if floor > 0 and math.isfinite(floor) else math.inf


@dataclass(frozen=True)
class _HeatFacts:
    """A heat map for the template. ``largest``: the largest error, at ``position`` and in the ``columns``, in words.
    ``zero`` and ``infinite``: whether a cell is 0, or not finite."""

    largest: float
    position: int
    columns: str
    zero: bool
    infinite: bool
    drawing: Markup
    legend: Markup


def _heat_facts(heat: HeatMap) -> _HeatFacts | None:
    """What the template writes of a heat map; None if it has no cells."""
    values = [[_drawn(v) for v in row] for row in heat.values]
    cells = [(v, y, x) for y, row in enumerate(values) for x, v in enumerate(row)]
    if not cells:
        return None
    largest, y, x = max(cells, key=lambda cell: cell[0])
    wide = heat.channels_per_column
    first, last = x * wide, min((x + 1) * wide, heat.channels) - 1
    columns = f"channel {first:,}" if first == last else f"channels {first:,} to {last:,}"
    said = f"Max abs diff of {len(values):,} positions and {heat.channels:,} channels. "
    said += f"Largest: {filters.number(largest)} at position {y:,}, {columns}."
    scale, steps = charts.colour_scale(values), ""
    if scale:
        ends = f"Colours from {filters.number(scale.low)} to {filters.number(scale.high)}"
        steps = charts.colour_legend(scale, ends)
    return _HeatFacts(
        largest=largest,
        position=y,
        columns=columns,
        zero=any(v == 0 for v, _, _ in cells),
        infinite=any(v == math.inf for v, _, _ in cells),
        drawing=Markup(charts.heat_map(values, heat.channels, said)),  # nosec B704
        legend=Markup(steps),  # nosec B704
    )


def _shares(document: VerifyDocument) -> list[charts.Share]:
    """What became of the tensors of each component, and how many are wrong."""
    dropped = {}
    if document.page and document.page.accounting:
        dropped = {name: sum(c.dropped.values()) for name, c in document.page.accounting.components.items()}
    names = list(dict.fromkeys([*dropped, *(place.component for place in document.places or ())]))
    rows = []
    for name in names:
        own = [place for place in document.places or () if place.component == name]
        off, filled = sum(place.off for place in own), sum(place.filled for place in own)
        right = max(sum(place.tensors for place in own) - off - filled, 0)
        said = "no fault found" if document.not_compared else "equal"
        kinds = (("right", said, right), ("wrong", "wrong", off), ("filled", "filled", filled))
        parts = (*kinds, ("dropped", "dropped", dropped.get(name, 0)))
        rows.append(charts.Share(filters.visible(component_words(name)), parts))
    return rows


def _layer_name(place: PlaceRecord) -> str:
    where = f" {place.stack}" if place.stack else ""
    return filters.visible(
        component_words(place.component).replace(" encoder", "").replace(" decoder", " dec.") + where
    )


def _place_name(place: PlaceRecord) -> str:
    return _layer_name(place) + ("" if place.layer is None else f".{place.layer}")


def _fault_map(document: VerifyDocument, title: str) -> Markup:
    """The layers of the stacks in which a tensor is wrong; nothing if all faults are outside of layers."""
    stacks: dict[str, list[charts.Cell]] = {}
    for place in document.places or ():
        if place.layer is not None:
            cell = charts.Cell(place.layer, place.tensors, place.off)
            stacks.setdefault(_layer_name(place), []).append(cell)
    rows = [(name, cells) for name, cells in stacks.items() if any(cell.off for cell in cells)]
    return Markup(charts.fault_map(rows, title, "layer") if rows else "")  # nosec B704


def _error_chart(document: VerifyDocument, title: str) -> tuple[Markup, int]:
    """Relative L2 of the layers whose values are off by no known cause, and how many of them are left out; nothing if
    there are none. Of many the largest are drawn."""
    off = [place for place in document.places or () if place.max_abs_diff is not None]
    drawn = sorted(range(len(off)), key=lambda i: -_drawn(off[i].relative_l2))[:_DRAWN]
    rows = [
        charts.LayerRow(
            _place_name(place),
            _drawn(place.relative_l2),
            None,
            None,
            f"{place.off} of {plural(place.tensors, 'tensor')}",
        )
        for place in (off[i] for i in sorted(drawn))
    ]
    chart = charts.layer_chart(rows, title, "relative L2", single=True) if rows else ""
    return Markup(chart), len(off) - len(rows)  # nosec B704


def _greatest_error(behaviour: BehaviourRecord) -> float:
    """The largest finite relative L2 error of a cause or of all together: the full length of a bar."""
    errors = [e.relative_l2 for e in (*(c.error for c in behaviour.causes), behaviour.together)]
    return max((e for e in errors if math.isfinite(e)), default=0.0)


def _bar(error: float, greatest: float, what: str, css: str = "") -> Markup:
    share = 1.0 if not math.isfinite(error) else error / greatest if greatest else 0.0
    return Markup(charts.bar(share, filters.visible(f"{what}: relative L2 {filters.number(error)}"), css))  # nosec B704


def _receipt_rows(receipt: Json) -> list[tuple[str, str]]:
    """The facts of a receipt: their names, and their values as text or markup. Others may have edited the receipt, so
    that it may hold anything; what has no value is left out."""
    source, tool = _table(receipt.get("source")), _table(receipt.get("tool"))
    name, size = _code(source.get("name")), source.get("size")
    if name and isinstance(size, int) and 0 < size < 2**63:
        name += f", {human_bytes(size)}"
    options = _table(receipt.get("options")).items()
    rows = [
        ("Source", name),
        ("SHA-256", _code(source.get("sha256"))),
        ("Repository", _code(source.get("repo"))),
        ("File", _code(source.get("file"))),
        ("Commit", _code(source.get("commit"))),
        ("ETag", _code(source.get("etag"))),
        ("Layout", _text(receipt.get("layout"))),
        ("Component", _text(receipt.get("component"))),
        ("Stored as", _text(receipt.get("dtype"))),
        ("Text encoder", _text_encoder(_table(receipt.get("architecture")))),
        ("Options", ", ".join(_option(name, value) for name, value in options if value)),
        ("Tensors", _counted(_table(receipt.get("counts")))),
        ("Made by", " ".join(_text(tool[key]) for key in ("name", "version") if tool.get(key))),
        ("Mapping tables, SHA-256", _code(tool.get("mappings_sha256"))),
    ]
    return [(name, value) for name, value in rows if value]


def _option(name: str, value: JsonValue) -> str:
    name = name.replace("_", " ")
    return name if value is True else f"{name} {_text(value)}"


def _text_encoder(architecture: Json) -> str:
    layers, wide, heads, context = (
        _text(architecture.get(key))
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "context_length")
    )
    shape = [f"{layers} layers" * bool(layers), f"{wide} wide" * bool(wide), _heads(heads) * bool(heads)]
    shape += [f"context {context}" * bool(context), "causal" * bool(architecture.get("causal_masking"))]
    said = ", ".join(filter(None, shape))
    return f"{_text(architecture.get('variant')) or 'custom'}: {said}" if said else ""


def _heads(heads: str) -> str:
    return f"{heads} head" if heads == "1" else f"{heads} heads"


def _counted(counts: Json) -> str:
    return ", ".join(f"{_text(counts[name])} {name}" for name in ("source", "mapped", "dropped") if name in counts)


def _table(value: JsonValue) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: JsonValue) -> str:
    """A value of a receipt as text; an empty one, or null, as an empty text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value) if value else ""


def _code(value: JsonValue) -> str:
    return filters.code(text) if (text := _text(value)) else ""
