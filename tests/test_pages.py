"""The commands that README and docs/ show run, and print what is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import pages
from support.folders import ROOT, sam3lite
from support.hub_server import HubServer

SHOWN = [page for page in pages.PAGES if pages.shown(page)]
SLOW = ["docs/detector.md"]
# tests/test_onnx_page.py runs the commands of this page that are not in console blocks, with files of its own.
# What docs/install.md shows after its pip commands, .ci/run does.
ELSEWHERE = ["docs/onnx.md", "docs/install.md"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PIL.Image")
    pytest.importorskip("instant_clip_tokenizer")
    folder = tmp_path_factory.mktemp("pages")
    pages.make_files(folder)
    return folder


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.stress if p in SLOW else ()) for p in SHOWN])
def test_commands_print_what_the_page_shows(page, files, hub: HubServer, tmp_path, capsys):
    pages.copy_files(files, tmp_path)
    pages.publish(hub, tmp_path)
    for command, output, code in pages.shown(page):
        if "mine-detector.safetensors" in command:
            pages.answer(tmp_path / "reference.safetensors", tmp_path / "mine-detector.safetensors")
        done = sam3lite(*pages.arguments(command))
        assert done.code == code, (command, done)
        assert pages.fits(output, done.out), f"$ {command}\n{done.out}"
    if page == "README.md":
        names: dict[str, Any] = {}
        (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
        exec(compile(code, page, "exec"), names)
        assert capsys.readouterr().out == "" and Path("found.png").stat().st_size > 100  # random weights find nothing
        code = code.replace('"a yellow bus"', '"a yellow bus", threshold=0.0')
        exec(compile(code, page, "exec"), names)
        assert len(names["found"].scores) == len(names["found"].masks) > 0
        assert len(capsys.readouterr().out.splitlines()) == len(names["found"].scores)


def test_every_command_in_a_block_is_run():
    """A command stands in a console block, or where another test runs it (the two commands of README)."""
    unseen = []
    for page in (page for page in pages.PAGES if page not in ELSEWHERE):
        text = (ROOT / page).read_text(encoding="utf-8")
        rest = re.sub(r"^```console\n.*?^```$", "", text, flags=re.M | re.S)
        blocks = re.findall(r"^```\w*\n(.*?)^```$", rest, re.M | re.S)
        unseen += [(page, line) for block in blocks for line in block.splitlines() if re.match(r"\$? ?sam3lite ", line)]
        unseen += [(page, line) for line in rest.splitlines() if re.match(r"    \$? ?sam3lite ", line)]
    assert unseen == []


@pytest.mark.parametrize(
    "wanted, found, fits",
    [
        ("a\n...\nb", "a\nx\ny\nb", True),
        ("a\n...\nb", "a\nx\ny", False),
        ("tap 1.00e-05 28 x", "tap 2.37e-06 31 x", True),
        ("tap 1.00e-05 28 x", "tap 2.37e-06 31 y", False),
        ("912 mapped", "911 mapped", False),
        ("verdict: exact", "verdict: exact, and more", False),
    ],
)
def test_a_difference_that_is_no_rounding_is_found(wanted, found, fits):
    assert pages.fits(wanted, found) is fits


def test_what_the_pages_link_to_is_there():
    gone = []
    for page in pages.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, anchor in re.findall(
            r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        ):
            if "://" in target:
                continue
            file = (ROOT / page).parent / target if target else ROOT / page
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                gone.append((page, target, anchor))
    assert gone == []


def anchors(markdown: str) -> set[str]:
    """The names by which GitHub leads to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
