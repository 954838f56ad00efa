"""The report pages as text: what they say, that nothing in a record becomes markup, that they load nothing."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from support import html_samples as samples

from sam3lite_convert.records.detector import DetectorDocument
from sam3lite_convert.records.record import Record, field_types
from sam3lite_convert.records.shared import Accounting, ComponentRecord
from sam3lite_convert.report.html import GENERATOR, charts
from sam3lite_convert.report.html.filters import breaking, number, output, prose, runs, sentence, visible
from sam3lite_convert.report.html.page import detector_page, parity_page, verify_page

PAGES = {name: (parity_page, make) for name, make in samples.PARITY.items()}
PAGES |= {name: (detector_page, make) for name, make in samples.DETECTOR.items()}
PAGES |= {name: (verify_page, make) for name, make in samples.VERIFY.items()}
VOID = {"meta", "link", "br", "wbr", "img"}
STYLE_SHEET = (files("sam3lite_convert.report.html") / "report.css").read_text(encoding="utf-8")


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
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "video", "audio", "a"}
    assert page.having("link") == [{"rel": "icon", "href": "data:,"}]
    for tag, attributes in page.elements:
        loading = {"srcset", "xlink:href"} if tag == "img" else {"src", "srcset", "xlink:href"}
        assert not [name for name in attributes if name.startswith("on") or name in loading], tag
    assert all(a["src"].startswith("data:image/png;base64,iVBORw0KGgo") for a in page.having("img"))
    style = re.search("<style>(.*?)</style>", source, re.S)[1]
    assert style.strip() == STYLE_SHEET.strip()
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_says_what_browsers_and_readers_need(source):
    page = Page(source)
    metas = page.having("meta")
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert source.startswith("<!doctype html>\n")
    assert {"name": "generator", "content": GENERATOR} in metas
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
    assert visible(f"a{char}b") == f"a{char.encode('unicode_escape', 'surrogatepass').decode()}b"


Path = tuple[str | int, ...]


def inside(value: object, path: Path = ()) -> Iterator[tuple[Path, object, object]]:
    """Every value of a document: where it is, its type as the record declares it, and the value."""
    if isinstance(value, Record):
        hints = field_types(type(value))
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            yield (*path, item.name), hints[item.name], inner
            yield from inside(inner, (*path, item.name))
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key), type(inner), inner
            yield from inside(inner, (*path, key))


def changed(value: object, path: Path, new: object) -> object:
    """A copy of a document with another value at one place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, Record):
        return dataclasses.replace(value, **{key: changed(getattr(value, key), tuple(rest), new)})
    if isinstance(value, dict):
        return {k: changed(v, tuple(rest), new) if k == key else v for k, v in value.items()}
    return type(value)(changed(v, tuple(rest), new) if n == key else v for n, v in enumerate(value))


def few(document: Record) -> Record:
    """The document with no more than two entries in its longest lists."""
    if isinstance(document, DetectorDocument):
        stages = tuple(dataclasses.replace(s, taps=s.taps[-2:]) for s in document.stages[4::3])
        named = {name for s in stages for name in s.taps}
        layers = tuple(t for t in document.judgement.layers if t.name in named)
        judgement = dataclasses.replace(document.judgement, layers=layers)
        return dataclasses.replace(document, stages=stages, judgement=judgement)
    long = [name for name in ("findings", "mismatched", "unexpected", "places") if getattr(document, name, None)]
    return dataclasses.replace(document, **{name: getattr(document, name)[:2] for name in long})


