"""The report pages in a real browser: nothing sticks out or is cut off, nothing is unreadable, nothing leaves."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import html_samples as samples

from sam3lite_convert.report.html.page import detector_page, parity_page, verify_page

pytest.importorskip("selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER,
    reason="a real browser is what this tests: chromium and chromedriver (.ci/run installs them)",
)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
PAGES = {name: (parity_page, make) for name, make in samples.PARITY.items()}
PAGES |= {name: (detector_page, make) for name, make in samples.DETECTOR.items()}
PAGES |= {name: (verify_page, make) for name, make in samples.VERIFY.items()}
WIDTHS = (390, 1024, 1600)
THEMES = ("light", "dark")

# Every check gives a list of what is wrong. A box that scrolls by itself may be wider inside.
STICKS_OUT = """
const width = document.documentElement.clientWidth, out = [];
if (document.documentElement.scrollWidth > width) out.push('the page scrolls sideways');
const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
const free = e => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return false; return true; };
const check = (rect, what) => {
  if (rect.width && (rect.right > width + .5 || rect.left < -.5)) out.push(`${what}: ${rect.left} to ${rect.right}`);
};
for (const e of document.querySelectorAll('body *')) {
  if (!e.checkVisibility()) continue;
  const style = getComputedStyle(e);
  const cuts = ['hidden', 'clip'].includes(style.overflowX);
  if (cuts && e.scrollWidth > e.clientWidth) out.push(`${e.tagName} is cut off`);
  if (!free(e)) continue;
  check(e.getBoundingClientRect(), e.tagName + '.' + (e.getAttribute('class') || ''));
  for (const child of e.childNodes) {
    if (child.nodeType !== 3 || !child.data.trim() || scrolls(e)) continue;
    const range = document.createRange();
    range.selectNodeContents(child);
    for (const rect of range.getClientRects()) check(rect, child.data.slice(0, 40));
  }
}
return out;
"""
CLIPPED = """
const out = [];
for (const svg of document.querySelectorAll('svg')) {
  if (svg.ownerSVGElement || !svg.checkVisibility()) continue;
  const box = svg.getBoundingClientRect(), rects = [];
  for (const text of svg.querySelectorAll('text')) {
    if (!text.checkVisibility()) continue;
    const r = text.getBoundingClientRect();
    if (r.left < box.left - .5 || r.right > box.right + .5 || r.top < box.top - .5 || r.bottom > box.bottom + .5)
      out.push(`${text.textContent} leaves its drawing`);
    for (const [s, other] of rects)
      if (r.left < s.right && s.left < r.right && r.top + 2 < s.bottom && s.top + 2 < r.bottom)
        out.push(`${text.textContent} lies on ${other}`);
    rects.push([r, text.textContent]);
    if (parseFloat(getComputedStyle(text).fontSize) < 11) out.push(`${text.textContent} is too small`);
  }
}
return out;
"""
UNREADABLE = """
const parse = c => c.match(/[\\d.]+/g).map(Number);
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.map(v => linear(v / 255)); return .2126 * r + .7152 * g + .0722 * b; };
const ground = e => {
  const under = e.previousElementSibling;
  if (e.ownerSVGElement && under?.tagName === 'rect') return parse(getComputedStyle(under).fill);
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const out = [];
for (const e of document.querySelectorAll('body *')) {
  const said = [...e.childNodes].filter(c => c.nodeType === 3).map(c => c.data).join('').trim();
  if (!said || !e.checkVisibility() || e.tagName.toLowerCase() === 'title') continue;
  const style = getComputedStyle(e), ink = parse(e.ownerSVGElement ? style.fill : style.color);
  const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) out.push(`${said.slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return out;
"""
BROKEN = """
return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => `${i.alt} is not shown`);
"""
CHECKS = {"sticks out": STICKS_OUT, "clipped": CLIPPED, "unreadable": UNREADABLE, "broken": BROKEN}


class Browser:
    """One chromium; each page is opened at a width and in a theme."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.marks = 0
        self.driver.get("about:blank")  # or what the first tab of a browser shows would count

    def tell(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, page: Path, width: int = 1024, theme: str = "light", media: str = "") -> None:
        """The page as it comes."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.light(theme, media)
        self.driver.get("about:blank")
        self.leftovers()
        self.driver.get(page.as_uri())

    def light(self, theme: str, media: str = "") -> None:
        """The page as it is, in a theme."""
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.tell("Emulation.setEmulatedMedia", media=media, features=[feature])

    def unfold(self) -> None:
        self.driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true;")

    def faults(self) -> dict[str, list[str]]:
        found = {name: self.driver.execute_script(script) for name, script in CHECKS.items()}
        return {name: faults for name, faults in found.items() if faults}

    def leftovers(self) -> tuple[list[str], list[str], list[str]]:
        """Since the last call: what the console said, which addresses the page asked for, and those of them
        that its policy did not stop."""
        # Messages arrive in their order but not at once: all that was said stands before this one.
        self.marks += 1
        mark, said = f"mark {self.marks}", list[str]()
        self.driver.execute_script("console.info(arguments[0])", mark)
        end = time.monotonic() + 30
        while not (said and mark in said[-1]) and time.monotonic() < end:
            said += [entry["message"] for entry in self.driver.get_log("browser")]
        assert said and mark in said.pop()
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
        stopped = {f["requestId"] for f in failed if f.get("blockedReason") == "csp"}
        left = [a["request"]["url"] for a in asked if a["requestId"] not in stopped]
        return said, [a["request"]["url"] for a in asked], left


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    os.environ["SE_OFFLINE"] = "true"  # the driver is given; nothing is to be looked for
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def written(folder: Path, name: str, inside: str = "") -> Path:
    render, make = PAGES[name]
    path = folder / "page.html"
    path.write_text(render(make()).replace("</main>", inside + "</main>"), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_can_be_read_and_asks_for_nothing(name, width, browser, tmp_path):
    page = written(tmp_path, name)
    browser.open(page, width)
    assert browser.faults() == {}
    browser.unfold()
    for theme in THEMES:
        browser.light(theme)
        assert browser.faults() == {}, theme
    said, asked, _ = browser.leftovers()
    assert said == []
    assert [address for address in asked if not address.startswith("data:image/png;")] == [page.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_stand_side_by_side_but_on_a_phone(width, browser, tmp_path):
    browser.open(written(tmp_path, "detector differs"), width)
    script = (
        "return [...document.images].map(i => i.getBoundingClientRect()).map(r => [r.left, r.top, r.width, r.height])"
    )
    lefts, tops, widths, heights = zip(*browser.driver.execute_script(script), strict=True)
    assert len(lefts) == 3
    assert (len(set(lefts)), len(set(tops))) == ((1, 3) if width == 390 else (3, 1))
    assert min(widths) > 250 and widths == pytest.approx(heights, abs=3)


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_is_the_readers(theme, browser, tmp_path):
    browser.open(written(tmp_path, "exact"), theme=theme)
    colour = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(247, 247, 244)", "dark": "rgb(19, 21, 23)"}[theme]


@pytest.mark.parametrize(("name", "theme"), [("differs", "light"), ("differs", "dark"), ("faults", "dark")])
def test_on_paper_a_page_is_light_and_open(name, theme, browser, tmp_path):
    browser.open(written(tmp_path, name), 720, theme, media="print")
    script = "return [getComputedStyle(document.body).color, document.documentElement.scrollWidth <= innerWidth]"
    assert browser.driver.execute_script(script) == ["rgb(29, 33, 37)", True]
    folded = "return [...document.querySelectorAll('details > :not(summary)')].filter(e => !e.checkVisibility()).length"
    assert browser.driver.execute_script(folded) == 0
    assert browser.faults() == {}


WRONG = {
    "the page scrolls sideways": ("sticks out", '<div style="width:3000px">wide</div>'),
    "unbreakable": ("sticks out", f'<p style="overflow-wrap:normal;width:9rem">{"unbroken" * 60}</p>'),
    "is cut off": ("sticks out", '<p style="overflow:hidden;white-space:nowrap;width:5rem">more than it shows</p>'),
    "leaves its drawing": ("clipped", '<svg width="90" height="20"><text x="60" y="15">too long</text></svg>'),
    "lies on": ("clipped", '<svg width="90" height="20"><text y="15">one</text><text x="5" y="15">two</text></svg>'),
    "is too small": ("clipped", '<svg width="90" height="20"><text y="15" style="font-size:6px">one</text></svg>'),
    "pale": ("unreadable", '<p style="color:#999">pale</p>'),
    "is not shown": ("broken", '<img src="data:image/png;base64,AAAA" alt="a picture">'),
    "faint": ("unreadable", '<svg width="90" height="20"><text y="15" style="fill:#999">faint</text></svg>'),
}


@pytest.mark.parametrize("fault", WRONG)
def test_each_check_sees_what_it_is_for(fault, browser, tmp_path):
    check, inside = WRONG[fault]
    browser.open(written(tmp_path, "proven", inside))
    assert list(browser.faults()) == [check]
    assert any(fault in text or fault == "unbreakable" for text in browser.faults()[check])


LEAVING = {
    "an image": '<img src="http://127.0.0.1:9/x.png">',
    "a script": "<script>console.log(1)</script>",
    "a style": "<div style=\"background:url('http://127.0.0.1:9/y.png')\">x</div>",
    "a frame": '<iframe src="http://127.0.0.1:9/"></iframe>',
}


@pytest.mark.parametrize("what", LEAVING)
def test_what_would_leave_a_page_is_stopped_and_seen(what, browser, tmp_path):
    page = written(tmp_path, "exact", LEAVING[what])
    browser.open(page)
    said, left, end = list[str](), list[str](), time.monotonic() + 30
    while not any("Content Security Policy" in message for message in said):
        assert time.monotonic() < end, "the browser says nothing of it"
        more, _, others = browser.leftovers()
        said, left = said + more, left + others
    assert [address for address in left if not address.startswith("data:")] == [page.as_uri()]


def test_a_request_would_be_seen_without_the_policy(browser, tmp_path):
    page = written(tmp_path, "exact", LEAVING["an image"])
    page.write_text(page.read_text(encoding="utf-8").replace("Content-Security-Policy", "x"), encoding="utf-8")
    browser.open(page)
    assert "http://127.0.0.1:9/x.png" in browser.leftovers()[2]
