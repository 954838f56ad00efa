"""The report pages as text: what they say, that nothing in a record becomes markup, that they load nothing."""

from __future__ import annotations

import copy
import html
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from support import html_samples as samples

from sam3lite_convert.report.html import charts, style
from sam3lite_convert.report.html.layers import runs
from sam3lite_convert.report.html.page import parity_page, verify_page
from sam3lite_convert.report.html.parts import measure, number, text

PAGES = {name: (parity_page, make) for name, make in samples.PARITY.items()}
PAGES |= {name: (verify_page, make) for name, make in samples.VERIFY.items()}
VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """A page as a tree walk: its elements, its text, and whether every element was closed in its place."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> out of place")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=PAGES, scope="module")
def source(request: pytest.FixtureRequest) -> str:
    render, make = PAGES[request.param]
    return render(make())


@pytest.fixture(scope="module")
def differs() -> Page:
    return Page(parity_page(samples.differs()))


def test_a_page_is_well_formed(source):
    assert Page(source).faults == []


def test_a_page_runs_nothing_and_loads_nothing(source):
    page = Page(source)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "video", "audio", "a"}
    assert page.having("link") == [{"rel": "icon", "href": "data:,"}]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")], (
            tag
        )
    style = re.search("<style>(.*?)</style>", source, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_says_what_browsers_and_readers_need(source):
    page = Page(source)
    metas = page.having("meta")
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert {"charset": "utf-8"} in metas
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert {"name": "color-scheme", "content": "light dark"} in metas
    assert page.having("html") == [{"lang": "en"}]
    assert len(page.having("h1")) == 1
    assert all(th.get("scope") in ("row", "col") for th in page.having("th"))


def test_every_drawing_has_a_title_or_is_decoration(source):
    drawings = re.findall(r"<svg([^>]*)>(<title>[^<]+</title>)?", source)
    assert len(drawings) > 2 or "sam3lite verify" in source
    for attributes, title in drawings:
        inner = "viewBox" in attributes  # the cells within the heat map's drawing
        assert inner or 'aria-hidden="true"' in attributes or ('role="img"' in attributes and title), attributes


def test_what_came_out_of_a_file_is_shown_as_it_is(differs):
    assert samples.SCRIPT in differs.text
    assert "“<script>alert(1)</script>”" in differs.text
    assert 'detector."quoted"\\n<img src=x onerror=alert(2)>.very_long' in differs.text
    assert "cat \\u202egod\\u202c <b>bold</b> & \"quotes\" 'single' \\x1b[31m\\n</pre></details>" in differs.text
    for prompt in samples.PROMPTS[1:6]:
        assert prompt in differs.text


STEERING = [chr(c) for c in (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F),
                             *range(0x2066, 0x206A), 0xFEFF)]  # fmt: skip


def test_nothing_in_a_page_steers_the_reader(source):
    assert not [hex(ord(c)) for c in STEERING if c in source]


@pytest.mark.parametrize("char", [*STEERING, "\ud800", "\u2028", "\n"], ids=lambda c: hex(ord(c)))
def test_a_steering_character_is_made_visible(char):
    assert text(f"a{char}b") == f"a{char.encode('unicode_escape', 'surrogatepass').decode()}b"


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a record holds strings."""
    if isinstance(value, str):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from strings(item, (*path, key))


@pytest.mark.parametrize("name", ["differs", "proven", "mismatch"])
def test_no_string_of_a_record_becomes_markup(name):
    render, make = PAGES[name]
    whole = make()
    for kind in ("mismatched", "unexpected"):
        whole[kind] = whole.get(kind, [])[:2]
    evil = "\"'><img src=x onerror=alert(3)>\u202e"
    plain = Page(render(whole)).elements
    for path in list(strings(whole)):
        record = copy.deepcopy(whole)
        at = record
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = evil
        page = Page(render(record))
        assert page.faults == [], path
        assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain}, path
        assert not [a for _, a in page.elements if "onerror" in a], path