def is_literal(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Literal or any(map(is_literal, typing.get_args(hint)))


EVIL = "\"'><img src=x onerror=alert(3)>\u202e"


@pytest.mark.parametrize("name", ["differs", "proven", "mismatch", "detector differs"])
def test_no_string_of_a_document_becomes_markup_all_of_them_at_once(name):
    render, make = PAGES[name]
    whole = few(make())
    plain = {tag for tag, _ in Page(render(whole)).elements}
    paths = [path for path, hint, value in inside(whole) if isinstance(value, str) and not is_literal(hint)]
    assert len(paths) > 30
    for path in paths:
        whole = changed(whole, path, EVIL)
    source = render(whole)
    page = Page(source)
    assert page.faults == [] and {tag for tag, _ in page.elements} <= plain
    assert not [a for _, a in page.elements if "onerror" in a]
    assert "&lt;img src=x onerror=alert(3)&gt;" in source and "\u202e" not in source


@pytest.mark.parametrize(
    "name",
    [
        "mismatch",
        *(pytest.param(name, marks=pytest.mark.stress) for name in ("differs", "proven", "detector differs")),
    ],
)
def test_no_string_of_a_document_becomes_markup(name):
    render, make = PAGES[name]
    whole = few(make())
    plain = Page(render(whole)).elements
    found = [path for path, hint, value in inside(whole) if isinstance(value, str) and not is_literal(hint)]
    assert len(found) > 30
    for path in found:
        source = render(changed(whole, path, EVIL))
        page = Page(source)
        assert page.faults == [], path
        assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain}, path
        assert not [a for _, a in page.elements if "onerror" in a], path
        assert "\u202e" not in source, path


@pytest.mark.parametrize("name", PAGES)
def test_names_of_fields_are_escaped_too(name):
    render, make = PAGES[name]
    whole = make()
    accounting = whole.page.accounting or samples.exact().page.accounting
    mine = dataclasses.replace(
        whole.page,
        versions={"<i>x</i>": "<b>1</b>"},
        accounting=dataclasses.replace(
            accounting, components={f"<i>{n}</i>": part for n, part in accounting.components.items()}
        ),
        receipt={"<i>y</i>": 1, "options": {"<i>z</i>": "<b>2</b>"}},
    )
    page = Page(render(dataclasses.replace(whole, page=mine)))
    assert not page.having("i") + page.having("b")
    assert all(f"<i>{c}</i>" in page.text for c in ("x", "y", "z", "text_encoder"))


def absent(hint: object, value: object) -> Iterator[object]:
    """The emptiest values that a record allows in the place of one."""
    if value is not None and type(None) in typing.get_args(hint):
        yield None
    if value and isinstance(value, tuple | dict | str) and not is_literal(hint):
        yield type(value)()
    if isinstance(value, float):
        yield from (0.0, math.inf, math.nan)


LONG = (
    "differs",
    "within tolerance",
    "port passes",
    "port differs",
    "graph",
    "detector differs",
    "detector within tolerance",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.stress) if name in LONG else name for name in PAGES]
)
def test_a_page_is_made_of_whatever_a_document_may_lack(name):
    render, make = PAGES[name]
    whole, tried = few(make()), 0
    for path, hint, value in inside(whole):
        summed = "accounting" in path and path[-1] in ("components", "dropped")
        if summed or (path[:2] == ("page", "receipt") and len(path) > 2):
            continue  # its sum is checked where it is made; the receipt has its own test
        if any(isinstance(step, int) and step > 1 for step in path):
            continue  # entries of a list are all written alike
        for other in absent(hint, value):
            assert Page(render(changed(whole, path, other))).faults == [], (path, other)
            tried += 1
    nothing = ComponentRecord(keys=0, parameters=0, mapped=0, dropped={})
    empty = Accounting(components={}, total=nothing, dropped_kinds=())
    assert Page(render(changed(whole, ("page", "accounting"), empty))).faults == []
    assert tried + 1 > 30  # the empty accounting, in place of its parts alone, is one of them


ANYTHING = [None, True, False, 0, -1, 10**400, 0.5, math.nan, -math.inf, "", EVIL, [], [EVIL, {}], {}, {EVIL: [EVIL]}]


@pytest.mark.parametrize("name", [pytest.param("exact", marks=pytest.mark.stress), "proven"])
def test_a_receipt_may_hold_anything(name):
    render, make = PAGES[name]
    whole = make()
    plain = {tag for tag, _ in Page(render(whole)).elements}
    places = [path for path, _, _ in inside(whole.page.receipt)]
    assert len(places) > 30
    for path in places:
        for value in ANYTHING:
            source = render(changed(whole, ("page", "receipt", *path), value))
            page = Page(source)
            assert page.faults == [] and {tag for tag, _ in page.elements} <= plain, (path, value)
            assert "\u202e" not in source, (path, value)


