"""config.json, and what released transformers makes of a converted folder."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from support.folders import (
    PROJECTION,
    config,
    convert,
    oracle,
    python,
    same,
    tensors,
    tiny_architecture,
    tiny_state,
    with_layers,
    write,
    write_safetensors,
)
from support.rows import MODELS, plan_of, source_rows, target_rows

from sam3lite_convert.convert.config import make_config
from sam3lite_convert.plan import synthetic

PACKED_TYPE = "sam3lite_packed"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("tiny"), tiny_state())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return convert(tiny, tmp_path_factory.mktemp("whole") / "out", "--layout", "transformers")


@pytest.fixture(scope="module")
def text(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "out"
    return convert(tiny, folder, "--layout", "transformers", "--component", "text")


def load(model, folder):
    """Load a folder, and fail the test if anything is left over or made up."""
    loaded, info = model.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return loaded.eval()


# ---- loading -----------------------------------------------------------------------------


def test_the_model_loads_with_nothing_missing_unexpected_or_mismatched(whole):
    model = load(transformers.Sam3LiteTextModel, whole)
    held, wanted = model.state_dict(), oracle("transformers", tiny_state())
    assert wanted.keys() <= held.keys()
    assert all(same(held[k], t) for k, t in wanted.items())


def test_auto_config_reads_the_config(whole, text):
    assert type(transformers.AutoConfig.from_pretrained(whole)) is transformers.Sam3LiteTextConfig
    assert type(transformers.AutoConfig.from_pretrained(text)) is transformers.Sam3LiteTextTextConfig


def test_auto_model_finds_the_class(whole, text):
    assert type(load(transformers.AutoModel, whole)) is transformers.Sam3LiteTextModel
    assert config(whole)["architectures"] == ["Sam3LiteTextModel"]
    assert config(text)["architectures"] == ["Sam3LiteTextTextModel"]


def test_every_layer_norm_runs_at_the_originals_eps(whole):
    model = load(transformers.Sam3LiteTextModel, whole)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) > 30
    assert {m.eps for m in norms} == {1e-5}
    assert config(whole)["vision_config"]["backbone_config"]["layer_norm_eps"] == 1e-5


IDS = torch.tensor([[510, 3, 4, 511] + [0] * 12, [510, 9, 511] + [0] * 13])


@torch.no_grad()
def test_the_text_encoder_loads_alone_and_pools_as_the_original_does(text):
    model = load(transformers.Sam3LiteTextTextModel, text)
    out = model(input_ids=IDS)
    tokens = out.last_hidden_state
    assert tokens.shape == (2, 16, 128)
    # Final LayerNorm at argmax of the ids, times the original's matrix.
    wanted = tokens[torch.arange(2), IDS.argmax(-1)] @ tiny_state()[PROJECTION]
    torch.testing.assert_close(out.pooler_output, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_text_encoder_alone_is_that_of_the_whole_model(whole, text):
    alone = load(transformers.Sam3LiteTextTextModel, text)
    inside = load(transformers.Sam3LiteTextModel, whole).text_encoder
    assert torch.equal(alone(input_ids=IDS).last_hidden_state, inside(input_ids=IDS).last_hidden_state)


@torch.no_grad()
def test_the_whole_model_runs(whole):
    model = load(transformers.Sam3LiteTextModel, whole)
    out = model(pixel_values=torch.zeros(1, 3, 112, 112), input_ids=IDS[:1])
    assert out.pred_boxes.shape == (1, 10, 4)
    assert all(v.isfinite().all() for v in out.values() if isinstance(v, torch.Tensor))


def test_shards_load_through_their_index(tiny, whole, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers", "--max-shard-size", "1MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    held = load(transformers.Sam3LiteTextModel, folder).state_dict()
    assert all(same(held[k], t) for k, t in tensors(whole).items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_folder_loads_in_its_dtype(dtype, tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers", "--dtype", dtype)
    model = load(transformers.Sam3LiteTextModel, folder)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_cut_context_loads(tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--layout", "transformers", "--component", "text", "--context", 8)
    model = load(transformers.Sam3LiteTextTextModel, folder)
    assert model.config.max_position_embeddings == 8


SIZES = {
    "base, three heads": {"model_name": "base", "transformer_layers": 2, "text_hidden": 192, "text_heads": 3},
    "one layer between": {"transformer_layers": 1},
    "another kernel and mlp": {"kernel": 5, "text_ffn": 320},
    "longer context, narrower pooled projection": {"context": 32, "projection_dim": 64},
    "another detector": {
        "hidden": 64, "output_dim": 64, "fpn_hidden": 64, "geometry_ffn": 96, "detr_encoder_ffn": 80,
        "detr_decoder_ffn": 112, "queries": 17, "roi": 5,
    },
    "another vit": {"vit_hidden": 192, "vit_ffn": 256, "patch": 16},
    "more blocks": {"vit_layers": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_checkpoint_of_other_sizes_loads_too(name, tmp_path):
    state = synthetic.state_dict(tiny_architecture(**SIZES[name]))
    folder = convert(write_safetensors(tmp_path, state), tmp_path / "out", "--layout", "transformers")
    load(transformers.Sam3LiteTextModel, folder)


def test_other_numbers_of_layers_load_too(tmp_path):
    architecture = with_layers(tiny_architecture(), geometry=2, detr_encoder=1, detr_decoder=3)
    folder = convert(write(tmp_path, synthetic.state_dict(architecture)), tmp_path / "out", "--layout", "transformers")
    model = load(transformers.Sam3LiteTextModel, folder)
    found = (model.geometry_encoder.layers, model.detr_encoder.layers, model.detr_decoder.layers)
    assert [len(layers) for layers in found] == [2, 1, 3]


# ---- the packed layout is not for transformers -----------------------------------------------


@pytest.mark.parametrize("component", ["all", "text"])
def test_a_packed_folder_cannot_be_loaded_by_mistake(component, tiny, tmp_path):
    folder = convert(tiny, tmp_path / "out", "--component", component)
    assert config(folder)["model_type"] == PACKED_TYPE
    with pytest.raises(ValueError, match=PACKED_TYPE):
        transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=PACKED_TYPE):
        transformers.AutoModel.from_pretrained(folder)


def test_causal_masking_is_stated_in_the_packed_layout_and_refused_by_the_other(tmp_path):
    state = synthetic.state_dict(tiny_architecture(model_name="base", transformer_layers=2))
    path = write(tmp_path, state)
    folder = convert(path, tmp_path / "out", "--causal")
    assert config(folder)["text_config"]["causal_masking"] is True
    assert config(convert(path, tmp_path / "not"))["text_config"]["causal_masking"] is False


# ---- how it is written -------------------------------------------------------------------------


def test_neither_convert_nor_verify_imports_transformers(tiny, tmp_path):
    # The tokenizer of the transformers layout, the second, is looked for on the Hub.
    code = (
        "import sys; from sam3lite_convert.cli.app import run\n"
        "for layout, unloaded in (('packed', 'huggingface_hub'), ('transformers', 'torchvision')):\n"
        f"    options = ['--checkpoint', {str(tiny)!r}]\n"
        "    assert run(['convert', *options, '--output', layout, '--layout', layout]) == 0\n"
        "    assert run(['verify', layout, *options]) == 0\n"
        "    assert not {'transformers', unloaded} & sys.modules.keys(), layout\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# ---- the released sizes, from their key lists ----------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_config_of_a_released_model_makes_exactly_the_released_tensors(model):
    made = json.loads(json.dumps(make_config(plan_of(source_rows(model), layout="transformers"))))
    with torch.device("meta"):
        empty = transformers.Sam3LiteTextModel(transformers.Sam3LiteTextConfig(**made))
    found = {k: tuple(t.shape) for k, t in empty.state_dict().items()}
    wanted = {k: shape for k, (_, shape) in target_rows("transformers", model).items()}
    counters = {k for k in found if k.endswith("num_batches_tracked")}
    assert {k: s for k, s in found.items() if k not in counters} == {
        k: s for k, s in wanted.items() if not k.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("model", MODELS)
def test_the_config_of_a_released_model_is_the_librarys_own_but_for_known_fields(model):
    def differences(made, default, path=""):
        for name, value in made.items():
            other = default.get(name)
            if isinstance(value, dict):
                yield from differences(value, other, f"{path}{name}.")
            elif value != other:
                yield f"{path}{name}"

    made = make_config(plan_of(source_rows(model), layout="transformers"))
    default = json.loads(transformers.Sam3LiteTextConfig().to_json_string(use_diff=False))
    known = {
        "architectures", "dtype", "vision_config.backbone_config.layer_norm_eps",
        "text_config.max_position_embeddings",
    }  # fmt: skip
    sizes = {
        "s0": {"num_hidden_layers": 6},
        "s1": {"use_repmixer_blocks": False},
        "l": {
            "use_repmixer_blocks": False, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
            "num_attention_heads": 12,
        },
    }[model]  # fmt: skip
    assert sizes.items() <= made["text_config"].items()
    assert set(differences(made, default)) == known | {f"text_config.{name}" for name in sizes}
    assert made["text_config"]["max_position_embeddings"] == 16
