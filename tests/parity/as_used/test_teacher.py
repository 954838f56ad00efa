"""sam3lite parity --as-used of SAM3 itself: its text encoder is causal, so other settings than LiteText's matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.clip_runs import reference, write_text
from support.folders import convert, sam3lite

from sam3lite_convert.convert.prompts import tokenize

pytest.importorskip("transformers")
pytest.importorskip("instant_clip_tokenizer")
pytest.importorskip("ftfy")

VOCAB = 49408
LONG = "the quick brown fox jumps over the lazy dog " * 4
ESCAPED = "salt &amp; pepper"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("teacher"), VOCAB)


def as_used(path: Path, *options: object, code: int = 0) -> Any:
    done = sam3lite("parity", "--checkpoint", path, "--as-used", "--json", *options)
    assert done.code == code, done
    return done.json["behaviour"]


def by_name(used: Any) -> dict[str, Any]:
    return {cause["name"]: cause for cause in used["causes"]}


def test_padding_and_its_mask_change_no_word(teacher: Path) -> None:
    used = as_used(teacher, "--prompt", "a dog", "--prompt", "person in a red coat")
    assert used["verdict"] in ("exact", "within_tolerance")
    assert {same["name"] for same in used["absent"]} == {"table_rows", "sequence_length"}
    causes = by_name(used)
    assert causes.keys() == {"text_cleaning", "truncation", "pad_id", "mask", "attention"}
    for name in ("pad_id", "mask", "text_cleaning", "truncation"):
        assert causes[name]["max_abs_diff"] < 1e-5, name
        assert causes[name]["tokens_without_counterpart"] == causes[name]["calls_failed"] == 0
    assert used["context"] == 32 and used["remedy"] is None
    assert "Sam3Model.get_text_features" in used["candidate"]
    code = used["recipe"]["code"]
    assert "from transformers import AutoTokenizer, Sam3Model" in code
    assert "# no mask: attention is causal" in code and "attends to padding" not in code
    assert used["recipe"]["verdict"] in ("exact", "within_tolerance")


def test_other_ids_and_a_prompt_that_is_too_long_make_the_stock_call_differ(teacher: Path) -> None:
    used = as_used(teacher, "--prompt", "a dog", "--prompt", ESCAPED, "--prompt", LONG)
    assert used["verdict"] == "differs"
    causes = by_name(used)
    assert causes["text_cleaning"]["prompts"] == 1 and causes["text_cleaning"]["max_abs_diff"] > 1e-3
    assert (causes["truncation"]["prompts"], causes["truncation"]["calls_failed"]) == (1, 1)
    assert "the model fails on more than 32" in causes["truncation"]["words"]
    assert causes["pad_id"]["max_abs_diff"] < 1e-5
    assert used["together"]["calls_failed"] == 1
    assert "the call fails on a prompt, which has more ids than the position table has rows" in used["summary"]
    worst = used["prompts"][0]
    assert (worst["prompt"], worst["relative_l2"]) == (LONG, None)
    assert used["recipe"]["verdict"] in ("exact", "within_tolerance")
    assert used["recipe"]["calls_failed"] == 0
    assert used["remedy"].startswith("The weights are not the cause")


def test_the_library_itself_fails_on_more_ids_than_rows_and_ignores_padding(teacher: Path) -> None:
    from transformers import Sam3Config, Sam3Model

    from sam3lite_convert.checkpoint.reader import read_checkpoint
    from sam3lite_convert.convert.config import make_config
    from sam3lite_convert.convert.text_weights import planned_weights
    from sam3lite_convert.plan.plan import Options, make_plan
    from sam3lite_convert.plan.tables import load_mappings

    plan = make_plan(read_checkpoint(teacher), load_mappings(), Options(component="text"))
    text = {k: v for k, v in make_config(plan).items() if k not in ("architectures", "dtype")}
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_layers": 1}
    with torch.device("meta"):
        model = Sam3Model(Sam3Config(text_config=text, detr_encoder_config=small))
    encoder = type(model.text_encoder)(model.config.text_config).eval()
    held = {
        k.removeprefix("text_encoder."): t for k, t in planned_weights(plan).items() if k.startswith("text_encoder")
    }
    encoder.load_state_dict(held)
    ids = tokenize(["a dog"], 32)
    with torch.no_grad():
        wanted = reference(VOCAB).encoder(ids)[0, :4]
        for other, mask in ((0, None), (49407, None), (0, ids.ne(0).long())):
            found = encoder(ids.masked_fill(ids == 0, other), attention_mask=mask).last_hidden_state[0, :4]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match=r"[Ss]equence length"):
            encoder(torch.cat([ids, ids], 1))


def test_a_folder_with_fewer_rows_than_the_processor_pads_to_fails_on_every_call(teacher: Path, tmp_path: Path) -> None:
    folder = convert(teacher, tmp_path / "out", "--layout", "transformers", "--component", "text", "--context", 16)
    used = as_used(teacher, "--converted", folder, "--prompt", "a dog", "--prompt", "a cat")
    assert used["verdict"] == "differs" and used["context"] == 16
    causes = by_name(used)
    assert causes["sequence_length"]["calls_failed"] == 2
    words = "padded to 32, not 16: more than the 16 rows of the position table, and the model fails"
    assert causes["sequence_length"]["words"] == words
    assert used["recipe"]["verdict"] in ("exact", "within_tolerance")
