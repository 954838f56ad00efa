"""The charts of a report as plain SVG: errors by layer or stage, a heat map, a bar. Colours come from page classes.

Horizontal positions are percentages of the drawing's width and everything else is in pixels, so that a chart
fills a phone and a wide screen and its text keeps its size. Labels at negative positions are drawn in the padding
that the style sheet gives the class. Names and titles are escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 8  # colours of the heat map

_ROW = 30
_TOP = 24
_BAND = 12.0  # percent of the width for what is not on a log scale
_GAP = 6.0  # between that and the scale, or their labels touch on a phone
_NAME = 19  # characters that fit next to the plot on a phone; the table has the whole name
_LONG_NAME = 26  # on a wide screen
_LABELS = 4


@dataclass(frozen=True)
class LayerRow:
    """One tap, or a stage of several. Errors are None if they were not measured and infinity if they are not finite.
    ``remark``: text below the name. ``made_here``: the error was made here and not carried here."""

    name: str
    propagated: float | None
    isolated: float | None
    noise: float | None
    remark: str = ""
    made_here: bool = False


@dataclass(frozen=True)
class _Axis:
    low: int  # decades
    high: int
    infinite: bool
    zero: bool

    @property
    def start(self) -> float:
        return _BAND + _GAP if self.zero else 0.0

    @property
    def end(self) -> float:
        return 100 - _BAND - _GAP if self.infinite else 100.0

    def at(self, value: float) -> float:
        """Percent of the width."""
        if value == 0:
            return _BAND / 2
        if math.isinf(value):
            return 100 - _BAND / 2
        return self.at_decade(math.log10(value))

    def at_decade(self, decade: float) -> float:
        """Percent of the width of a power of ten."""
        share = (decade - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _axis(rows: Sequence[LayerRow], zero: bool) -> _Axis:
    """The scale of these errors. ``zero``: whether 0 has its band although no error is 0."""
    values = [v for row in rows for v in (row.propagated, row.isolated, row.noise) if v is not None]
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    low, high = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (-8, 0)
    return _Axis(low, max(high, low + 2), any(math.isinf(v) for v in values), zero or 0 in values)


def _words(value: float) -> str:
    return "infinite or NaN" if math.isinf(value) else "0.0" if value == 0 else f"{value:.2e}"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _name(name: str, y: float) -> str:
    """The name of a row, left of the plot: as much of it as fits, on a phone and on a wide screen."""
    if len(name) <= _NAME:
        return _label("-10", y, name, "name", "end")
    brief, whole = (
        _label("-10", y, _short(name, most), css, "end")
        for most, css in ((_NAME, "name brief"), (_LONG_NAME, "name whole"))
    )
    return f"<g><title>{html.escape(name)}</title>{brief}{whole}</g>"


def _label(x: str, y: float, words: str, css: str = "quiet", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y:g}" class="{css}" text-anchor="{anchor}">{html.escape(words)}</text>'


def marker(kind: str, x: str, y: float, reach: float = 4.5) -> str:
    """The mark of a series: a disc, a hollow square, an upright stroke that goes this far up and down."""
    if kind == "propagated":
        return f'<circle class="m-propagated" cx="{x}" cy="{y:g}" r="4.2"/>'
    if kind == "isolated":
        return f'<rect class="m-isolated" x="{x}" y="{y - 3.5:g}" width="7" height="7" transform="translate(-3.5 0)"/>'
    return f'<line class="m-noise" x1="{x}" x2="{x}" y1="{y - reach:g}" y2="{y + reach:g}"/>'


def legend_mark(kind: str) -> str:
    """The mark of a series for a legend, where its name follows."""
    return f'<svg aria-hidden="true">{marker(kind, "50%", 6)}</svg>'


# Vertical offsets of a tap's marks in its row: without them, equal errors would hide each other. The floor is a stroke
# through both lanes, so that a mark stands on one side of it.
_LANES = {"noise": 15.0, "propagated": 9.0, "isolated": 21.0}
_FLOOR_REACH = 11.0


def layer_chart(rows: Sequence[LayerRow], title: str, unit: str, *, single: bool = False) -> str:
    """A row for each tap from top to bottom, errors on a log scale from left to right. Zero has its own band on the
    left; infinity has one on the right if an error is infinite. ``unit``: what the scale shows. ``single``: the rows
    have one error each (``propagated``), which nothing carries to the next row: marks stand on a stem."""
    axis = _axis(rows, zero=not single)
    bottom = _TOP + _ROW * len(rows)
    out = [
        f'<svg class="chart layers" role="img" height="{bottom + 40}"><title>{html.escape(title)}</title>',
    ]
    if axis.zero:
        out.append(f'<rect class="band" x="0" y="{_TOP}" width="{_BAND:g}%" height="{bottom - _TOP}"/>')
    if axis.infinite:
        out.append(f'<rect class="band" x="{100 - _BAND:g}%" y="{_TOP}" width="{_BAND:g}%" height="{bottom - _TOP}"/>')
    out += _names(rows)
    out += _scale(axis, bottom)
    out.append(_label("50%", bottom + 34, f"{unit}, logarithmic"))
    if not single:
        out.append(_connection(rows, "propagated", axis))
    for i, row in enumerate(rows):
        for kind, lane in _LANES.items():
            value = getattr(row, kind)
            if value is not None:
                what = unit if single else "noise floor" if kind == "noise" else kind
                said = html.escape(f"{row.name}, {what}: {_words(value)}")
                x, y = f"{axis.at(value):.2f}%", _TOP + _ROW * i + (_ROW / 2 if single else lane)
                stem = f'<line class="l-{kind}" x1="0" x2="{x}" y1="{y:g}" y2="{y:g}"/>' if single else ""
                out.append(f"<g><title>{said}</title>{stem}{marker(kind, x, y, _FLOOR_REACH)}</g>")
    return "".join(out) + "</svg>"


def _names(rows: Sequence[LayerRow]) -> list[str]:
    out = []
    for i, row in enumerate(rows):
        y = _TOP + _ROW * i
        if row.made_here:
            out.append(f'<rect class="hit" x="0" y="{y}" width="100%" height="{_ROW}"/>')
        out.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        out.append(_name(row.name, y + (14 if row.remark else 19)))
        if row.remark:
            out.append(_label("-10", y + 26, row.remark, "alarm" if row.made_here else "carried", "end"))
    return out


def _scale(axis: _Axis, bottom: int) -> list[str]:
    decades = axis.high - axis.low
    apart = max(1, math.ceil(decades / _LABELS))
    out = []
    for decade in range(axis.low, axis.high + 1):
        x = f"{axis.at_decade(decade):.2f}%"
        labelled = (decade - axis.low) % apart == 0
        if labelled or decades <= 24:
            out.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
        if labelled:
            out += [_label(x, y, _power(decade)) for y in (_TOP - 8, bottom + 16)]
    ends = [("0", _BAND / 2)] * axis.zero + [("inf", 100 - _BAND / 2)] * axis.infinite
    out += [_label(f"{x:g}%", y, words, "name") for words, x in ends for y in (_TOP - 8, bottom + 16)]
    out.append(f'<line class="edge" x1="0" x2="100%" y1="{bottom}" y2="{bottom}"/>')
    return out


def _power(decade: int) -> str:
    return f"{10.0**decade:,g}" if -1 <= decade <= 3 else f"1e{decade}"


def _connection(rows: Sequence[LayerRow], kind: str, axis: _Axis) -> str:
    """Lines from tap to tap, where both ends are on the scale."""
    out = []
    for i in range(len(rows) - 1):
        a, b = getattr(rows[i], kind), getattr(rows[i + 1], kind)
        if a is None or b is None or not 0 < a < math.inf or not 0 < b < math.inf:
            continue
        y = _TOP + _ROW * i + _LANES[kind]
        ends = f'x1="{axis.at(a):.2f}%" y1="{y:g}" x2="{axis.at(b):.2f}%" y2="{y + _ROW:g}"'
        out.append(f'<line class="l-{kind}" {ends}/>')
    return "".join(out)


@dataclass(frozen=True)
class ColourScale:
    """Colours in equal steps of the logarithm between two numbers above 0."""

    low: float
    high: float

    def css(self, value: float) -> str:
        """The class of a value; 0 and infinity have their own."""
        if math.isinf(value):
            return "ci"
        if value <= 0:
            return "cz"
        span = math.log(self.high) - math.log(self.low)
        share = (math.log(value) - math.log(self.low)) / span if span else 1.0
        return f"c{min(max(int(share * STEPS), 0), STEPS - 1)}"

    def edge(self, i: int) -> float:
        """The lower bound of a step."""
        share = i / STEPS
        return math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)


def colour_scale(values: Sequence[Sequence[float]]) -> ColourScale | None:
    """The scale of a heat map; None if no value is above 0 and finite."""
    found = [v for row in values for v in row if 0 < v < math.inf]
    return ColourScale(min(found), max(found)) if found else None


def heat_map(values: Sequence[Sequence[float]], channels: int, title: str) -> str:
    """A cell for each position (from top to bottom) and column of channels (from left to right)."""
    scale = colour_scale(values) or ColourScale(1.0, 1.0)
    rows, columns = len(values), max((len(row) for row in values), default=0)
    side = max(6, min(18, 420 // max(rows, 1)))
    height = side * rows
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(values):
        x = 0
        while x < len(row):
            css, start = scale.css(row[x]), x
            # Neighbours of one colour are one piece: a page of thousands of cells stays small.
            while x < len(row) and scale.css(row[x]) == css:
                x += 1
            paths.setdefault(css, []).append(f"M{start} {y}h{x - start}v1h{start - x}z")
    cells = "".join(f'<path class="{css}" d="{"".join(d)}"/>' for css, d in sorted(paths.items()))
    every = max(1, math.ceil(14 / side))
    apart = every if every == 1 or every % 2 == 0 else every + 1
    marks = [_label("-7", side * y + side / 2 + 4, str(y), anchor="end") for y in range(0, rows, apart)]
    last = max(channels - 1, 0)
    for share, anchor in ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end")):
        marks.append(_label(f"{share}%", height + 16, f"{round(last * share / 100):,}", anchor=anchor))
    marks.append(_label("50%", height + 34, "channel"))
    return (
        f'<svg class="chart heat" role="img" height="{height + 38}"><title>{html.escape(title)}</title>'
        f'<svg width="100%" height="{height}" viewBox="0 0 {max(columns, 1)} {max(rows, 1)}" '
        f'preserveAspectRatio="none" shape-rendering="crispEdges">{cells}</svg>'
        f'<line class="edge" x1="0" x2="100%" y1="{height}" y2="{height}"/>{"".join(marks)}</svg>'
    )


def colour_legend(scale: ColourScale, title: str) -> str:
    """The steps of a scale from left to right, with the numbers at every other edge."""
    step = 100 / STEPS
    boxes = [f'<rect class="c{i}" x="{step * i:g}%" y="0" width="{step:g}%" height="14"/>' for i in range(STEPS)]
    marks = []
    for i in range(0, STEPS + 1, 2):
        anchor = "start" if i == 0 else "end" if i == STEPS else "middle"
        marks.append(_label(f"{step * i:g}%", 29, f"{scale.edge(i):.1e}", anchor=anchor))
    return (
        f'<svg class="chart" role="img" height="34"><title>{html.escape(title)}</title>'
        f'<g shape-rendering="crispEdges">{"".join(boxes)}</g>{"".join(marks)}</svg>'
    )


def bar(share: float, title: str, css: str = "") -> str:
    """A bar that fills this share (0 to 1) of its track; any share above 0 is visible."""
    percent = min(max(share, 0.0), 1.0) * 100
    if 0 < percent < 0.6:
        percent = 0.6
    return (
        f'<svg class="chart" role="img" height="12"><title>{html.escape(title)}</title>'
        f'<rect class="track" x="0" y="0" width="100%" height="12" rx="2"/>'
        f'<rect class="fill {css}" x="0" y="0" width="{percent:.2f}%" height="12" rx="2"/></svg>'
    )


@dataclass(frozen=True)
class Share:
    """A component, and its tensors by kind: (class of the colour, the kind in words, number)."""

    name: str
    parts: tuple[tuple[str, str, int], ...]


def share_chart(rows: Sequence[Share], title: str, unit: str) -> str:
    """A bar for each component, in pieces by kind, on one linear scale from 0. ``unit``: what the scale counts."""
    most = max((sum(n for *_, n in row.parts) for row in rows), default=0) or 1
    step = _step(most)
    end = math.ceil(most / step) * step
    bottom = _TOP + _ROW * len(rows)
    out = [f'<svg class="chart layers" role="img" height="{bottom + 20}"><title>{html.escape(title)}</title>']
    for tick in range(0, end + 1, step):
        x_tick = f"{100 * tick / end:.4g}%"
        anchor = "start" if tick == 0 else "end" if tick == end else "middle"
        out.append(f'<line class="grid" x1="{x_tick}" x2="{x_tick}" y1="{_TOP}" y2="{bottom}"/>')
        out.append(_label(x_tick, _TOP - 8, f"{tick:,}", anchor=anchor))
    for i, row in enumerate(rows):
        y, x = _TOP + _ROW * i, 0.0
        out.append(_name(row.name, y + 19))
        for css, words, count in row.parts:
            # What is one of a thousand has to be seen as well.
            width = max(100 * count / end, 0.6) if count else 0
            if width:
                said = html.escape(f"{row.name}, {words}: {count:,}")
                box = f'<rect class="s-{css}" x="{x:.2f}%" y="{y + 7}" width="{width:.2f}%" height="16"/>'
                out.append(f"<g><title>{said}</title>{box}</g>")
            x += width
    out.append(_label("50%", bottom + 16, unit))
    return "".join(out) + "</svg>"


def _step(most: int) -> int:
    """The distance of the ticks on a scale that reaches this number: 1, 2 or 5 of a power of ten, in five at most."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power * 5 >= most:
                return digit * power
        power *= 10


