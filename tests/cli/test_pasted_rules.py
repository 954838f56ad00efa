"""Rules that a refusal prints: pasted into a copy of the table, the file converts to the bytes of the plain one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
import torch
from support.folders import Outcome, State, assert_equal_states, sam3lite, tensors, tiny_architecture, write_safetensors

from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.tables import builtin_directory

ENCODER, BLOCK, NORM = r"(language_backbone\.encoder)", r"(trunk\.blocks\.\d+\.)", r"((?:final_layer_norm|ln_pre)\.)"
LAYER = r"(language_backbone\.encoder\.transformer\.\d+\.)"
# What was renamed -> (pattern and replacement, in turn, and the number of rules that it takes)
RENAMED = {
    "a part of the text encoder": ([("token_mixer", "mixing")], 1),
    "the layers of the text encoder": ([(ENCODER + r"\.transformer\.", r"\1.blocks.")], 1),
    "the text encoder itself": ([(r"language_backbone\.enc", "words.nc"), (r"language_backbone\.p", "words.p")], 2),
    "parts of the ViT's blocks": ([(BLOCK + r"mlp\.fc1", r"\1ffn.a"), (BLOCK + r"mlp\.fc2", r"\1ffn.b")], 2),
    "all of the ViT's blocks": ([(BLOCK + r"attn", r"\1attention"), (r"trunk\.blocks", "trunk.layer")], 2),
    "the decoder": ([(r"transformer\.decoder\.", "transformer.query_decoder.")], 1),
    "a part of the decoder": ([(r"(decoder\.layers\.\d+\.)catext_norm", r"\1norm_of_text")], 1),
    "a wrapper in the middle": ([(BLOCK, r"\1wrapped_by_me.")], 1),
    "a wrapper at several places": ([(LAYER + r"([^.]+)\.", r"\1my.\2.my.")], 1),
    "the last part of names": ([(NORM + "weight", r"\1gamma"), (NORM + "bias", r"\1beta")], 2),
    "a part left out": ([(r"dot_prod_scoring\.prompt_mlp\.layers\.", "dot_prod_scoring.prompt_mlp.")], 1),
}


@pytest.fixture(scope="module")
def state() -> State:
    sizes = {"vit_layers": 2, "vocab": 64, "text_hidden": 64, "text_heads": 1, "projection_dim": 64}
    made = synthetic.state_dict(tiny_architecture(**sizes))
    return {k: t for k, t in made.items() if not k.startswith("tracker.")}


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory) -> State:
    folder = tmp_path_factory.mktemp("plain")
    done = sam3lite("convert", write_safetensors(folder, state), "--output", folder / "out")
    assert done.code == 0, done
    return tensors(folder / "out")


def renamed(state: State, changes: list[tuple[str, str]]) -> State:
    out = state
    for pattern, new in changes:
        before, out = out, {re.sub(pattern, new, key): value for key, value in out.items()}
        assert len(out) == len(state) and out.keys() != before.keys()
    return out


def rows(done: Outcome) -> int:
    """What a message takes of a terminal with 80 columns. The command line behind it counts as one: here it is longer
    by the long names of the folders of tests."""
    lines = done.err.removesuffix("\n").split("\n")
    command = 1 if lines[-1].startswith("  sam3lite ") else 0
    return sum(max(1, -(-len(line) // 80)) for line in (lines[:-1] if command else lines)) + command


def pasted(refused: Outcome) -> list[str]:
    """Runs the lines that a refusal prints for a shell, in this folder; the words of the command behind them."""
    shell, _, command = refused.err.partition("into a shell:\n")[2].removesuffix("\n").rpartition("\n")
    subprocess.run(shell, shell=True, check=True)
    name, *words = shlex.split(command)
    assert name == "sam3lite"
    return words


def test_the_printed_command_has_all_that_was_typed(state, plain, tmp_path, monkeypatch):
    """Keys with a prefix of the user's own and a part renamed; then another part, with the tables of the first time."""
    monkeypatch.chdir(tmp_path)
    changes = [("token_mixer", "mixing"), ("^", "net.my.")]
    file = write_safetensors(tmp_path, renamed(state, changes))
    command = pasted_command(sam3lite("convert", file.name, "--strip-prefix", "net."))
    assert command == ["convert", file.name, "--strip-prefix", "net.my."]
    given = [*command, "--output", "an out", "--dtype=float32", "--overwrite", "--json"]
    assert sam3lite(*given).json["error"]["details"]["command"].endswith("--overwrite --mapping tables")
    command = pasted(sam3lite(*given[:-1]))
    assert command == [*given[:-1], "--mapping", "tables"]
    assert sam3lite(*command).code == 0
    assert_equal_states(tensors(tmp_path / "an out"), plain)
    write_safetensors(tmp_path, renamed(state, [*changes, (r"trunk\.blocks", "trunk.layer")]))
    refused = sam3lite(*command)
    assert "mkdir" not in refused.err and "cp " not in refused.err
    assert pasted(refused) == command and sam3lite(*command).code == 0