def test_a_receipt_says_what_was_converted():
    whole = samples.exact()
    text = Page(parity_page(whole)).text
    for said in ("s0.pt, 2.21 GB", "MobileCLIP-S0: 6 layers, 512 wide, 8 heads, context 16", "sam3lite-convert 0.1.0",
                 "1,281 source, 912 mapped, 369 dropped", '"size": 2205231568'):  # fmt: skip
        assert said in text
    small = changed(whole, ("page", "receipt", "architecture", "num_attention_heads"), 1)
    small = changed(small, ("page", "receipt", "options", "causal"), True)
    text = Page(parity_page(small)).text
    assert "512 wide, 1 head, context 16" in text and "context 16, causal\n" in text


def test_an_empty_receipt_is_said_to_be_empty_and_none_is_left_out():
    whole = samples.exact()
    pages = [Page(parity_page(changed(whole, ("page", "receipt"), receipt))).text for receipt in ({}, None)]
    assert ["The receipt is empty." in text for text in pages] == [True, False]
    assert ["Receipt" in text for text in pages] == [True, False]


def test_what_the_template_writes_without_a_filter_is_visible_text_or_a_whole_number():
    assert [output(value) for value in ("a\nb\u202e", 1204567, 0)] == ["a\\nb\\u202e", "1,204,567", "0"]
    for value in (0.5, None, True, [], {}):
        with pytest.raises(TypeError):
            output(value)


def test_the_pictures_stand_in_the_page():
    whole = samples.detector_differs()
    source = detector_page(whole)
    shown = Page(source).having("img")
    assert [(a["src"], a["width"], a["height"], a["alt"]) for a in shown] == [
        (f"data:image/png;base64,{p.png}", "336", "336", p.alt) for p in whole.pictures
    ]
    section = source[source.index("What both sides find") : source.index("Stage by stage")]
    assert re.findall("<h3>(.*?)</h3>", section) == ["Original", "Candidate", "Difference"]
    assert [html.unescape(c) for c in re.findall("<figcaption>(.*?)</figcaption>", section)] == [
        p.caption for p in whole.pictures
    ]


@pytest.mark.parametrize("data", ["", EVIL, "AAAA\nAAAA", "A" * 9 + "===", "http://127.0.0.1/x.png"])
def test_what_is_no_base64_is_no_picture(data):
    whole = samples.detector_differs()
    page = Page(detector_page(changed(whole, ("pictures", 1, "png"), data)))
    assert page.having("img")[1]["src"] == ("data:image/png;base64," if not data else "data:,")


def test_without_pillow_the_page_says_how_to_get_pictures():
    page = Page(detector_page(samples.detector_within()))
    assert not page.having("img") and "What both sides find" not in page.text
    assert "pip install 'sam3lite-convert[pictures]'" in page.text


def test_the_sections_of_the_detector_stand_in_order():
    source = detector_page(samples.detector_differs())
    assert re.findall(SECTION, source) == [
        "What both sides find", "Stage by stage", "Results", "Accounting", "Receipt", "Notes", "Versions", "Command",
    ]  # fmt: skip
    text = Page(source).text
    assert text.index("Differs") < text.index("First divergence: transformer.encoder.layers.3")
    assert text.index("Likely cause: q and k are swapped") < text.index("What both sides find")
    assert re.findall(SECTION, detector_page(samples.detector(page=None))) == ["Stage by stage", "Results"]


def test_the_inputs_of_the_detector_are_told():
    text = Page(detector_page(samples.detector_differs())).text
    for said in ("seen as 1,008 \xd7 1,008 pixels", f"“{samples.PROMPTS[1]}”", "0.45, 0.55, 0.3, 0.4",
                 "0.1235, 0.5, 1, 1e-05 (not this)", "49406 320 49407 0\xa0\xd7\xa013"):  # fmt: skip
        assert said in text, said
    text = Page(detector_page(samples.detector())).text
    assert "built-in picture, seen as 336 \xd7 336 pixels" in text
    assert "Prompt" not in text and "Boxes" not in text


