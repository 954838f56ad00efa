"""The packed encoder, loaded from a folder alone: the original's activations, and no weight left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.folders import (
    LAYOUTS,
    TEXT_POSITIONS,
    config,
    convert,
    edit,
    edit_config,
    tensors,
    tiny_architecture,
    tiny_state,
    write_safetensors,
)
from support.goldens import ATOL, TINY, golden

from sam3lite_convert.convert.folder import read_folder
from sam3lite_convert.convert.packed_config import PackedTextConfig
from sam3lite_convert.convert.text_weights import folder_weights
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.parity.candidates import CANDIDATES
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.tables import load_mappings

SIZES = {"text_hidden": 128, "projection_dim": 96, "output_dim": 48}
TABLE = TEXT_POSITIONS["packed"]
TOKENS = "text_encoder.token_embedding.weight"
COUNTER = "text_encoder.layers.0.convffn.conv.1.num_batches_tracked"


def ids(batch: int = 3, length: int = 16) -> torch.Tensor:
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    state = synthetic.state_dict(tiny_architecture(**SIZES), text_only=True)
    return write_safetensors(tmp_path_factory.mktemp("source"), state)


@pytest.fixture(scope="module")
def good(source, tmp_path_factory):
    """The text encoder alone, packed; read only."""
    return convert(source, tmp_path_factory.mktemp("good") / "text", "--component", "text")


@pytest.fixture
def bad(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bad")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A whole detector, packed; read only."""
    root = tmp_path_factory.mktemp("detector")
    return convert(write_safetensors(root, tiny_state()), root / "out")


def outputs_equal(a: PackedTextModel, b: PackedTextModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a(ids()), b(ids()), strict=True))