def pasted_command(done: Outcome) -> list[str]:
    return shlex.split(done.err.splitlines()[-1])[1:]


@pytest.mark.parametrize("name", RENAMED)
def test_a_printed_rule_gives_the_bytes_of_the_plain_file(name, state, plain, tmp_path, monkeypatch):
    changes, count = RENAMED[name]
    file = write_safetensors(tmp_path, renamed(state, changes))
    refused = sam3lite("convert", file, "--output", tmp_path / "out")
    assert refused.code == 3 and rows(refused) <= 25, refused.err
    assert ("With this rule " if count == 1 else f"With these {count} rules ") in refused.err, refused.err
    # As a person would do it: the lines that are printed are pasted into a shell, the last one is the command.
    monkeypatch.chdir(tmp_path)
    command = pasted(refused)
    assert command == ["convert", str(file), "--output", str(tmp_path / "out"), "--mapping", "tables"]
    done = sam3lite(*command)
    assert done.code == 0, done.err
    assert_equal_states(tensors(tmp_path / "out"), plain)
    assert sam3lite("verify", tmp_path / "out", file, "--mapping", "tables").code == 0


@pytest.mark.parametrize("name", ["a part of the text encoder", "the layers of the text encoder"])
def test_json_has_every_rule_and_every_key(name, state, tmp_path):
    changes, _ = RENAMED[name]
    file = write_safetensors(tmp_path, renamed(state, changes))
    record = sam3lite("convert", file, "--output", tmp_path / "out", "--json").json["error"]
    (rule,) = record["details"]["rules"]
    assert record["code"] == "unsound_plan" and record["details"]["sound_with_rules"]
    assert sorted(rule["keys"]) == sorted(renamed(state, changes).keys() - state.keys())
    unmatched = [fault for fault in record["details"]["faults"] if fault["kind"] == "unmatched"]
    assert sorted(fault["key"] for fault in unmatched) == sorted(rule["keys"])
    back = {"detector." + fault["near"][0] for fault in unmatched}
    assert back == state.keys() - renamed(state, changes).keys()