def test_every_tap_stands_in_its_stage_and_the_first_divergence_is_open():
    whole = samples.detector_differs()
    parts = re.findall("<details( open)?><summary>([^<]+) <span[^>]*>(\\d+) taps?</span></summary>(.*?)</details>",
                       detector_page(whole), re.S)  # fmt: skip
    assert [(name, int(count)) for _, name, count, _ in parts] == [(s.name, len(s.taps)) for s in whole.stages]
    assert [name for is_open, name, _, _ in parts if is_open] == ["encoder"]
    for stage, (_, _, _, table) in zip(whole.stages, parts, strict=True):
        rows = [Page(row).text for row in re.findall('<th scope="row">(.*?)</th>', table, re.S)]
        assert rows == [visible(name) for name in stage.taps]
    closed = detector_page(samples.detector_exact())
    assert "<details open>" not in closed


def test_stages_are_drawn_in_noise_floors():
    taps = {
        "one": [samples.tap("a", 2e-6, 1e-7, 2e-6), samples.tap("b", 1e-7, 1e-8, 1e-7)],  # 1 floor, isolated 0.2
        "ten": [samples.tap("c", 1e-6, 5e-6, 1e-6), samples.tap("d", 1e-5, 0.0, 1e-6)],  # 10, isolated 10
        "none": [samples.tap("e", 0.0, 0.0, 1e-6)],
        "endless": [samples.tap("f", None, None, 1e-6)],
    }
    source = detector_page(samples.detector(taps))
    chart = re.search('<svg class="chart layers".*?</svg>', source, re.S)[0]
    one, ten, none, endless = places(chart, "propagated")
    assert one == places(chart, "noise")[0] and len(set(places(chart, "noise"))) == 1
    fifth, same, *_ = places(chart, "isolated")
    assert same == ten and none < 12 < fifth < one < ten < 88 < endless
    assert (one - fifth) / (ten - one) == pytest.approx(-math.log10(0.2), abs=0.01)
    assert "times the noise floor" in chart and ">10</text>" in chart
    assert re.findall('class="name"[^>]*>([a-z]+)<', chart)[:4] == ["one", "ten", "none", "endless"]


def test_stages_without_floors_are_drawn_as_they_are():
    source = detector_page(samples.detector({"one": [samples.tap("a", 1e-3, 1e-4)], "two": [samples.tap("b")]}))
    chart = re.search('<svg class="chart layers".*?</svg>', source, re.S)[0]
    assert places(chart, "noise") == [] and "max abs diff, logarithmic</text>" in chart
    assert "one, propagated: 1.00e-03" in chart and "one, isolated: 1.00e-04" in chart
    assert "No noise floor was measured" in source


def test_the_stages_have_their_numbers():
    text = Page(detector_page(samples.detector_differs())).text
    rows = re.findall("encoder\n(\\d+)\n([\\d.e-]+)\n([\\d.e-]+)\n([\\d.e+]+)\n(.+)\n4.20\n1.20\n", text)
    stage = samples.detector_differs().stages[4]
    assert rows == [
        ("6", f"{stage.max_abs_diff:.2e}", f"{stage.relative_l2:.2e}", f"{stage.floors:.2g}", stage.worst_tap)
    ]


def test_a_key_that_no_module_reads_is_named():
    text = Page(detector_page(samples.detector(not_read=["a.weight"]))).text
    assert "1 tensor of the file is read by no module of the reference" in text and "a.weight" in text
    assert "2 tensors of the file are read by" in Page(detector_page(samples.detector(not_read=["a", "b"]))).text