@pytest.mark.parametrize("name", PAGES)
def test_names_of_fields_are_escaped_too(name):
    render, make = PAGES[name]
    record = make() | {"versions": {"<i>x</i>": "<b>1</b>"}}
    record["accounting"]["components"]["<i>y</i>"] = {"keys": 1, "mapped": 0, "dropped": {"<i>z</i>": 1}}
    page = Page(render(record))
    assert not page.having("i") + page.having("b")
    assert all(f"<i>{c}</i>" in page.text for c in "xyz")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_of_whatever_fields_there_are(name):
    render, make = PAGES[name]
    assert Page(render({})).faults == []
    whole = make()
    for key in whole:
        for value in (None, ...):
            record = {k: v for k, v in whole.items() if k != key} | ({} if value is ... else {key: value})
            assert Page(render(record)).faults == [], (key, value)
    for path in [("behaviour",), ("heat_map",), ("receipt",), ("accounting",), ("diagnosis",), ("original_repo",)]:
        part = whole.get(path[0]) or {}
        for key in part:
            assert Page(render(whole | {path[0]: {k: v for k, v in part.items() if k != key}})).faults == [], key


def test_infinities_may_come_as_such():
    finite = samples.differs()
    infinite = json.loads(json.dumps(finite).replace('"max_abs_diff": null', '"max_abs_diff": Infinity'))
    infinite["heat_map"]["values"][9][20:24] = [float("inf"), float("nan"), None, float("-inf")]
    assert parity_page(infinite) == parity_page(finite)


def test_a_number_reads_as_in_the_terminal():
    record = {"a": 0.0, "b": 0.000438, "c": None, "d": float("nan")}
    assert [number(measure(record, key)) for key in "abcde"] == ["0.0", "4.38e-04", "inf", "inf", "-"]


VERDICTS = [
    ("exact", None, "Exact", "Not looked at"),
    ("within_tolerance", "differs", "Within tolerance", "Differs"),
    ("differs", "exact", "Differs", "Exact"),
    ("exact", "within_tolerance", "Exact", "Within tolerance"),
]


@pytest.mark.parametrize(("weights", "behaviour", "left", "right"), VERDICTS)
def test_both_verdicts_stand_at_the_top_and_apart(weights, behaviour, left, right):
    record = samples.base(verdict=weights)
    if behaviour:
        record["behaviour"] = samples.behaviour(samples.PROMPTS[:2]) | {"verdict": behaviour}
    source = parity_page(record)
    cards = re.findall('<article class="card (\\w+)">(.*?)</article>', source, re.S)
    said = [Page(body).text for _, body in cards]
    assert len(said) == 2
    assert said[0].startswith("Weights") and left in said[0] and "is it converted right?" in said[0]
    assert said[1].startswith("Behaviour") and right in said[1] and "does it do what the original does?" in said[1]
    assert source.index("<article") < source.index("<section")


def test_the_sections_stand_in_order(differs):
    source = parity_page(samples.differs())
    assert re.findall("<section><h2>(.*?)</h2>", source) == [
        "Layer by layer", "Where it differs", "Behaviour", "Worst prompts", "Accounting", "Original repository",
        "Receipt", "Notes", "Versions", "Command",
    ]  # fmt: skip
    assert differs.text.index("First divergence: layers.3") < differs.text.index("Likely cause: q and k are swapped")
    assert differs.text.index("Likely cause") < differs.text.index("Layer by layer")


def test_what_a_record_lacks_is_left_out():
    source = parity_page(samples.base())
    assert re.findall("<section><h2>(.*?)</h2>", source) == ["Layer by layer", "Behaviour", "Command"]
    assert "First divergence" not in source


def test_the_accounting_adds_up(differs):
    assert "1,281 source tensors = 912 mapped + 369 dropped; 1,204 target tensors." in differs.text
    foot = re.search("<tfoot>(.*?)</tfoot>", parity_page(samples.differs()))[1]
    assert re.findall(">([^<>]+)<", foot) == ["total", "1,281", "912", "369", "548.87 M"]
    assert "the video tracker is not part of this model" in differs.text