# ---- the original -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory):
    """(golden, layout) -> its weights through the conversion, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, layout: str) -> Path:
        if (name, layout) not in made:
            root = tmp_path_factory.mktemp(name)
            weights = {k: t for k, t in golden(name).tensors.items() if k.startswith("detector.")}
            options = ["--causal"] if golden(name).cfg["causal_masking"] else []
            path = write_safetensors(root, weights)
            made[name, layout] = convert(path, root / layout, "--layout", layout, "--component", "text", *options)
        return made[name, layout]

    return folder


# The transformers layout cannot say that an encoder masks causally.
BY_LAYOUT = [
    pytest.param(layout, *case.values, id=f"{layout} {case.id}")
    for layout in LAYOUTS
    for case in TINY
    if layout == "packed" or not golden(case.values[0]).cfg["causal_masking"]
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("layout", "name", "run"), BY_LAYOUT)
def test_every_activation_is_that_of_the_real_original(layout, name, run, attention, golden_folder):
    of, folder = golden(name), golden_folder(name, layout)
    of_layout = load_mappings().layout(layout)
    weights = folder_weights(read_folder(folder), of_layout)
    said = config(folder)
    encoder = CANDIDATES[of_layout.loader.name](
        of_layout.family, said.get("text_config", said), weights, torch.float32, attention
    )
    found, wanted = encoder.record(of.ids(run)), of.activations(run)
    assert sorted(found) == sorted(wanted)
    assert len(wanted) == len(encoder.layers) + 4
    for tap, tensor in wanted.items():
        torch.testing.assert_close(found[tap], tensor, atol=ATOL, rtol=0, msg=lambda m, t=tap: f"{t}: {m}")


@pytest.mark.parametrize(("name", "run"), TINY)
def test_what_a_user_loads_gives_the_originals_outputs(name, run, golden_folder):
    of = golden(name)
    out = PackedTextModel.from_pretrained(golden_folder(name, "packed"))(of.ids(run))
    wanted = of.activations(run)
    for found, tap in zip(out, ("final_layer_norm", "projected", "pooled"), strict=True):
        torch.testing.assert_close(found, wanted[tap], atol=ATOL, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recording_leaves_no_hook_behind_and_changes_no_output(layout, golden_folder):
    folder = golden_folder("tiny_mct", layout)
    said = config(folder)
    of_layout = load_mappings().layout(layout)
    weights = folder_weights(read_folder(folder), of_layout)
    encoder = CANDIDATES[of_layout.loader.name](
        of_layout.family, said.get("text_config", said), weights, torch.float32, "eager"
    )
    of = golden("tiny_mct")
    before = encoder.run(of.ids())
    own = encoder.record(of.ids())
    fed = encoder.record(of.ids(), {tap: torch.zeros_like(t) for tap, t in own.items()})
    after = encoder.run(of.ids())
    for x, y, tap in zip(before, after, ("projected", "pooled"), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, own[tap])
    # Fed with zeros, a tap says what its module makes of zeros, and nothing of what came before.
    assert torch.equal(fed["embeddings"], own["embeddings"])
    with torch.inference_mode():
        zeros = torch.zeros_like(own["layers.1"])
        assert torch.equal(fed["layers.2"], encoder.layers[2](zeros, attention_mask=None))
        assert torch.equal(fed["final_layer_norm"], encoder.final_layer_norm(zeros))
    assert not torch.equal(fed["layers.2"], own["layers.2"])


# ---- loading ------------------------------------------------------------------------------------


def test_a_loaded_model_is_ready_to_run(good):
    model = PackedTextModel.from_pretrained(str(good))
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    held, written = model.state_dict(), tensors(good)
    assert sorted(held) == sorted(written)
    assert all(torch.equal(held[k], written[k]) for k in written)


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 16), (2, 1), (2, 5), (2, 40)])
def test_the_shapes_of_the_outputs(batch, length, good):
    out = PackedTextModel.from_pretrained(good)(ids(batch, length))
    assert out.tokens.shape == (batch, length, SIZES["text_hidden"])
    assert out.projected.shape == (batch, length, SIZES["output_dim"])
    assert out.pooled.shape == (batch, SIZES["projection_dim"])


def test_a_row_does_not_depend_on_the_rows_beside_it(good):
    model = PackedTextModel.from_pretrained(good)
    whole = model(ids())
    for row in range(3):
        for a, b in zip(model(ids()[row : row + 1]), whole, strict=True):
            torch.testing.assert_close(a[0], b[row], atol=1e-5, rtol=0)


def test_eager_and_sdpa_are_the_same_encoder(good):
    eager, sdpa = (PackedTextModel.from_pretrained(good, attention)(ids()) for attention in ("eager", "sdpa"))
    for a, b in zip(eager, sdpa, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    with pytest.raises(CannotRun, match="flash"):
        PackedTextModel.from_pretrained(good, "flash")


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 2e-2), ("bfloat16", 1.5e-1)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_runs_in_the_dtype_of_the_file(dtype, atol, attention, source, good, tmp_path):
    folder = convert(source, tmp_path / "half", "--component", "text", "--dtype", dtype)
    out = PackedTextModel.from_pretrained(folder, attention)(ids())
    for found, wanted in zip(out, PackedTextModel.from_pretrained(good)(ids()), strict=True):
        assert found.dtype == getattr(torch, dtype)
        torch.testing.assert_close(found.float(), wanted, atol=atol, rtol=0)


def test_a_detector_and_shards_give_the_same_encoder(detector, tmp_path):
    state = write_safetensors(tmp_path, tiny_state())
    alone = convert(state, tmp_path / "alone", "--component", "text")
    cut = convert(state, tmp_path / "cut", "--max-shard-size", "200kB")
    assert len(list(cut.glob("model-*.safetensors"))) > 5
    models = [PackedTextModel.from_pretrained(f) for f in (detector, alone, cut)]
    assert outputs_equal(models[0], models[1])
    assert outputs_equal(models[0], models[2])


def test_only_the_text_tensors_are_read(detector, tmp_path):
    folder = shutil.copytree(detector, tmp_path / "garbage")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    del header["__metadata__"]
    text = count = 0
    for key, entry in header.items():
        begin, end = (start + n for n in entry["data_offsets"])
        if key.startswith(("text_encoder.", "text_projection.")):
            text, count = text + end - begin, count + 1
        else:
            data[begin:end] = b"\xff" * (end - begin)  # not-a-number in every floating dtype
    file.write_bytes(data)
    model = PackedTextModel.from_pretrained(folder)
    assert outputs_equal(model, PackedTextModel.from_pretrained(detector))
    counters = Path("/proc/self/io")
    if not counters.exists():
        return

    def read() -> int:
        return int(counters.read_text().split()[1])

    before = read()
    PackedTextModel.from_pretrained(folder)
    beside = sum((folder / name).stat().st_size for name in ("config.json", "conversion.json"))
    ahead = 8192 * count  # what a buffered file reads beyond each tensor
    assert text <= read() - before <= text + start + beside + ahead + 50_000
    assert len(data) > text + start + beside + 2 * ahead + 50_000  # there was more to read


def test_a_context_that_was_cut_has_the_first_rows_of_the_table(source, good, tmp_path):
    cut = convert(source, tmp_path / "cut", "--component", "text", "--context", 8)
    short, full = PackedTextModel.from_pretrained(cut), PackedTextModel.from_pretrained(good)
    table = short.state_dict()[TABLE]
    assert table.shape[2] == 8
    assert torch.equal(table, full.state_dict()[TABLE][:, :, :8])


def test_a_causal_encoder_does_not_look_ahead(tmp_path):
    state = synthetic.state_dict(tiny_architecture(model_name="base"), text_only=True)
    path = write_safetensors(tmp_path, state)
    causal, plain = (
        PackedTextModel.from_pretrained(convert(path, tmp_path / name, "--component", "text", *options))
        for name, options in (("causal", ["--causal"]), ("plain", []))
    )
    changed = ids()
    changed[:, 9:] = 7
    assert torch.equal(causal(changed).tokens[:, :9], causal(ids()).tokens[:, :9])
    assert not torch.equal(plain(changed).tokens[:, :9], plain(ids()).tokens[:, :9])


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["all", "text"])
def test_another_layout_is_refused(component, tmp_path):
    path = write_safetensors(tmp_path, tiny_state())
    folder = convert(path, tmp_path / "out", "--layout", "transformers", "--component", component)
    with pytest.raises(CannotRun, match="not a folder of the packed layout"):
        PackedTextModel.from_pretrained(folder)


def test_a_folder_without_config_or_that_is_not_there_is_refused(bad, tmp_path):
    (bad / "config.json").unlink()
    with pytest.raises(CannotRun, match="not a folder of the packed layout"):
        PackedTextModel.from_pretrained(bad)
    with pytest.raises(CannotRun, match=r"^s0: no such folder.*sam3lite convert s0$"):
        PackedTextModel.from_pretrained("s0")
    with pytest.raises(CannotRun, match="no such folder"):
        PackedTextModel.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotRun, match=r"no \.safetensors"):
        PackedTextModel.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize(
    "key",
    [
        TOKENS,
        TABLE,
        "text_encoder.projection",
        "text_projection.bias",
        "text_encoder.layers.0.layer_scale",
        "text_encoder.layers.0.convffn.conv.1.running_var",
        "text_encoder.layers.3.attention.in_proj_bias",
        "text_encoder.final_layer_norm.weight",
    ],
)
def test_a_missing_weight_is_named(key, bad):
    edit(bad, {key: None})
    with pytest.raises(UnsoundPlan, match="missing: ") as caught:
        PackedTextModel.from_pretrained(bad)
    assert caught.value.exit_code == 3
    assert key in caught.value.message
    assert caught.value.details["missing"] == [key]


def test_a_weight_too_many_or_of_another_shape_is_named(bad):
    key = "text_encoder.layers.3.attention.in_proj_bias"
    edit(bad, {"text_encoder.layers.3.attention.extra": torch.ones(2), key: tensors(bad)[key][:-1]})
    with pytest.raises(UnsoundPlan) as caught:
        PackedTextModel.from_pretrained(bad)
    assert caught.value.details["unexpected"] == ["text_encoder.layers.3.attention.extra"]
    assert "text_encoder.layers.3.attention.extra" in caught.value.message
    assert f"{key} is (383,) where the model has (384,)" in caught.value.message


def test_a_counter_of_a_batch_norm_may_be_absent(good, bad):
    edit(bad, {COUNTER: None})
    assert outputs_equal(PackedTextModel.from_pretrained(bad), PackedTextModel.from_pretrained(good))


def test_a_truncated_file_is_not_trusted(bad):
    file = bad / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Untrusted) as caught:
        PackedTextModel.from_pretrained(bad)
    assert "model.safetensors" in caught.value.message
    assert "truncated" in caught.value.message


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "use_repmixer_blocks", "output_dim"])
def test_a_missing_field_of_the_config_is_named(field, bad):
    edit_config(bad, "text_config", field)
    with pytest.raises(UnsoundPlan, match=field):
        PackedTextModel.from_pretrained(bad)


def test_an_unknown_activation_is_named_and_an_unknown_field_ignored(good):
    text = config(good)["text_config"]
    with pytest.raises(UnsoundPlan, match="swish"):
        PackedTextConfig.from_dict(text | {"hidden_act": "swish"})
    assert PackedTextConfig.from_dict(text | {"new_field": 3}) == PackedTextConfig.from_dict(text)
