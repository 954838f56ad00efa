"""A verification as Markdown: short, and no name from a file becomes markup."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import html_samples as samples
from support.markdown import shape, words

from sam3lite_convert.report.verify import in_markdown, verified

HOSTILE = (
    samples.SCRIPT, samples.KEY, samples.OVERRIDE, "a|b\n\n| c | d |", "`` ` ``", "[x](https://e.example)", "![x](y)",
    "\n# heading", "</table><img src=x onerror=alert(1)>", "www.example.com @someone", "`" * 500, "x" * 5000,
    "\U000e0001" * 5000,
)  # fmt: skip


def test_the_verdict_and_the_facts_are_there():
    said = words(in_markdown(samples.proven()))
    for fact in ("verify: proven", "1,204 of 1,204 tensors", "packed", "sam3lite-convert "):
        assert fact in said
    said = words(in_markdown(samples.mismatch()))
    assert "verify: mismatch" in said and "251 findings" in said and "k, q, v" in said


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_others_stay_text(name):
    def document(text: str):
        finding = replace(samples.mismatch().findings[0], cause=text, patterns=(text,), code="V-X")
        more = {"folder": text, "checkpoint": text, "summary": text, "notes": (text,), "lost_words": (text,)}
        return replace(samples.mismatch(), findings=(finding,), **more)

    text = in_markdown(document(name))
    assert shape(text) == shape(in_markdown(document("plain")))
    assert max(map(len, text.splitlines())) < 2000  # of longer lines the middle is not printed


def test_each_code_that_was_found_can_be_read_about(capsys: pytest.CaptureFixture[str]):
    first = samples.mismatch().findings[0]
    findings = tuple(replace(first, code=f"V-{name}") for name in "AABCD")
    verified(replace(samples.mismatch(), findings=findings))
    last = "To read more: sam3lite explain V-A, sam3lite explain V-B, sam3lite explain V-C"
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_it_is_short():
    assert len(in_markdown(samples.mismatch()).splitlines()) < 60