def test_nan_is_shown_as_infinity_is():
    infinite = samples.differs()
    assert "NaN" in parity_page(infinite) and math.isinf(infinite.judgement.max_abs_diff)
    other = infinite
    for path, _, value in inside(infinite):
        if value == math.inf and path[-1] != "candidate_value":
            other = changed(other, path, math.nan)
    assert math.isnan(other.heat_map.values[9][20]) and math.isnan(other.judgement.layers[11].max_abs_diff)
    assert parity_page(other) == parity_page(infinite)


def test_a_number_reads_as_in_the_terminal():
    assert [number(value) for value in (0.0, 0.000438, math.inf, math.nan)] == ["0.0", "4.38e-04", "inf", "inf"]


def test_words_of_a_document_become_a_sentence():
    assert sentence("max abs diff 4.38e-01 <b>") == 'Max abs diff <span class="v">4.38e-01</span> &lt;b&gt;.'
    assert sentence("Done already.") == "Done already."
    assert sentence("") == "."


VERDICTS = [
    ("within_tolerance", "differs", "Within tolerance", "Differs"),
    ("differs", "exact", "Differs", "Exact"),
    ("exact", "within_tolerance", "Exact", "Within tolerance"),
]


def test_what_was_not_compared_takes_one_line_at_the_top():
    source = parity_page(samples.parity(verdict="exact", behaviour=None))
    assert source.count("<article") == 1 and "<h2>Behaviour" not in source
    assert "Not compared: behaviour (--as-used)." in Page(source).text


@pytest.mark.parametrize(("weights", "behaviour", "left", "right"), VERDICTS)
def test_both_verdicts_stand_at_the_top_and_apart(weights, behaviour, left, right):
    used = samples.behaviour(samples.PROMPTS[:2], verdict=behaviour)
    source = parity_page(samples.parity(verdict=weights, behaviour=used))
    cards = re.findall('<article class="card (\\w+)">(.*?)</article>', source, re.S)
    said = [Page(body).text.strip() for _, body in cards]
    assert len(said) == 2
    assert said[0].startswith("Weights") and left in said[0] and "Are the weights converted correctly?" in said[0]
    assert said[1].startswith("Behaviour") and right in said[1]
    assert "Does it give the text features of the original?" in said[1]
    assert source.index("<article") < source.index("<section")


def test_what_the_terminal_says_too_comes_from_the_document():
    said = {"summary": "one <1>", "behaviour": samples.behaviour(samples.PROMPTS[:1], summary="two <2>")}
    said["behaviour"] |= {"remedy": "three <3>"}
    said["behaviour"]["recipe"] |= {"summary": "four <4>"}
    text = Page(parity_page(samples.parity(**said))).text
    assert all(f"{word} <{n}>." in text for n, word in enumerate(("One", "Two", "Three", "Four"), 1))
    text = Page(verify_page(samples.verification(summary="five <5>", up_to=None, lost_words=["six <6>"]))).text
    assert "Five <5>." in text and "six <6>" in text


def test_what_parity_does_not_compare_is_said_with_the_command_that_does():
    command = "sam3lite verify 'a folder' 's 0.pt'"
    beside = {"checkpoint": "s 0.pt", "converted": "a folder", "not_compared": 1093}
    text = Page(parity_page(samples.parity(**beside))).text
    assert f"Not compared: behaviour (--as-used), the folder's other 1,093 tensors ({command})." in text
    for without in ({"not_compared": 0}, {"converted": None}):
        assert "other" not in Page(parity_page(samples.parity(**beside | without))).text


SECTION = r"<section>\s*<h2>(.*?)</h2>"


def test_the_sections_stand_in_order(differs):
    source = parity_page(samples.differs())
    assert re.findall(SECTION, source) == [
        "Layer by layer", "Where it differs", "Behaviour", "Worst prompts", "Accounting", "Original repository",
        "Receipt", "Notes", "Versions", "Command",
    ]  # fmt: skip
    assert differs.text.index("First divergence: layers.3") < differs.text.index("Likely cause: q and k are swapped")
    assert differs.text.index("Likely cause") < differs.text.index("Layer by layer")


