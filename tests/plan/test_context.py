"""The context that a model is called with: what states it, and what a plan makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.goldens import ATOL, TABLE, golden
from support.recipe import draw
from support.rows import TEXT, fake, reshaped, shipped_tables, source_rows

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.checkpoint.origin import HubFile
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.original import reference_encoder
from sam3lite_convert.plan.context import called_context
from sam3lite_convert.plan.plan import Options, make_plan

RELEASED = (16, 32)
TARGET = "text_encoder.position_embedding.position_embedding"


def named(name: str, **more: int) -> Checkpoint:
    return replace(fake({}), path=Path(name), meta=more)


# ---- what states it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stated"),
    {
        "efficient_sam3_image_encoder_mobileclip_s0_ctx16.pt": 16,
        "sam3_litetext_mobileclip2_l_ctx32.pt": 32,
        "ctx16.pt": 16,
        "s0-ctx16-text.safetensors": 16,
        "s0_CTX16.v2.pt": 16,
        "s0_ctx16 (1).pt": 16,
        "ctx16_of_ctx16.pt": 16,
        "s0.pt": None,
        "s0_ctx.pt": None,
        "s0_ctxs16.pt": None,
        "s0_ctx16k.pt": None,
        "s0_myctx16.pt": None,
        "ctx16_to_ctx32.pt": None,
        "s0_ctx0.pt": None,
        "s0_ctx4096.pt": None,
    }.items(),
)
def test_the_name_states_it_as_a_word_of_its_own(name, stated):
    found = called_context(named(name), 77)
    assert (found.called, found.origin) == ((stated, "name") if stated else (77, "unknown"))


def test_a_folder_of_the_path_states_nothing_and_a_path_on_the_hub_its_file():
    assert called_context(named("old_ctx16/s0.pt"), 77).origin == "unknown"
    file = HubFile("a/b", "ctx32/efficient_sam3_s0_ctx16.pt", "0" * 40, 1, None)
    found = called_context(replace(named("blob"), hub=file), 77)
    assert (found.called, found.origin) == (16, "name")


@pytest.mark.parametrize("container", ["zip", "legacy", "bare", "safetensors"])
def test_a_whole_number_of_the_meta_is_read_and_nothing_else_of_it(container, tmp_path):
    state = {"w": torch.ones(2)}
    meta = {"text_context_length": 20, "text": "16", "yes": True, "lr": 0.1, "list": [16], "t": torch.ones(1)}
    path = tmp_path / "s0_ctx16.pt"
    if container == "safetensors":
        save_file(state, path, {"text_context_length": "20", "text": "sixteen", "lr": "0.1"})
    else:
        whole = {"meta": meta, **state} if container == "bare" else {"model": state, "meta": meta}
        torch.save(whole, path, _use_new_zipfile_serialization=container != "legacy")
    index = read_checkpoint(path)
    assert index.meta == {"text_context_length": 20} and list(index.tensors) == ["w"]
    found = called_context(index, 77)
    assert (found.called, found.origin, found.name) == (20, "meta", 16)


@pytest.mark.parametrize("value", [16.0, "16", True, None, [16], {"n": 16}, 0, -1, 1 << 40])
def test_a_meta_that_states_no_context_is_not_followed(value, tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "meta": {"text_context_length": value}}, tmp_path / "s0_ctx32.pt")
    assert called_context(read_checkpoint(tmp_path / "s0_ctx32.pt"), 77).origin == "name"


CASES = {
    "meta, then name": ({"text_context_length": 32}, "x_ctx16.pt", None, (32, "meta")),
    "name": ({}, "x_ctx16.pt", None, (16, "name")),
    "stated": ({}, "x.pt", 20, (20, "option")),
    "nothing": ({}, "x.pt", None, (77, "unknown")),
    "stated over the name": ({}, "x_ctx16.pt", 77, (77, "option")),
    "stated over the meta": ({"text_context_length": 32}, "x_ctx16.pt", 16, (16, "option")),
    "stated once more": ({}, "x_ctx16.pt", 16, (16, "name")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_counts_first(case):
    meta, name, option, expected = CASES[case]
    found = called_context(named(name, **meta), 77, option)
    assert (found.called, found.origin) == expected
    assert found.record().to_json() == {"called": expected[0], "rows": 77, "origin": expected[1]}


@pytest.mark.parametrize(
    ("meta", "name", "rows", "option", "words"),
    [
        ({}, "x_ctx16.pt", 16, None, None),
        ({}, "x.pt", 16, None, None),
        ({}, "x.pt", 32, None, None),
        ({}, "x.pt", 77, None, "is not stated; its table has 77 rows"),
        ({}, "x_ctx16.pt", 77, None, "name says that the model is called with 16 tokens; its position table has 77"),
        ({}, "x_ctx16.pt", 77, None, "interpolated, only a meta entry could tell; none does"),
        ({"text_context_length": 16}, "x.pt", 77, None, "meta says that the model is called with 16 tokens; its"),
        ({"text_context_length": 77}, "x_ctx16.pt", 77, None, "is called with 77 tokens (its name says 16), so all 77"),
        (
            {},
            "x_ctx16.pt",
            77,
            77,
            "77 is followed, although the file's name says that the model is called with 16",
        ),
        ({}, "x_ctx32.pt", 16, None, "has only 16 rows, which are kept as they are: the original stretches them to 32"),
    ],
)
def test_a_difference_is_said_in_one_line(meta, name, rows, option, words):
    said = called_context(named(name, **meta), rows, option).note(RELEASED)
    assert said is None if words is None else said is not None and words in said and "\n" not in said


# ---- what a plan makes of it ------------------------------------------------------------------------


def planned(name: str, rows: int, context: int | None = None, **meta: int):
    key = TEXT + TABLE
    source = source_rows("s0")
    checkpoint = replace(fake(reshaped(source, key, (1, 1, rows, 512))), path=Path(name), meta=meta)
    return make_plan(checkpoint, shipped_tables(), Options(context=context))


@pytest.mark.parametrize(
    ("name", "rows", "context", "held", "called"),
    [
        ("x_ctx16.pt", 77, None, 16, 16),
        ("x_ctx16.pt", 77, 77, 77, 77),
        ("x_ctx16.pt", 77, 8, 8, 8),
        ("x_ctx16.pt", 16, None, 16, 16),
        ("x_ctx32.pt", 16, None, 16, 32),
        ("x.pt", 77, None, 77, 77),
        ("x.pt", 77, 16, 16, 16),
    ],
)
def test_the_rows_that_are_called_are_kept(name, rows, context, held, called):
    plan = planned(name, rows, context)
    piece = plan.mapped[TARGET]
    assert (piece.shape, piece.begin, piece.nbytes) == ((1, 1, held, 512), 0, held * 512 * 4)
    lost = piece.operation.lost(piece.source.shape)
    assert (lost.rows if lost else 0) == rows - held
    assert plan.architecture.record().context_length == called


def test_published_folders_and_those_of_the_called_rows_differ_by_61_rows():
    assert planned("x_ctx16.pt", 77, 77).out_nbytes - planned("x_ctx16.pt", 77).out_nbytes == 124_928


def test_a_longer_context_than_the_table_is_refused_whatever_the_name_says():
    with pytest.raises(CannotRun, match="must be from 1 to 16, the number of rows"):
        planned("x_ctx32.pt", 16, 32)


@torch.no_grad()
def test_the_reference_of_a_file_with_77_rows_is_what_the_original_returned_when_called_with_16():
    pytest.importorskip("instant_clip_tokenizer")
    pytest.importorskip("ftfy")
    from sam3lite_convert.convert.prompts import tokenize

    of = golden("s0_text_77_cut_to_16")
    weights = {k.removeprefix(TEXT): draw(k, *row) for k, row in source_rows("s0").items() if k.startswith(TEXT)}
    weights[TABLE] = draw(TEXT + TABLE, "float32", (1, 1, 77, 512))
    ids = tokenize(json.loads(of.metadata["prompts"]), 16)
    wanted = of.tensors["text.memory"].transpose(0, 1)
    called = reference_encoder(planned("x_ctx16.pt", 77).architecture, weights, torch.float32)
    torch.testing.assert_close(called.run(ids)[0], wanted, atol=ATOL, rtol=0)
    # As it was built, it resizes all rows: the golden would not let that pass.
    whole = reference_encoder(planned("x.pt", 77).architecture, weights, torch.float32)
    assert float((whole.run(ids)[0] - wanted).norm() / wanted.norm()) > 0.1
