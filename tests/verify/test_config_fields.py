"""Every field of config.json that changes what is computed gives a finding that names it.

What a field does was tried with transformers 5.23: each was set to other values in a small model, which was loaded and
run. REFUSED and CHANGED are what made the library stop, or gave another output; UNREAD changed nothing.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil

import pytest
import torch
import transformers
from support.folders import convert, edit_config, sam3lite, tiny_architecture, verify, write_safetensors

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.packed_detector import PackedModel
from sam3lite_convert.packed_encoder import PackedTextModel
from sam3lite_convert.plan import synthetic
from sam3lite_convert.plan.plan import Options, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.verify.config_check import check_config

VIT = "vision_config.backbone_config."


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {layout: convert(tiny, root / layout, "--layout", layout) for layout in ("packed", "transformers")}


@pytest.fixture(scope="module")
def plans(tiny):
    checkpoint = read_checkpoint(tiny)
    return {layout: make_plan(checkpoint, load_mappings(), Options(layout)) for layout in ("packed", "transformers")}


@pytest.fixture(scope="module")
def configs(folders):
    """layout -> config.json; of transformers with all fields that the library itself writes."""
    whole = transformers.Sam3LiteTextConfig.from_pretrained(folders["transformers"]).to_dict()
    return {
        "packed": json.loads((folders["packed"] / "config.json").read_text()),
        "transformers": json.loads(json.dumps(whole)),
    }


def changed(config, path, value):
    out = copy.deepcopy(config)
    section = out
    *parts, name = path.split(".")
    for part in parts:
        section = section[part]
    section[name] = value
    return out


def without(config, path):
    out = changed(config, path, None)
    section = out
    *parts, name = path.split(".")
    for part in parts:
        section = section[part]
    del section[name]
    return out


def leaves(config, path=""):
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def test_a_right_config_has_no_faults(plans, configs):
    for layout in ("packed", "transformers"):
        assert check_config(plans[layout], configs[layout]) == ([], [])


CHANGED = [
    ("detector_config", {}),
    ("image_size", 224),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("return_dict", False),
    ("vision_config.image_size", 224),
    ("vision_config.scale_factors", [4.0, 2.0, 1.0]),
    ("vision_config.return_dict", False),
    (VIT + "head_dim", 32),
    (VIT + "rope_theta", 500.0),
    (VIT + "rope_scaling", {"rope_type": "axial", "rope_theta": 500.0}),
    (VIT + "rope_scaling", {"type": "linear", "factor": 2.0}),
    (VIT + "rope_parameters", {"rope_theta": 500.0}),
    (VIT + "rope_parameters", {"rope_type": "axial", "rope_theta": None}),
    (VIT + "per_layer_config", {"0": {"layer_norm_eps": 1.0}}),
    (VIT + "hidden_act", "relu"),
    (VIT + "layer_norm_eps", float("nan")),
    (VIT + "global_attn_indexes", []),
    (VIT + "window_size", 8),
    (VIT + "model_type", "vit"),
    (VIT + "dtype", "x"),
    ("text_config.hidden_act", "gelu_new"),
    ("text_config.per_layer_config", {"1": {"num_attention_heads": 4}}),
    ("text_config.return_dict", False),
    ("geometry_encoder_config.hidden_act", "gelu"),
    ("geometry_encoder_config.num_attention_heads", 16),
    ("detr_encoder_config.num_hidden_layers", 1),
    ("detr_decoder_config.num_hidden_layers", 1),
    ("detr_decoder_config.hidden_act", "gelu"),
    ("detr_decoder_config.dropout", 1.1),
    ("mask_decoder_config.num_attention_heads", 16),
    ("mask_decoder_config.num_upsampling_stages", 4),
    ("mask_decoder_config.id2label", "x"),
]


@pytest.mark.parametrize(("path", "value"), CHANGED, ids=str)
def test_a_field_that_changes_the_model_is_named(path, value, plans, configs):
    faults = check_config(plans["transformers"], changed(configs["transformers"], path, value)).faults
    assert faults and all(f.path.startswith(path) for f in faults), faults


WRONG = {
    "text": str,
    "true": lambda v: True,
    "null": lambda v: None,
    "NaN": lambda v: float("nan"),
    "list": lambda v: [v],
}
# Fields that the library reads nowhere, or that it gives its default if they are null: nothing comes of these values.
UNREAD = {
    "architectures", "transformers_version", "problem_type", "label2id", "chunk_size_feed_forward", "_name_or_path",
    "is_encoder_decoder", "output_attentions", "output_hidden_states", "id2label",
}  # fmt: skip
HARMLESS = {"NaN": {"initializer_range", "layer_norm_eps", "layer_scale_init_value"}}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("layout", ["packed", "transformers"])
def test_a_number_of_another_type_is_named(layout, wrong, plans, configs):
    config = configs[layout]
    seen = 0
    for path, value in leaves(config):
        name = path.rpartition(".")[2]
        if isinstance(value, bool) or not isinstance(value, int | float) or name in UNREAD:
            continue
        eps = name != "layer_norm_eps" or path.startswith(("text_config", VIT))
        if wrong in HARMLESS and name in HARMLESS[wrong] and not (eps and name == "layer_norm_eps"):
            continue
        faults = check_config(plans[layout], changed(config, path, WRONG[wrong](value))).faults
        assert [f.path for f in faults] == [path], (path, faults)
        seen += 1
    assert seen > (30 if layout == "packed" else 45)


def test_no_value_of_any_field_is_a_traceback(plans, configs):
    odd = [None, True, 0, -1, 1e400, "8", "", [], [[]], [None], {}, {"a": {"b": []}}, float("nan")]
    for layout, config in configs.items():
        for path, _ in [*leaves(config), *((name, 0) for name in config), ("vision_config.backbone_config", 0)]:
            for value in odd:
                check_config(plans[layout], changed(config, path, value))
    for config in ({}, {"text_config": []}, {"vision_config": {"backbone_config": 3}}):
        for plan in plans.values():
            assert check_config(plan, config).faults


def test_what_is_said_to_have_no_effect_has_none(folders, tmp_path):
    """All fields at once that are passed over, changed in a model that the library loads and runs."""
    passed_over = {
        "": {"tie_word_embeddings": True, "torchscript": True, "use_cache": False, "tie_last_hidden_states": True},
        "vision_config": {"hidden_act": "relu", "layer_norm_eps": 1.0, "initializer_range": 3.0, "dtype": "float16"},
        "text_config": {
            "attention_dropout": 0.5, "layer_scale_init_value": 0.5, "initializer_range": 3.0, "eos_token_id": 3,
            "pad_token_id": 1, "bos_token_id": 3, "output_attentions": True, "num_labels": 3,
        },
        "detr_encoder_config": {"layer_norm_eps": 1.0, "dropout": 0.9, "hidden_dropout": 0.9},
        "detr_decoder_config": {"layer_norm_eps": 1.0, "dropout": 0.9, "hidden_dropout": 0.9},
        "mask_decoder_config": {"layer_norm_eps": 1.0, "dropout": 0.9, "hidden_act": "gelu"},
        "geometry_encoder_config": {"layer_norm_eps": 1.0, "dropout": 0.9},
    }  # fmt: skip
    folder = shutil.copytree(folders["transformers"], tmp_path / "changed")
    for section, fields in passed_over.items():
        for name, value in fields.items():
            edit_config(folder, *([section] if section else []), name, value=value)
    edit_config(folder, "vision_config", "backbone_config", "hidden_dropout", value=0.9)
    torch.manual_seed(0)
    size = json.loads((folder / "config.json").read_text())["vision_config"]["backbone_config"]["image_size"]
    inputs = {"pixel_values": torch.randn(1, 3, size, size), "input_ids": torch.tensor([[510, 3, 7, 511] + [0] * 12])}
    outputs = []
    for place in (folders["transformers"], folder):
        model = transformers.Sam3LiteTextModel.from_pretrained(place, attn_implementation="eager").eval()
        with torch.inference_mode():
            outputs.append(model(**inputs, attention_mask=torch.ones(1, 16, dtype=torch.int64)))
    for name in ("pred_masks", "pred_boxes", "pred_logits", "presence_logits"):
        assert torch.equal(outputs[0][name], outputs[1][name]), name


# ---- another model's class ---------------------------------------------------------------------------


def spoil_model_type(folder):
    edit_config(folder, "model_type", value="sam3")


def spoil_architectures(folder):
    edit_config(folder, "architectures", value=["Sam3Model"])


@pytest.mark.parametrize("spoil", [spoil_model_type, spoil_architectures])
def test_another_models_class_is_said_in_the_first_line_and_hides_nothing(spoil, folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    spoil(folder)
    edit_config(folder, "vision_config", "backbone_config", "layer_norm_eps", value=1e-6)
    record = verify(folder, tiny).json
    assert {f["code"] for f in record["findings"]} == {"V-CONFIG-CLASS", "V-CONFIG-EPS"}
    assert "randomly initialised" in record["summary"].partition(";")[0]
    assert "randomly initialised" in sam3lite("verify", folder, "--checkpoint", tiny).out.splitlines()[0]


def test_every_check_runs_behind_the_model_type_of_another_library(folders, tiny, tmp_path):
    folder = shutil.copytree(folders["packed"], tmp_path / "bad")
    shutil.copy(folders["transformers"] / "config.json", folder)
    edit_config(folder, "text_config", "layer_norm_eps", value=1e-6)
    record = verify(folder, tiny).json
    codes = [f["code"] for f in record["findings"]]
    assert {"V-CONFIG-CLASS", "V-CONFIG-EPS"} <= set(codes)
    assert "randomly initialised" in record["summary"].partition(";")[0]


def test_a_backbone_without_a_model_type_is_not_loaded(folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    edit_config(folder, "vision_config", "backbone_config", "model_type")
    # The library of constraints.txt raises KeyError; its lowest version takes the default.
    with contextlib.suppress(KeyError):
        transformers.Sam3LiteTextModel.from_pretrained(folder)
        assert tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
    keys = [m["key"] for m in verify(folder, tiny).json["mismatched"]]
    assert keys == ["config.json: vision_config.backbone_config.model_type"]
    edit_config(folder, "vision_config", "backbone_config", "model_type", value="sam3_vit_model")
    edit_config(folder, "vision_config", "model_type")  # has a default
    transformers.Sam3LiteTextModel.from_pretrained(folder)
    assert verify(folder, tiny).json["verdict"] == "proven"


# ---- what a comparison of the encoders alone does not show ---------------------------------------------

UNSEEN = {
    "dtype": "float16",
    "model_type": "sam3",
    "return_dict": False,
    "use_return_dict": False,
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "flex_attention",
    "detector_config": {"text_config": {}},
    "text_config.return_dict": False,
}


@pytest.mark.parametrize("path", UNSEEN)
def test_parity_is_not_exact_where_transformers_loads_something_else(path, folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    edit_config(folder, *path.split("."), value=UNSEEN[path])
    assert f"config.json: {path}" in [m["key"] for m in verify(folder, tiny).json["mismatched"]]
    done = sam3lite("parity", tiny, "--converted", folder)
    assert done.code == 3 and path in done.err, done


def test_the_config_of_the_text_encoder_beside_all_tensors_is_another_class(folders, tiny, configs, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    (folder / "config.json").write_text(json.dumps(configs["transformers"]["text_config"]))
    assert verify(folder, tiny).json["verdict"] == "mismatch"
    assert sam3lite("parity", tiny, "--converted", folder).code == 3


def test_a_dtype_that_is_asked_for_is_compared(folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    edit_config(folder, "dtype", value="float16")
    assert sam3lite("parity", tiny, "--converted", folder, "--dtype", "float32").code == 0


@pytest.mark.parametrize("value", ["eager", "sdpa"])
def test_attention_of_torch_itself_may_be_stated(value, folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "good")
    edit_config(folder, "_attn_implementation", value=value)
    assert verify(folder, tiny).json["verdict"] == "proven"
    assert sam3lite("parity", tiny, "--converted", folder).code == 0


# ---- what is left out, as its reader reads it ------------------------------------------------------------

LEFT_OUT = [
    "text_config", "text_config.output_dim", "text_config.hidden_size", "text_config.use_repmixer_blocks",
    "vision_config", "vision_config.scale_factors", "vision_config.backbone_config.window_size",
    "geometry_encoder_config.roi_size", "detr_decoder_config", "mask_decoder_config.num_attention_heads",
]  # fmt: skip


@pytest.mark.parametrize("path", [*LEFT_OUT, "model_type"])
def test_what_the_packed_reader_needs_is_named_if_it_is_left_out(path, folders, plans, configs, tmp_path):
    config = without(configs["packed"], path)
    (fault,) = check_config(plans["packed"], config).faults
    reader = PackedTextModel if path.startswith(("text_config", "model_type")) else PackedModel
    assert fault.path == path and f"{reader.__name__} " in fault.why
    folder = shutil.copytree(folders["packed"], tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=r"missing|not a folder of the packed layout"):
        reader.from_pretrained(folder)


@pytest.mark.parametrize("path", ["layer_norm_eps", "hidden_act", "repmixer_kernel_size", "causal_masking"])
def test_what_the_packed_reader_has_a_default_for_may_be_left_out(path, plans, configs):
    assert check_config(plans["packed"], without(configs["packed"], f"text_config.{path}")).faults == []


def test_causal_masking_left_out_is_no_causal_masking(tmp_path):
    path = write_safetensors(
        tmp_path, synthetic.state_dict(tiny_architecture(model_name="base", transformer_layers=2), text_only=True)
    )
    folder = convert(path, tmp_path / "out", "--causal", "--component", "text")
    edit_config(folder, "text_config", "causal_masking")
    record = verify(folder, path).json
    assert [m["key"] for m in record["mismatched"]] == ["config.json: text_config.causal_masking"]
    assert "left out" in record["mismatched"][0]["why"]


def test_a_section_that_is_left_out_is_one_finding(folders, tiny, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "bad")
    edit_config(folder, "geometry_encoder_config")
    (finding,) = verify(folder, tiny).json["findings"]
    assert finding["code"] == "V-CONFIG-FIELD" and len(finding["keys"]) > 1
    assert "geometry_encoder_config is left out" in finding["cause"]
