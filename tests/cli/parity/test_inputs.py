"""What sam3lite parity feeds: the dummy, random ids, batches and prompts."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support.folders import (
    DATA,
    sam3lite,
    tiny_architecture,
    write_safetensors,
)
from support.parity_runs import assert_exact, errors, parity

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.inputs import make_inputs
from sam3lite_convert.plan import synthetic


def test_the_default_is_the_classic_dummy():
    found = make_inputs(16, 49408)
    assert found.ids.tolist() == [[49406, 320, 1125, 49407, *[0] * 12]]
    assert found.ids.dtype == torch.int64
    assert found.padded.tolist() == [[False] * 4 + [True] * 12]
    assert make_inputs(16, 49408, length=6).ids.tolist() == [[49406, 320, 1125, 49407, 0, 0]]


@pytest.mark.parametrize(("vocab", "seed"), [(3, None), (4, 4), (10, None), (512, None), (512, 4), (49407, 4)])
def test_a_small_vocabulary_keeps_the_two_greatest_ids_for_start_and_end(vocab, seed):
    ids = make_inputs(16, vocab, seed, batch=4).ids
    assert ids.shape == (4, 16)
    assert ids[:, 0].tolist() == [vocab - 2] * 4
    ends = ids.argmax(-1)
    assert (ids == vocab - 1).sum(-1).tolist() == [1] * 4
    assert ids.max() == vocab - 1
    assert ids.min() >= 0
    assert all(not ids[row, ends[row] + 1 :].any() for row in range(4))


def test_a_vocabulary_without_words_has_no_random_ids():
    with pytest.raises(CannotRun, match="no words to draw from"):
        make_inputs(16, 3, 4)


def test_random_ids_fill_the_first_row_and_vary_in_length():
    ids = make_inputs(16, 512, 3, batch=16).ids
    ends = ids.argmax(-1).tolist()
    assert ends[0] == 15
    assert len(set(ends)) > 3
    assert len({tuple(row) for row in ids.tolist()}) > 12
    words = ids[0, 1:-1]
    assert words.min() >= 1
    assert words.max() < 510
    assert len(words.unique()) > 8


def test_a_seed_gives_the_same_ids_again_and_another_seed_others(s0):
    first, again, other = (parity(s0, "--seed", n, "--batch", 3)["inputs"]["ids"] for n in (1, 1, 2))
    assert first == again
    assert first != other
    assert [row[0] for row in first] == [510] * 3


def test_a_batch_has_four_different_rows(s0):
    inputs = parity(s0, "--batch", 4)["inputs"]
    dummy, empty, word, full = inputs["ids"]
    assert (dummy, empty) == ([510, 320, 511, *[0] * 13], [510, 511, *[0] * 14])
    assert word == [510, word[1], 511, *[0] * 13] and word[1] not in (0, 320, 510, 511)
    assert full.index(511) == 15 and len(set(full)) == 16
    assert inputs["shape"] == [4, 16] and "3 other rows, batch 4" in inputs["what"]


@pytest.mark.parametrize("vocab", [512, 49408])
def test_no_row_of_a_great_batch_is_like_another(vocab):
    ids = make_inputs(16, vocab, batch=300).ids
    assert len({tuple(row) for row in ids.tolist()}) == 300
    ends = ids.argmax(-1)
    assert set(ends.tolist()) == set(range(1, 16))
    start, end = (49406, 49407) if vocab > 49407 else (510, 511)
    for row, at in zip(ids.tolist(), ends.tolist(), strict=True):
        assert row[0] == start and row[at] == end and not any(row[at + 1 :])
        assert all(0 < word < start for word in row[1:at])


def test_prompts_are_tokenized_shown_and_compared_on_words_and_padding_apart(tmp_path, root):
    pytest.importorskip("instant_clip_tokenizer")
    pytest.importorskip("ftfy")
    case = json.loads((DATA / "goldens" / "tokens.json").read_text(encoding="utf-8"))["cases"][0]
    prompts, wanted = case["prompts"][:3], case["input_ids"][:3]
    sizes = {"vocab": 49408, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
    state = synthetic.state_dict(tiny_architecture(**sizes), text_only=True)
    path = write_safetensors(tmp_path, state)
    file = tmp_path / "prompts.txt"
    file.write_text(f"{prompts[1]}\n\n   \n{prompts[2]}\n", encoding="utf-8")
    options = ["--prompt", prompts[0], "--prompts-file", file]
    record = parity(path, *options)
    assert_exact(record, "packed")
    assert record["inputs"]["ids"] == wanted
    assert record["inputs"]["prompts"] == prompts
    projected = next(t for t in record["layers"] if t["name"] == "projected")
    assert (projected["valid_max_abs_diff"], projected["padded_max_abs_diff"]) == (0.0, 0.0)
    out = sam3lite("parity", "--checkpoint", path, *options).out
    for prompt, ids in zip(prompts, wanted, strict=True):
        assert f"{prompt!r}: {' '.join(map(str, ids[: (end := ids.index(49407) + 1)]))} 0 x{16 - end}" in out
    assert "on words" in out
    assert "on padding" in out
    for refused in (["--seed", 1], ["--batch", 2]):
        assert "prompts" in errors(sam3lite("parity", "--checkpoint", path, *options, *refused), 2)
    assert "2" in errors(sam3lite("parity", "--checkpoint", path, *options, "--length", 2), 2)


def test_a_prompt_needs_the_whole_vocabulary(s0):
    pytest.importorskip("instant_clip_tokenizer")
    pytest.importorskip("ftfy")
    message = errors(sam3lite("parity", "--checkpoint", s0, "--prompt", "a dog"), 2)
    assert "49407" in message
    assert "512" in message
    assert "--seed" in message


def test_prompts_without_the_tokenizer_name_the_extra(s0, monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    message = errors(sam3lite("parity", "--checkpoint", s0, "--prompt", "a dog"), 2)
    assert ("Python 3.10 to 3.12" if sys.version_info >= (3, 13) else "sam3lite-convert[prompts]") in message


@pytest.mark.parametrize("fault", ["missing", "a folder", "not text", "empty", "blank lines"])
def test_a_file_of_prompts_that_cannot_be_used(fault, s0, tmp_path):
    file = tmp_path / "prompts.txt"
    if fault == "a folder":
        file.mkdir()
    elif fault == "not text":
        file.write_bytes(b"\xff\xfe\x00dog")
    elif fault != "missing":
        file.write_text("" if fault == "empty" else " \n\n\t\n")
    assert "prompts.txt" in errors(sam3lite("parity", "--checkpoint", s0, "--prompts-file", file), 2)