def apart(state: State, pattern: str, dot: str = ".") -> State:
    """q, k and v of this attention one by one, as forks write that put LoRA on them."""
    out = {}
    for key, value in state.items():
        found = re.fullmatch(rf"({pattern})(in_proj_|qkv_proj\.|qkv\.)(weight|bias)", key)
        if found:
            out |= {
                f"{found[1]}{n}_proj{dot}{found[3]}": part.clone()
                for n, part in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            out[key] = value
    assert out.keys() != state.keys()
    return out


@pytest.mark.parametrize("dot", [".", "_"])  # torch itself writes q_proj_weight where keys are of another width
def test_attention_apart_is_one_cause_with_rules_that_take_it_as_it_is(dot, state, plain, tmp_path):
    modules = r"self_attn|ca_text|cross_attn|cross_attn_image|cross_attend_prompt|blocks\.\d+\.attn"
    file = write_safetensors(tmp_path, apart(state, rf".*(?:{modules})\.", dot))
    refused = sam3lite("convert", file, "--output", tmp_path / "out")
    assert refused.code == 3 and rows(refused) <= 25
    for packed in ("in_proj_weight", "qkv.weight"):
        assert f"  {packed} = torch.cat([q_proj{dot}weight, k_proj{dot}weight, v_proj{dot}weight])\n" in refused.err
    assert "without a rule" not in refused.err and "without a source" not in refused.err
    rules = sam3lite("convert", file, "--output", tmp_path / "out", "--json").json["error"]["details"]["rules"]
    tables = tmp_path / "tables"
    tables.mkdir()
    for rule in rules:
        if not (tables / rule["table"]).exists():
            shutil.copy(builtin_directory() / rule["table"], tables)
        with open(tables / rule["table"], "a") as table:
            table.write(f"\n{rule['text']}\n")
    done = sam3lite("convert", file, "--output", tmp_path / "out", "--mapping", tables)
    assert done.code == 0, done.err
    assert_equal_states(tensors(tmp_path / "out"), plain)


@pytest.mark.parametrize(("pattern", "call"), [
    (r".*self_attn\.", "in_proj_weight = torch.cat([q_proj.weight, k_proj.weight, v_proj.weight])"),
    (r".*pre_norm_mha\.1\.", "qkv_proj.weight = torch.cat([q_proj.weight, k_proj.weight, v_proj.weight])"),
])  # fmt: skip
def test_attention_apart_has_no_rule_where_the_layout_packs_it_too(pattern, call, state, tmp_path):
    file = write_safetensors(tmp_path, apart(state, pattern))
    layout = "original" if "self" in pattern else "packed"
    refused = sam3lite("convert", file, "--layout", layout, "--output", tmp_path / "out")
    assert refused.code == 3 and rows(refused) <= 25
    assert call in refused.err and "paste" not in refused.err


def test_keys_that_may_go_are_dropped_with_the_printed_option(state, plain, tmp_path):
    extra = {f"detector.quality_head.layers.{n}.{p}": torch.ones(3) for n in range(40) for p in ("weight", "bias")}
    file = write_safetensors(tmp_path, state | extra | {"detector.my_scale": torch.ones(1)})
    refused = sam3lite("convert", file, "--output", tmp_path / "out")
    assert refused.code == 3 and rows(refused) <= 25
    assert "  detector.quality_head.layers.{0..39}.{bias,weight} (80)\n" in refused.err
    option = refused.err.partition("If the model does without them: ")[2].splitlines()[0]
    done = sam3lite("convert", file, "--output", tmp_path / "out", *shlex.split(option))
    assert done.code == 0, done.err
    assert_equal_states(tensors(tmp_path / "out"), plain)


def test_a_text_encoder_that_is_whole_is_converted_as_the_refusal_says(state, tmp_path):
    part = {k: t for k, t in state.items() if ".language_backbone." in k or ".vision_backbone." in k}
    file = write_safetensors(tmp_path, part)
    refused = sam3lite("convert", file, "--output", tmp_path / "out")
    option = re.search(r"convert the text encoder alone with (--component text)\.", refused.err)
    assert refused.code == 3 and option
    assert sam3lite("convert", file, "--output", tmp_path / "out", *option[1].split()).code == 0


def test_what_rules_do_not_mend_is_told_behind_them(state, tmp_path):
    key = "detector.dot_prod_scoring.hs_proj.bias"
    part = {k: t for k, t in renamed(state, [("token_mixer", "mixing")]).items() if k != key}
    refused = sam3lite("convert", write_safetensors(tmp_path, part), "--output", tmp_path / "out")
    assert refused.code == 3 and rows(refused) <= 25
    assert "With this rule in spellings.ini, more of it has its place. Paste" in refused.err
    assert f"1 target without a source; missing in the file:\n  {key}\n" in refused.err
    record = sam3lite("convert", tmp_path / "tiny.safetensors", "--output", tmp_path / "out", "--json").json["error"]
    assert not record["details"]["sound_with_rules"] and len(record["details"]["rules"]) == 1


def test_names_that_shapes_cannot_tell_apart_are_to_be_checked(state, tmp_path):
    changes = [(r"(blocks\.\d+\.)norm1", r"\1norm_b"), (r"(blocks\.\d+\.)norm2", r"\1norm_a")]
    refused = sam3lite("convert", write_safetensors(tmp_path, renamed(state, changes)), "--output", tmp_path / "out")
    assert re.search(r"renamed\? norm_[ab] -> norm[12].*\n.*\n  Check it: .* could as well be norm[12]", refused.err)


def test_no_rule_is_offered_that_would_give_two_keys_one_name(state, tmp_path):
    """One tensor of the renamed part is there under its own name too, with other values."""
    key = next(k for k in state if k.endswith("0.token_mixer.layer_scale"))
    both = renamed(state, [("token_mixer", "mixing")]) | {key: state[key] + 1}
    refused = sam3lite("convert", write_safetensors(tmp_path, both), "--output", tmp_path / "out")
    assert refused.code == 3 and "[mixing is token_mixer]" not in refused.err


def test_no_rule_is_made_up_for_a_key_of_another_shape(state, tmp_path):
    key = "detector.dot_prod_scoring.hs_proj.bias"
    other = {k: t for k, t in state.items() if k != key} | {"detector.dot_prod_scoring.hs_porj.bias": torch.ones(7)}
    refused = sam3lite("convert", write_safetensors(tmp_path, other), "--output", tmp_path / "out")
    assert refused.code == 3 and "renamed" not in refused.err and key in refused.err
    assert "nearest rule: [scoring query] of detector.ini, for dot_prod_scoring.hs_proj.bias" in refused.err