@dataclass(frozen=True)
class Cell:
    """A layer: its number, and how many of its tensors are off."""

    column: int
    tensors: int
    off: int


_SPACIOUS = 10  # columns whose cells have room for a number on a phone


def fault_map(rows: Sequence[tuple[str, Sequence[Cell]]], title: str, unit: str) -> str:
    """A row for each stack of layers, a cell for each layer, and in it how many of its tensors are off. ``unit``: what
    the columns are."""
    columns = max((cell.column for _, cells in rows for cell in cells), default=0) + 1
    width, bottom = 100 / columns, _TOP + _ROW * len(rows)
    css = "chart layers dense" if columns > _SPACIOUS else "chart layers"
    out = [f'<svg class="{css}" role="img" height="{bottom + 20}"><title>{html.escape(title)}</title>']
    apart = max(1, math.ceil(columns / 8))
    out += [_label(f"{width * (n + 0.5):.2f}%", _TOP - 8, str(n)) for n in range(0, columns, apart)]
    for i, (name, cells) in enumerate(rows):
        y = _TOP + _ROW * i
        out.append(_name(name, y + 19))
        for cell in cells:
            css = "t-all" if cell.off == cell.tensors else "t-some" if cell.off else "t-none"
            said = html.escape(f"{name} {cell.column}: {cell.off} of {cell.tensors} tensors")
            box = (
                f'<rect class="{css}" x="{width * cell.column:.2f}%" y="{y + 3}" width="{width * 0.92:.2f}%" '
                f'height="{_ROW - 6}"/>'
            )
            number = ""
            if cell.off and columns <= 40:
                number = _label(f"{width * (cell.column + 0.46):.2f}%", y + 19, str(cell.off), "cell")
            out.append(f"<g><title>{said}</title>{box}{number}</g>")
    out.append(_label("50%", bottom + 16, unit))
    return "".join(out) + "</svg>"
