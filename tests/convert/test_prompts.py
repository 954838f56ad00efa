"""Prompts to ids, against those of the original's tokenizer."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support.rows import DATA

from sam3lite_convert.convert import prompts
from sam3lite_convert.errors import CannotRun

CASES = json.loads((DATA / "goldens" / "tokens.json").read_text(encoding="utf-8"))["cases"]
START, END = 49406, 49407


@pytest.fixture
def tokenize():
    """The function itself, where its packages are: instant-clip-tokenizer has no wheel for every Python."""
    pytest.importorskip("instant_clip_tokenizer")
    pytest.importorskip("ftfy")
    return prompts.tokenize


def golden_ids(prompt: str, context: int) -> list[int]:
    case = next(c for c in CASES if c["context_length"] == context)
    return case["input_ids"][case["prompts"].index(prompt)]


GOLDEN = [(p, c["context_length"]) for c in CASES for p in c["prompts"]]


def test_the_golden_ids_are_all_there():
    assert [c["context_length"] for c in CASES] == [16, 32]
    assert len(GOLDEN) == 72


@pytest.mark.parametrize(("prompt", "context"), GOLDEN)
def test_a_prompt_becomes_the_ids_of_the_original_tokenizer(prompt, context, tokenize):
    assert tokenize([prompt], context).tolist() == [golden_ids(prompt, context)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"context {c['context_length']}")
def test_a_batch_keeps_the_order_of_its_prompts(case, tokenize):
    ids = tokenize(case["prompts"], case["context_length"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == case["input_ids"]


def test_no_prompts_are_no_rows(tokenize):
    assert tokenize([], 16).shape == (0, 16)


LONG = "the quick brown fox jumps over the lazy dog while the small grey cat sleeps on the warm windowsill"


def test_a_prompt_that_is_too_long_is_cut_with_the_end_id_last(tokenize):
    whole = golden_ids(LONG, 32)
    words = whole.index(END)
    assert words > 16
    for context in (3, 4, 16, words):
        assert tokenize([LONG], context).tolist() == [[*whole[: context - 1], END]]


def test_a_prompt_that_just_fits_is_neither_cut_nor_padded(tokenize):
    whole = golden_ids(LONG, 32)
    length = whole.index(END) + 1
    assert tokenize([LONG], length).tolist() == [whole[:length]]
    assert tokenize([LONG], length + 1).tolist() == [[*whole[:length], 0]]


def test_the_empty_prompt_is_start_and_end(tokenize):
    assert tokenize([""], 4).tolist() == [[START, END, 0, 0]]


# ftfy and the tokenizer do some of this too, so that the ids alone do not show each step.
CLEAN = {
    "&amp;lt;b&amp;gt;": "<b>",
    "&amp;amp;amp;": "&amp;",
    "a \t\n b\u00a0\u3000c": "a b c",
    " dog\n": "dog",
    "&nbsp;dog&#32;": "dog",
    "White ÉTÉ": "white été",
}


@pytest.mark.parametrize("text", CLEAN)
def test_text_is_unescaped_twice_then_spaces_become_one_and_letters_small(text):
    assert prompts.clean(text) == CLEAN[text]


@pytest.mark.parametrize("context", [2, 1, 0, -1])
def test_a_context_without_room_for_a_word_cannot_run(context):
    with pytest.raises(CannotRun, match=f"context of {context} ") as caught:
        prompts.tokenize(["dog"], context)
    assert (caught.value.exit_code, caught.value.code) == (2, "short_context")


@pytest.mark.parametrize("package", ["instant_clip_tokenizer", "ftfy"])
def test_a_missing_package_cannot_run_and_the_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CannotRun) as caught:
        prompts.tokenize(["dog"], 16)
    assert (caught.value.exit_code, caught.value.code) == (2, "no_tokenizer")
    remedy = "use Python 3.10 to 3.12" if sys.version_info >= (3, 13) else "pip install 'sam3lite-convert[prompts]'"
    assert remedy in caught.value.message