def test_what_a_document_lacks_is_left_out():
    source = parity_page(samples.parity())
    assert re.findall(SECTION, source) == ["Layer by layer", "Versions", "Command"]
    assert "First divergence" not in source
    assert re.findall(SECTION, parity_page(samples.parity(page=None))) == ["Layer by layer"]


def test_a_first_divergence_is_named_without_a_diagnosis():
    text = Page(parity_page(samples.parity(verdict="differs", first_divergence="layers.2"))).text
    assert "First divergence: layers.2" in text and "Likely cause" not in text


def test_judged_activations_are_named():
    assert "saved in a<b>.safetensors" in Page(parity_page(samples.parity(judged="a<b>.safetensors"))).text


def test_the_accounting_adds_up(differs):
    assert "1,281 source tensors = 912 mapped + 369 dropped; 1,204 target tensors." in differs.text
    foot = re.search("<tfoot>(.*?)</tfoot>", parity_page(samples.differs()), re.S)[1]
    assert re.findall(">([^<>\\n]+)<", foot) == ["total", "1,281", "912", "369", "548.87 M"]
    assert "the video tracker is not part of this model" in differs.text


def test_a_long_list_is_cut():
    source = verify_page(samples.mismatch())
    page = Page(source)
    assert "... and 51 more; with --json the command at the end of this page lists all of them" in page.text
    assert "... and 101 more; with --json the command at the end of this page lists all of them" in page.text
    assert page.text.rpartition("Command")[2].strip().startswith("sam3lite verify ")
    assert "layers.199.attention.in_proj_weight" in page.text
    assert "layers.200.attention.in_proj_weight" not in page.text
    assert "Text encoder: 250 of 555 differ; the other 1,204 are equal to the bit." in page.text


def test_a_proof_says_up_to_what():
    page = Page(verify_page(samples.proven()))
    assert "1,204 of 1,204 tensors turn back into their source, up to the cast to float16." in page.text
    assert "what the cast rounded off (12,345,678 values, max abs error 0.00024)" in page.text


def test_behaviour_says_what_changes_the_output_and_how_to_call_the_model(differs):
    assert "padded to 32 in place of 16: the position table is stretched" in differs.text
    assert "relative L2 4.20e-01 · cosine 0.860000 · max abs diff 3.78e+00 · changes 40 of 40 prompts" in differs.text
    assert "moves no prompt" not in differs.text
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
    zero, *scale, infinite = places(charts.layer_chart(rows, "t", "unit"), "propagated")
    assert zero < 12 < scale[0] and scale[-1] < 88 < infinite
    assert scale[1] - scale[0] == pytest.approx(scale[2] - scale[1], abs=0.02)
    assert places(charts.layer_chart(rows, "t", "unit"), "noise") == []
    assert ">inf</text>" not in charts.layer_chart(rows[:4], "t", "unit")
    assert ">0</text>" in charts.layer_chart(rows[1:4], "t", "unit")


@pytest.mark.parametrize("values", [[0.0], [5e-324, 1.7e308], [1e-5], [float("inf")], [1.0, 10.0]])
def test_every_mark_lies_on_the_chart(values):
    rows = [charts.LayerRow("t", v, v, v) for v in values]
    for kind in ("propagated", "isolated", "noise"):
        found = places(charts.layer_chart(rows, "t", "unit"), kind)
        assert len(found) == len(values) and all(0 <= x <= 100 for x in found)


def test_equal_errors_do_not_hide_each_other():
    chart = charts.layer_chart([charts.LayerRow("t", 1e-3, 1e-3, 1e-3)], "t", "unit")
    disc = re.search('cy="([\\d.]+)"', chart)[1]
    square = re.search('class="m-isolated" x="[^"]+" y="([\\d.]+)"', chart)[1]
    stroke = re.search('class="m-noise"[^>]* y1="([\\d.]+)"', chart)[1]
    assert float(disc) + 4.2 < float(square)
    # The floor is behind both, and reaches further up and down.
    assert float(stroke) < float(disc) - 4.2 and chart.index("m-noise") < chart.index("m-propagated")