def test_a_long_list_is_cut():
    source = verify_page(samples.mismatch())
    page = Page(source)
    assert "... and 51 more; --json lists all of them" in page.text
    assert "... and 101 more; --json lists all of them" in page.text
    assert "layers.199.attention.in_proj_weight" in page.text
    assert "layers.200.attention.in_proj_weight" not in page.text
    assert "555 faults; 1,204 of 1,204 tensors were compared." in page.text


def test_a_proof_says_up_to_what():
    page = Page(verify_page(samples.proven()))
    assert "1,204 of 1,204 tensors turn back into their source bit for bit up to the cast to float16." in page.text
    assert "12,345,678 values, max abs error 2.40e-04" in page.text


def test_behaviour_says_what_moves_the_output_and_what_mends_it(differs):
    assert "padded to 32 in place of 16: the position table is stretched" in differs.text
    assert "relative L2 4.20e-01 · cosine 0.860000 · max abs diff 3.78e+00 · moves 40 of 40 prompts" in differs.text
    assert "max abs diff 5.52e+00 · 3 tokens on one side only" in differs.text
    assert "The same on both sides: both cut at 16" in differs.text
    assert "out = model(input_ids=ids, attention_mask=None)\n" in differs.text


def plain_runs(ids: list[int], other: list[int] | None = None) -> str:
    marked = runs(ids, other).replace("<mark>", "[").replace("</mark>", "]")
    return html.unescape(re.sub("<[^>]+>", "", marked)).replace("\xa0", " ").replace("\xd7", "x")


def test_ids_are_shortened_and_marked():
    assert plain_runs([1, 2, 2, 0, 0, 0, 0]) == "1 2 2 0 x 4"
    assert plain_runs([0, 0, 0]) == "0 x 3"
    assert plain_runs([1, 2, 9, 9, 9, 9], [1, 2, 0, 9, 9]) == "1 2 [9] 9 9 [9]"
    assert plain_runs([1, 9, 9, 9, 9], [1, 0]) == "1 [9 x 4]"
    assert plain_runs([]) == ""


def places(chart: str, kind: str) -> list[float]:
    return [float(x) for x in re.findall(rf'class="m-{kind}" (?:cx|x|x1)="([\d.]+)%"', chart)]


def test_the_chart_is_logarithmic_with_places_for_zero_and_infinity():
    values = [0.0, 1e-6, 1e-4, 1e-2, float("inf")]
    rows = [charts.LayerRow(f"t{i}", v, v, None) for i, v in enumerate(values)]
    zero, *scale, infinite = places(charts.layer_chart(rows, "t"), "propagated")
    assert zero < 12 < scale[0] and scale[-1] < 88 < infinite
    assert scale[1] - scale[0] == pytest.approx(scale[2] - scale[1], abs=0.02)
    assert places(charts.layer_chart(rows, "t"), "noise") == []
    assert ">inf</text>" not in charts.layer_chart(rows[:4], "t")
    assert ">0</text>" in charts.layer_chart(rows[1:4], "t")


@pytest.mark.parametrize("values", [[0.0], [5e-324, 1.7e308], [1e-5], [float("inf")], [1.0, 10.0]])
def test_every_mark_lies_on_the_chart(values):
    rows = [charts.LayerRow("t", v, v, v) for v in values]
    for kind in ("propagated", "isolated", "noise"):
        found = places(charts.layer_chart(rows, "t"), kind)
        assert len(found) == len(values) and all(0 <= x <= 100 for x in found)


def test_equal_errors_do_not_hide_each_other():
    chart = charts.layer_chart([charts.LayerRow("t", 1e-3, 1e-3, 1e-3)], "t")
    disc = re.search('cy="([\\d.]+)"', chart)[1]
    square = re.search('class="m-isolated" x="[^"]+" y="([\\d.]+)"', chart)[1]
    stroke = re.search('class="m-noise"[^>]* y1="([\\d.]+)"', chart)[1]
    assert float(disc) + 4.2 < float(square) and float(square) + 7 < float(stroke)


def cells(drawn: str) -> dict[tuple[int, int], str]:
    """Colour class by (row, column), read back from the paths."""
    out = {}
    for css, path in re.findall('<path class="(\\w+)" d="([^"]+)"/>', drawn):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path):
            for i in range(int(width)):
                assert (int(y), int(x) + i) not in out
                out[int(y), int(x) + i] = css
    return out