PLACE = {"component": "vision_encoder", "stack": "blocks", "layer": 0, "tensors": 12, "off": 0, "filled": 0}
PLACE |= {"relative_l2": None, "max_abs_diff": None}


def test_faults_are_drawn_in_their_layers():
    off = {"layer": 3, "off": 2, "relative_l2": 1e-3, "max_abs_diff": 0.5}
    elsewhere = {"component": "mask_decoder", "stack": "", "layer": None, "filled": 4}
    source = verify_page(samples.verification(places=[PLACE, PLACE | off, PLACE | elsewhere]))
    assert "vision encoder, equal: 22" in source and "vision encoder, wrong: 2" in source
    assert "mask decoder, filled: 4" in source and "mask decoder, equal: 8" in source
    assert "vision blocks 3: 2 of 12 tensors" in source and "vision blocks 0: 0 of 12 tensors" in source
    assert "vision blocks.3, relative L2: 1.00e-03" in source and "2 of 12 tensors</text>" in source


def test_without_faults_there_is_no_map_of_them():
    source = verify_page(samples.verification(places=[PLACE]))
    assert "Tensors by component" in source and "Where the faults are" not in source
    assert "How far values are off" not in source
    assert "Tensors by component" not in verify_page(samples.verification())


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(1, "0 1"), (7, "0 2 4 6 8"), (592, "0 200 400 600"), (1000, "0 200 400 600 800 1,000"), (0, "0 1")],
)
def test_a_scale_of_tensors_has_round_ticks(most, ticks):
    chart = charts.share_chart([charts.Share("a", (("right", "equal", most),))], "t", "unit")
    assert re.findall('class="quiet"[^>]*>([\\d,]+)<', chart) == ticks.split()


def test_of_many_layers_the_largest_errors_are_drawn_and_all_stand_in_a_table():
    whole = samples.faults()
    off = [p for p in whole.places if p.max_abs_diff is not None]
    chart = re.findall('<svg class="chart layers" .*?</svg>', verify_page(whole), re.S)[-1]
    assert len(places(chart, "propagated")) == 40 < len(off)
    text = Page(verify_page(whole)).text
    assert f"left out, and {len(off) - 40} with smaller differences." in text
    drawn = [float(n) for n in re.findall(", relative L2: ([\\d.e+-]+)<", chart)]  # but for one that is not finite
    left = sorted((p.relative_l2 or math.inf for p in off), reverse=True)[40:]  # null is not finite
    assert min(drawn) >= max(left) and "vision blocks.30, relative L2: infinite or NaN" in chart
    table = verify_page(whole).split("Wrong tensors of each layer", 1)[1].split("</table>")[0]
    assert table.count('<th scope="row">') == sum(p.off > 0 for p in whole.places)


def test_every_finding_and_pattern_stands_on_the_page_and_most_of_them_fold():
    whole = samples.faults()
    source = verify_page(whole)
    section = source[source.index("<h2>Findings") : source.index("<h2>Tensors by component")]
    assert section.count("<h3>") == len(whole.findings) == 32
    assert section.count("<li><code>") == sum(len(f.patterns) for f in whole.findings)
    assert "<summary>24 more findings</summary>" in section and "<summary>29 more patterns of keys</summary>" in section
    assert "<details>" not in verify_page(samples.verification(findings=[samples.finding(1, "k", "c")])).split(
        "<h2>Findings", 1)[1].split("</section>")[0]  # fmt: skip


def test_the_numbers_of_the_bars_stand_in_a_table():
    off = {"layer": 3, "off": 2}
    source = verify_page(samples.verification(places=[PLACE | {"component": "mask_decoder"}, PLACE | off]))
    table = source.split("Tensors of each component", 1)[1].split("</table>")[0]
    assert re.findall('scope="col"[^>]*>(.*?)<', table) == ["component", "equal", "wrong", "filled", "dropped"]
    row = table.split("vision encoder", 1)[1].split("</tr>")[0]
    assert re.findall('class="n">(\\d+)<', row) == ["10", "2", "0", "54"]


def test_names_break_at_their_dots_and_options_nowhere():
    assert prose("of a.b_c.d, v1.2") == "of a.<wbr>b_<wbr>c.<wbr>d, v1.2"
    assert prose("<a.b.c>") == "&lt;a.<wbr>b.<wbr>c&gt;"
    assert breaking("verify a-b --as-used") == 'verify a-b <span class="v">--as-used</span>'
    assert "<span" not in breaking("--" + "unbroken" * 9)


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
    drawn = [
        charts.layer_chart([row], "<u>", "<u>"),
        charts.heat_map([[1.0]], 1, "<u>"),
        charts.colour_legend(scale, "<u>"),
    ]
    for drawing in [*drawn, charts.bar(0.5, "<u>")]:
        assert "&lt;u&gt;" in drawing
        assert not re.search("<[biu]>", drawing)


def test_the_steps_of_the_colour_scale_are_those_of_the_style_sheet():
    for colours in THEMES.values():
        assert [name for name in colours if name.startswith("ramp-")] == [f"ramp-{i}" for i in range(charts.STEPS)]
    cells = re.findall(
        r"\.(c\d+) \{\n  fill: var\(--ramp-(\d+)\);\n  background: var\(--ramp-(\d+)\);\n\}", STYLE_SHEET
    )
    assert cells == [(f"c{i}", str(i), str(i)) for i in range(charts.STEPS)]
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


def colours(rule: str) -> dict[str, str]:
    """The colours that a rule of the style sheet declares."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rule))


LIGHT, DARK = (colours(rule) for rule in re.findall(r":root \{([^}]*--bg[^}]*)\}", STYLE_SHEET))
THEMES = {"light": LIGHT, "dark": DARK}


def test_every_colour_has_a_value_in_both_themes_and_is_declared_nowhere_else():
    assert LIGHT.keys() == DARK.keys() and len(LIGHT) > 20
    assert colours(STYLE_SHEET).keys() == LIGHT.keys()
    assert len(re.findall(r"#[0-9a-fA-F]{3,8}\b", STYLE_SHEET)) == 2 * len(LIGHT)
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE_SHEET))
    assert used - LIGHT.keys() == {"tone", "soft"}
    assert LIGHT.keys() <= used
    assert "@media screen and (prefers-color-scheme: dark) {\n  :root {\n    --bg" in STYLE_SHEET


GROUNDS = dict.fromkeys(("text", "muted", "good", "fair", "bad"), ("bg", "surface"))
PAIRS = [(name, ground) for name, grounds in GROUNDS.items() for ground in grounds]
PAIRS += [(name, f"{name}-soft") for name in ("good", "fair", "bad")]
PAIRS += [("muted", "none-soft"), ("text", "none-soft"), ("text", "bad-soft"), ("bad", "bad-soft")]


@pytest.mark.parametrize("colours", THEMES.values(), ids=THEMES)
def test_text_can_be_read_in_both_themes(colours):
    poor = {pair: contrast(*(colours[p] for p in pair)) for pair in PAIRS}
    assert {pair: value for pair, value in poor.items() if value < 4.5} == {}


@pytest.mark.parametrize("colours", THEMES.values(), ids=THEMES)
def test_marks_can_be_seen_in_both_themes(colours):
    for name in ("propagated", "isolated", "noise", "infinite", "text"):
        for ground in ("surface", "bg", "bad-soft", "none-soft"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


@pytest.mark.parametrize("colours", THEMES.values(), ids=THEMES)
def test_a_greater_error_is_further_from_the_page(colours):
    apart = [contrast(colours[f"ramp-{i}"], colours["surface"]) for i in range(charts.STEPS)]
    assert apart == sorted(apart)
    assert all(b / a > 1.1 for a, b in itertools.pairwise(apart))


@pytest.mark.parametrize("name", PAGES)
def test_the_same_record_gives_the_same_page(name):
    render, make = PAGES[name]
    assert render(make()) == render(make())


def test_pages_need_no_torch():
    program = "import sys, sam3lite_convert.report.html.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