def test_the_heat_map_has_a_cell_for_each_value():
    inf = float("inf")
    values = [[0.0, 1e-8, 1e-8, inf], [1e-4, 1e-2, 1.0, 0.9999999]]
    assert cells(charts.heat_map(values, 4, "t")) == {
        (0, 0): "cz", (0, 1): "c0", (0, 2): "c0", (0, 3): "ci",
        (1, 0): "c4", (1, 1): "c6", (1, 2): "c7", (1, 3): "c7",
    }  # fmt: skip
    assert len(cells(charts.heat_map([[0.0] * 3] * 2, 3, "t"))) == 6
    assert set(cells(charts.heat_map([[1e-300, 1e300]], 2, "t")).values()) == {"c0", "c7"}


def test_names_in_a_drawing_are_escaped():
    row = charts.LayerRow("<b>", 1.0, 1.0, 1.0, "<i>")
    scale = charts.ColourScale(1e-8, 1.0)
    drawn = [charts.layer_chart([row], "<u>"), charts.heat_map([[1.0]], 1, "<u>"), charts.colour_legend(scale, "<u>")]
    for drawing in [*drawn, charts.bar(0.5, "<u>")]:
        assert "&lt;u&gt;" in drawing
        assert not re.search("<[biu]>", drawing)


def test_the_steps_of_the_colour_scale_are_those_of_the_style_sheet():
    assert charts.STEPS == style.STEPS == len(style.DARK_RAMP)
    scale = charts.ColourScale(1e-8, 1.0)
    assert [scale.edge(i) for i in (0, 4, 8)] == pytest.approx([1e-8, 1e-4, 1.0])


def test_bars_are_linear_and_never_vanish():
    width = [
        float(re.search('class="fill [^"]*"[^>]* width="([\\d.]+)%"', charts.bar(s, "t"))[1]) for s in (0, 1e-9, 0.5, 7)
    ]
    assert width == [0, 0.6, 50, 100]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_guidelines_do():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def themes(source: str) -> dict[str, dict[str, str]]:
    """The colours that a page declares."""
    light, dark = re.findall(r":root\{((?:color-scheme:light dark;)?--bg[^}]*)\}", source)
    return {n: dict(re.findall(r"--([\w-]+):(#\w{6});", v)) for n, v in (("light", light), ("dark", dark))}


GROUNDS = dict.fromkeys(("text", "muted", "good", "fair", "bad"), ("bg", "surface"))
PAIRS = [(name, ground) for name, grounds in GROUNDS.items() for ground in grounds]
PAIRS += [(name, f"{name}-soft") for name in ("good", "fair", "bad")]
PAIRS += [("muted", "none-soft"), ("text", "none-soft"), ("text", "bad-soft"), ("bad", "bad-soft")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(source, theme):
    colours = themes(source)[theme]
    assert len(colours) == len(style.LIGHT) + style.STEPS
    poor = {pair: contrast(*(colours[p] for p in pair)) for pair in PAIRS}
    assert {pair: value for pair, value in poor.items() if value < 4.5} == {}


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_marks_can_be_seen_in_both_themes(colours):
    for name in ("propagated", "isolated", "noise", "infinite", "text"):
        for ground in ("surface", "bg", "bad-soft", "none-soft"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


@pytest.mark.parametrize(
    ("ramp", "colours"),
    [(style.LIGHT_RAMP, style.LIGHT), (style.DARK_RAMP, style.DARK)],
    ids=["light", "dark"],
)
def test_a_greater_error_is_further_from_the_page(ramp, colours):
    apart = [contrast(colour, colours["surface"]) for colour in ramp]
    assert apart == sorted(apart)
    assert all(b / a > 1.1 for a, b in itertools.pairwise(apart))


def test_the_same_record_gives_the_same_page(source):
    again = [render(make()) for render, make in PAGES.values()]
    assert source in again


def test_pages_need_no_torch():
    program = "import sys, sam3lite_convert.report.html.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
