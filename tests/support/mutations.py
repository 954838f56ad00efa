"""Converted folders with one change each, and what their reader makes of them.

``mutations`` lists the changes: every field of config.json and of the processor's files, fields that are absent, every
kind of edit of every kind of tensor, and files that lie beside, instead of, or in front of the right ones.
``reading`` loads a folder with the program that people load it with, so that whether a change matters is not our word.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save_file

from sam3lite_convert.packed_encoder import PackedTextModel

MODEL, CONFIG = "model.safetensors", "config.json"
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
JsonPath = tuple[str | int, ...]

# Fields that our config.json leaves out and that a loader reads, with a value that is not its default.
ABSENT: dict[JsonPath, list[object]] = {
    ("transformers_weights",): ["other.safetensors"],
    ("quantization_config",): [{"quant_method": "fp8"}],
    ("torch_dtype",): ["float16"],
    ("tie_word_embeddings",): [True],
    ("text_config", "attention_dropout"): [0.5],
    ("text_config", "causal_masking"): [True],
    ("vision_config", "backbone_config", "rope_theta"): [500.0],
    ("vision_config", "backbone_config", "rope_parameters"): [{"rope_type": "axial", "rope_theta": 500.0}],
    ("vision_config", "backbone_config", "rope_scaling"): [{"rope_type": "axial", "rope_theta": 500.0}],
    ("vision_config", "backbone_config", "layer_scale_init_value"): [0.1],
    ("vision_config", "backbone_config", "attention_dropout"): [0.5],
    ("vision_config", "backbone_config", "hidden_dropout"): [0.5],
    ("vision_config", "layer_norm_eps"): [1e-2],
    ("vision_config", "hidden_act"): ["relu"],
    ("geometry_encoder_config", "hidden_act"): ["gelu"],
    ("geometry_encoder_config", "mask_fuser_hidden_act"): ["relu"],
    ("geometry_encoder_config", "layer_norm_eps"): [1e-2],
    ("detr_encoder_config", "hidden_act"): ["gelu"],
    ("detr_encoder_config", "layer_norm_eps"): [1e-2],
    ("detr_decoder_config", "hidden_act"): ["gelu"],
    ("detr_decoder_config", "layer_norm_eps"): [1e-2],
    ("detr_decoder_config", "use_presence_token"): [False],
    ("detr_decoder_config", "box_rpb_mode"): ["none"],
    ("mask_decoder_config", "hidden_act"): ["gelu"],
    ("mask_decoder_config", "layer_norm_eps"): [1e-2],
}


@dataclass(frozen=True)
class Mutation:
    """One change of a folder. ``kind``: config, processor, tensor or file."""

    kind: str
    name: str
    apply: Callable[[Path], None]


class Reading(NamedTuple):
    """What a reader takes from a folder: its tensors by name (hash of the bytes), what it computes, and settings that
    no run here brings out. ``text``: the part of it that is the text encoder's."""

    state: dict[str, str]
    outputs: dict[str, torch.Tensor]
    settings: str

    def text(self) -> Reading:
        """The text encoder's part."""
        state = {k: v for k, v in self.state.items() if k.startswith("text_")}
        return Reading(state, {k: v for k, v in self.outputs.items() if k.startswith("text")}, "")

    def same(self, other: Reading) -> bool:
        """Whether both are the same to rounding."""
        if self.state != other.state or self.settings != other.settings or self.outputs.keys() != other.outputs.keys():
            return False
        pairs = ((a, other.outputs[k]) for k, a in self.outputs.items())
        return all(
            a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 1e-6, 1e-6, True) for a, b in pairs
        )


# ---- the changes


def mutations(folder: Path, layout: str) -> Iterator[Mutation]:
    """Every change that can be made to this folder."""
    config = json.loads((folder / CONFIG).read_text())
    yield from _json_mutations("config", CONFIG, config)
    if layout == "transformers":
        for path, values in ABSENT.items():
            for value in values:
                name = f"{CONFIG}: {_dotted(path)} added as {json.dumps(value)}"
                yield Mutation("config", name, _edit(CONFIG, path, value))
    for file in PROCESSOR:
        if (folder / file).exists():
            yield from _json_mutations("processor", file, json.loads((folder / file).read_text()))
    yield from _tensor_mutations(folder)
    yield from _file_mutations(folder)
    yield from _odd_mutations(folder, layout)


def _json_mutations(kind: str, file: str, content: object) -> Iterator[Mutation]:
    for path, value in _leaves(content):
        yield Mutation(kind, f"{file}: {_dotted(path)} deleted", _delete(file, path))
        for other in _others(value):
            name = f"{file}: {_dotted(path)} {json.dumps(value)} -> {json.dumps(other)}"
            yield Mutation(kind, name, _edit(file, path, other))
    for path, _ in _sections(content):
        yield Mutation(kind, f"{file}: {_dotted(path)} deleted", _delete(file, path))
        yield Mutation(kind, f"{file}: {_dotted(path)} emptied", _edit(file, path, {}))


def _others(value: object) -> list[object]:
    """Other values of a field: plausible ones, and ones of another type."""
    if isinstance(value, bool):
        return [not value, str(value).lower(), None]
    if isinstance(value, int):
        return [value + 1, value * 2, max(value // 2, 0), -value, str(value), float(value) + 0.5, None, [value]]
    if isinstance(value, float):
        return [value * 10, value / 10, -value, 0.0, str(value), None]
    acts = ["relu", "quick_gelu", "gelu_pytorch_tanh", "silu"]
    return [*(acts if value == "gelu" else []), f"{value}x", "", None, 3]


def _leaves(content: object, at: JsonPath = ()) -> Iterator[tuple[JsonPath, object]]:
    items: Any = content.items() if isinstance(content, dict) else enumerate(content)  # type: ignore[arg-type]
    for name, value in items:
        if isinstance(value, dict | list):
            yield from _leaves(value, (*at, name))
        else:
            yield (*at, name), value


def _sections(content: object, at: JsonPath = ()) -> Iterator[tuple[JsonPath, object]]:
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, dict):
                yield (*at, name), value
                yield from _sections(value, (*at, name))


def _dotted(path: JsonPath) -> str:
    return ".".join(map(str, path))


def _edit(file: str, path: JsonPath, value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        inner = content
        for name in path[:-1]:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else inner[name]
        inner[path[-1]] = copy.deepcopy(value)
        (folder / file).write_text(json.dumps(content))

    return apply


def _delete(file: str, path: JsonPath) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        (folder / file).write_text(json.dumps(content))

    return apply


State = dict[str, torch.Tensor]


def _one_bit(t: torch.Tensor) -> torch.Tensor:
    out = t.clone().contiguous()
    out.view(-1).view(torch.uint8)[-1] ^= 1
    return out


EDITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one bit": _one_bit,
    "times 1.001": lambda t: t * 1.001,
    "negated": lambda t: -t,
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "NaN in one place": lambda t: torch.cat([t.reshape(-1)[:-1], torch.full((1,), torch.nan)]).reshape(t.shape),
    "through float16": lambda t: t.half().float(),
    "through bfloat16": lambda t: t.bfloat16().float(),
    "as float16": lambda t: t.half(),
    "as float64": lambda t: t.double(),
    "as int32": lambda t: t.int(),
    "rolled by one row": lambda t: t.roll(1, 0),
    "rows reversed": lambda t: t.flip(0),
    "columns reversed": lambda t: t.flip(-1),
    "transposed": lambda t: t.transpose(0, -1).contiguous(),
    "reshaped after a transpose": lambda t: t.transpose(0, -1).reshape(t.shape),
    "thirds rotated": lambda t: torch.cat([*t.chunk(3)[1:], t.chunk(3)[0]]),
    "first row dropped": lambda t: t[1:],
    "one row": lambda t: t[:1],
    "an axis in front": lambda t: t.unsqueeze(0),
    "flattened": lambda t: t.reshape(-1),
    "noise of 1e-5": lambda t: t + 1e-5 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)),
    "random": lambda t: torch.randn(t.shape, generator=torch.Generator().manual_seed(2)),
}


def tensors_in(file: Path) -> State:
    """Every tensor of a file, by copy: older libraries map the file, which is written over here."""
    return load(file.read_bytes())


def _tensor_mutations(folder: Path) -> Iterator[Mutation]:
    state = tensors_in(folder / MODEL)
    for key in _one_of_each_kind(state):
        tensor = state[key]
        for name, edit in EDITS.items():
            if not tensor.is_floating_point() or (not tensor.dim() and name != "one bit"):
                continue
            made = edit(tensor)
            if made.shape == tensor.shape and made.dtype == tensor.dtype and torch.equal(made, tensor):
                continue  # such as the transpose of a vector
            yield Mutation("tensor", f"{key}: {name}", _with(lambda s, k=key, e=edit: {k: e(s[k])}))  # type: ignore[misc]
        yield Mutation("tensor", f"{key}: removed", _without(key))
        yield Mutation("tensor", f"{key}: renamed", _renamed(key, key + "_"))
        other = next((k for k in state if k != key and state[k].shape == tensor.shape and state[k].dim()), None)
        if other and not torch.equal(state[other], tensor):
            yield Mutation("tensor", f"{key}: exchanged with {other}", _exchanged(key, other))
            yield Mutation("tensor", f"{key}: holds {other}", _with(lambda s, k=key, o=other: {k: s[o].clone()}))  # type: ignore[misc]
    counter = next((k for k in state if k.endswith("num_batches_tracked")), None)
    if counter:
        yield Mutation("tensor", f"{counter}: of shape [1]", _with(lambda s: {counter: s[counter].reshape(1)}))
        two = torch.zeros(2, dtype=torch.int64)
        yield Mutation("tensor", f"{counter}: two values", _with(lambda s: {counter: two}))
    for name in ("through float16", "random", "zeros", "times 1.001"):
        edit = EDITS[name]
        yield Mutation("tensor", f"all {name}", _with(lambda s, e=edit: {k: e(t) for k, t in _floats(s)}))  # type: ignore[misc]
    yield Mutation("tensor", "one more tensor", _with(lambda s: {"text_encoder.extra.weight": torch.ones(2, 2)}))


def _floats(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    return ((k, t) for k, t in state.items() if t.is_floating_point())


def _one_of_each_kind(state: State) -> list[str]:
    """The first key of each name, numbers aside."""
    kinds: dict[str, str] = {}
    for key in state:
        kinds.setdefault(".".join("N" if part.isdigit() else part for part in key.split(".")), key)
    return list(kinds.values())


def _rewrite(folder: Path, change: Callable[[State], State]) -> None:
    state = tensors_in(folder / MODEL)
    made = {k: t.contiguous().clone() for k, t in change(state).items()}
    save_file(made, folder / MODEL, {"format": "pt"})


def _with(change: Callable[[State], Mapping[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda state: {**state, **change(state)})


def _without(key: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda state: {k: t for k, t in state.items() if k != key})


def _renamed(key: str, name: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda state: {name if k == key else k: t for k, t in state.items()})


def _exchanged(key: str, other: str) -> Callable[[Path], None]:
    return _with(lambda s: {key: s[other].clone(), other: s[key].clone()})


# ---- files


def _file_mutations(folder: Path) -> Iterator[Mutation]:
    keys = list(tensors_in(folder / MODEL))
    half = dict.fromkeys(keys[: len(keys) // 2], MODEL)
    yield Mutation("file", "config.json removed", lambda f: (f / CONFIG).unlink())
    yield Mutation("file", "config.json is empty", lambda f: _text(f / CONFIG, ""))
    yield Mutation("file", "config.json is a list", lambda f: _text(f / CONFIG, "[]"))
    yield Mutation("file", "config.json is {}", lambda f: _text(f / CONFIG, "{}"))
    yield Mutation("file", "model.safetensors removed", lambda f: (f / MODEL).unlink())
    yield Mutation("file", "model.safetensors cut short", _cut)
    yield Mutation("file", "model.safetensors under another name", lambda f: _move(f, "weights.safetensors"))
    yield Mutation("file", "half of the tensors in another file", _split_off)
    yield Mutation("file", "right tensors beside a stale model.safetensors", _stale)
    yield Mutation("file", "transformers_weights names a file of zeros", _named_elsewhere)
    yield Mutation("file", "an index beside model.safetensors", lambda f: _index(f, dict.fromkeys(keys, MODEL)))
    yield Mutation("file", "an index of half of the tensors", lambda f: _index(f, half))
    yield Mutation("file", "right shards behind a model.safetensors of zeros", _shards_behind_zeros)
    yield Mutation("file", "shards, one of them wrong", _shards_one_wrong)
    yield Mutation("file", "shards, one of them missing", _shards_one_missing)
    yield Mutation("file", "shards in place of the file", lambda f: _shards(f, remove=True))
    yield Mutation("file", "a pytorch_model.bin of zeros beside", _bin_beside)
    for prefix in ("model.", "_orig_mod.", "module.module."):
        yield Mutation("file", f"all keys behind {prefix}", _behind(prefix))
    for name in PROCESSOR:
        if (folder / name).exists():
            yield Mutation("file", f"{name} removed", lambda f, n=name: (f / n).unlink())  # type: ignore[misc]
            yield Mutation("file", f"{name} is empty", lambda f, n=name: _text(f / n, "{}"))  # type: ignore[misc]
    if (folder / "fingerprint.json").exists():
        yield Mutation("file", "fingerprint.json with another value", _other_fingerprint)


def _named(name: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda state: {name(k): t for k, t in state.items()})


def _behind(prefix: str) -> Callable[[Path], None]:
    return _named(lambda key: prefix + key)


def _text(path: Path, text: str) -> None:
    path.write_text(text)


def _cut(folder: Path) -> None:
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(data[: len(data) - 100])


def _move(folder: Path, name: str) -> None:
    (folder / MODEL).rename(folder / name)


def _split_off(folder: Path) -> None:
    state = tensors_in(folder / MODEL)
    keys = list(state)
    save_file({k: state[k] for k in keys[::2]}, folder / MODEL, {"format": "pt"})
    save_file({k: state[k] for k in keys[1::2]}, folder / "model-extra.safetensors", {"format": "pt"})


def _stale(folder: Path) -> None:
    shutil.copy(folder / MODEL, folder / "right.safetensors")
    _rewrite(folder, lambda s: dict(list(s.items())[::2]))


def _zeros(path: Path, like: Path) -> None:
    save_file({k: torch.zeros_like(t) for k, t in tensors_in(like).items()}, path, {"format": "pt"})


def _named_elsewhere(folder: Path) -> None:
    _zeros(folder / "other.safetensors", folder / MODEL)
    _edit(CONFIG, ("transformers_weights",), "other.safetensors")(folder)


def _index(folder: Path, weight_map: Mapping[str, str]) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _shards(folder: Path, remove: bool) -> list[Path]:
    state = tensors_in(folder / MODEL)
    keys, files = list(state), [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, file in enumerate(files):
        save_file({k: state[k] for k in keys[n::2]}, folder / file, {"format": "pt"})
    _index(folder, {k: files[n % 2] for n, k in enumerate(keys)})
    if remove:
        (folder / MODEL).unlink()
    return [folder / file for file in files]


def _shards_behind_zeros(folder: Path) -> None:
    _shards(folder, remove=False)
    _zeros(folder / "zeros", folder / MODEL)
    (folder / "zeros").rename(folder / MODEL)


def _shards_one_wrong(folder: Path) -> None:
    _, second = _shards(folder, remove=True)
    _zeros(second.with_suffix(".new"), second)
    second.with_suffix(".new").rename(second)


def _shards_one_missing(folder: Path) -> None:
    _shards(folder, remove=True)[1].unlink()


def _bin_beside(folder: Path) -> None:
    torch.save({k: torch.zeros_like(t) for k, t in tensors_in(folder / MODEL).items()}, folder / "pytorch_model.bin")


def _other_fingerprint(folder: Path) -> None:
    path = folder / "fingerprint.json"
    content = json.loads(path.read_text())
    content["taps"][3]["values"][5] += 0.5
    path.write_text(json.dumps(content))


# ---- folders as other programs, editors and people leave them


def _odd_mutations(folder: Path, layout: str) -> Iterator[Mutation]:
    config = json.loads((folder / CONFIG).read_text())
    for name, text in _odd_configs(config):
        yield Mutation("config", f"config.json {name}", lambda f, t=text: _text(f / CONFIG, t))  # type: ignore[misc]
    for path, value in _ODD_FIELDS.items():
        if layout == "transformers" or len(path) == 1 or path[0] == "text_config":
            name = f"{CONFIG}: {_dotted(path)} set to {json.dumps(value)}"
            yield Mutation("config", name, _edit(CONFIG, path, value))
    for name, content in _BESIDE.items():
        yield Mutation("file", f"{name} beside", lambda f, n=name, c=content: _text(f / n, c))  # type: ignore[misc]
    for form in ("np", "tf", "flax", "mlx", "PT", "", None):
        yield Mutation("file", f"model.safetensors of the format {form!r}", _format(form))
    for name in ("Model.safetensors", "MODEL.SAFETENSORS", "model.safetensors ", "model.safetensors.bak"):
        yield Mutation("file", f"model.safetensors named {name!r}", lambda f, n=name: _move(f, n))  # type: ignore[misc]
    for name in ("weights/model.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.safetensors"):
        yield Mutation("file", f"model.safetensors moved to {name}", lambda f, n=name: _move_below(f, n))  # type: ignore[misc]
    yield Mutation("file", "model.safetensors is a link", lambda f: _linked(f, MODEL))
    yield Mutation("file", "model.safetensors is a link that leads nowhere", _linked_nowhere)
    yield Mutation("file", "model.safetensors is a link to zeros", _linked_to_zeros)
    yield Mutation("file", "model.safetensors is a folder", _is_a_folder)
    yield Mutation("file", "config.json is a link", lambda f: _linked(f, CONFIG))
    yield Mutation("file", "an index with absolute paths", _index_absolute)
    yield Mutation("file", "an index with ./ before the names", lambda f: _index_renamed(f, "./"))
    yield Mutation("file", "an index through a folder and back", lambda f: _index_renamed(f, "sub/../"))
    yield Mutation("file", "an index with a key twice", _index_key_twice)
    yield Mutation("file", "shards in a folder of their own", _shards_below)
    yield Mutation("file", "one shard is named for all keys", _index_one_shard)
    yield Mutation("file", "an index without shards beside a pytorch_model.bin", _index_and_bin)
    yield Mutation("file", "a pytorch_model.bin in place of the file", _bin_instead)
    yield Mutation("file", "a pytorch_model.bin of zeros in place of the file", _bin_of_zeros)
    yield Mutation("file", "a pytorch_model.bin with an entry state_dict", lambda f: _bin_instead(f, "state_dict"))
    yield Mutation("file", "text_projection.safetensors of zeros beside", _projection_beside)
    yield Mutation(
        "tensor", "all keys upper case", lambda f: _rewrite(f, lambda s: {k.upper(): t for k, t in s.items()})
    )
    yield Mutation("tensor", "all behind text_model.", _behind("text_model."))
    yield Mutation("tensor", "all behind detector_model.", _behind("detector_model."))
    yield Mutation("tensor", "text keys behind detector.", lambda f: _rewrite(f, _text_behind("detector.")))
    yield Mutation("tensor", "gamma and beta", lambda f: _rewrite(f, _gamma_beta))
    yield Mutation("tensor", "weights of zeros under gamma beside", lambda f: _rewrite(f, _gamma_beside))
    yield Mutation("tensor", "a key of the old name beside", lambda f: _rewrite(f, _detector_model_beside))
    both = [name for name in PROCESSOR if (folder / name).exists()]
    if len(both) == 2:
        for field, value in (("image_mean", [0.1, 0.2, 0.3]), ("size", {"height": 8, "width": 8}), ("resample", 0)):
            name = f"preprocessor_config.json: {field} another than in processor_config.json"
            yield Mutation("processor", name, _edit(PROCESSOR[0], (field,), value))


# Values that a person or another program might write.
_ODD_FIELDS: dict[JsonPath, object] = {
    ("_attn_implementation",): "flash_attention_2",
    ("attn_implementation",): "flex_attention",
    ("_class_name",): "Sam3Model",
    ("auto_map",): {"AutoModel": "modeling_mine.Mine"},
    ("dtype",): "float16",
    ("is_decoder",): True,
    ("pruned_heads",): {"0": [0]},
    ("output_hidden_states",): True,
    ("output_attentions",): True,
    ("use_return_dict",): False,
    ("detector_config",): {"text_config": {}},
    ("tie_word_embeddings",): True,
    ("model_type",): "sam3",
    ("architectures",): ["Sam3Model"],
    ("text_config", "dtype"): "float16",
    ("text_config", "torch_dtype"): "float16",
    ("text_config", "model_type"): "clip_text_model",
    ("text_config", "num_layers"): 1,
    ("text_config", "max_length"): 8,
    ("text_config", "is_causal"): True,
    ("text_config", "eos_token_id"): 2,
    ("text_config", "pad_token_id"): 5,
    ("text_config", "return_dict"): False,
    ("text_config", "_attn_implementation"): "flash_attention_2",
    ("text_config", "text_config"): {"hidden_act": "relu"},
    ("vision_config", "dtype"): "float16",
    ("vision_config", "model_type"): "sam2_vision_model",
    ("vision_config", "image_size"): 56,
    ("vision_config", "backbone_config", "dtype"): "bfloat16",
    ("vision_config", "backbone_config", "model_type"): "vit",
    ("vision_config", "backbone_config", "qkv_bias"): False,
    ("vision_config", "backbone_config", "use_rotary"): False,
    ("vision_config", "num_feature_levels"): 1,
    ("vision_config", "hidden_size"): 8,
    ("geometry_encoder_config", "model_type"): "sam3_detr_encoder",
    ("detr_encoder_config", "model_type"): "sam3_detr_decoder",
    ("detr_encoder_config", "num_hidden_layers"): 1,
    ("detr_decoder_config", "num_hidden_layers"): 1,
    ("mask_decoder_config", "dtype"): "float16",
    ("perception_encoder_config",): {"hidden_size": 8},
    ("image_size",): 56,
    ("hidden_act",): "relu",
    ("layer_norm_eps",): 1e-6,
    ("num_attention_heads",): 3,
}


def _odd_configs(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    text = json.dumps(config)
    yield "begins with a byte order mark", "\ufeff" + text
    yield "has a comment", "// mine\n" + text
    yield "ends with a comma", text[:-1] + ",}"
    yield "has a NaN", text.replace("1e-05", "NaN", 1)
    yield "has an Infinity", text.replace("1e-05", "Infinity", 1)
    yield "has text_config a second time, with relu", _twice(config, "text_config", hidden_act="relu")
    yield "has text_config a second time, empty", text[:-1] + ', "text_config": {}}'
    yield "has model_type a second time", text[:-1] + ', "model_type": "sam3"}'
    yield "is a list of itself", f"[{text}]"
    yield "lies under an entry", json.dumps({"model": config})
    yield "has its text_config at the top", json.dumps({**config, **config["text_config"], "text_config": {}})
    yield "is its text_config alone", json.dumps(config["text_config"])
    swaps = (("text_config", "vision_config"), ("detr_encoder_config", "detr_decoder_config"))
    for a, b in (*swaps, ("geometry_encoder_config", "detr_encoder_config")):
        if a in config and b in config:
            yield f"has {a} and {b} exchanged", json.dumps({**config, a: config[b], b: config[a]})
    yield "has its sections in upper case", json.dumps({k.upper(): v for k, v in config.items()})
    dashes = {k.replace("_", "-"): v for k, v in config.items()}
    yield "has dashes in its names", json.dumps(dashes)


def _twice(config: dict[str, Any], section: str, **fields: object) -> str:
    second = json.dumps({**config[section], **fields})
    return json.dumps(config)[:-1] + f', "{section}": {second}}}'


_BESIDE = {
    "generation_config.json": '{"max_length": 4}',
    "adapter_config.json": '{"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}',
    "adapter_model.safetensors": "",
    "quantize_config.json": '{"bits": 4}',
    "quantization_config.json": '{"quant_method": "bitsandbytes", "load_in_4bit": true}',
    "hf_quant_config.json": '{"quantization": {"quant_algo": "FP8"}}',
    "modeling_mine.py": "raise SystemExit",
    "configuration.json": '{"model_type": "sam3"}',
    "params.json": '{"dim": 8}',
    "model.safetensors.index.json": "{",
    "pytorch_model.bin.index.json": "[]",
    "tf_model.h5": "",
    "flax_model.msgpack": "",
    "model.onnx": "",
    "model.gguf": "",
    ".gitattributes": "*.safetensors filter=lfs",
    "training_args.bin": "no pickle",
    "optimizer.safetensors": "no safetensors",
    "conversion.json.bak": "{}",
}


def _format(form: str | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = tensors_in(folder / MODEL)
        save_file(state, folder / MODEL, None if form is None else {"format": form})

    return apply


def _move_below(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    _move(folder, name)


def _linked(folder: Path, name: str) -> None:
    _move(folder, "blob")
    (folder / MODEL).symlink_to("blob")
    if name != MODEL:
        (folder / name).rename(folder / "other")
        (folder / name).symlink_to("other")


def _linked_nowhere(folder: Path) -> None:
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to("gone")


def _linked_to_zeros(folder: Path) -> None:
    _zeros(folder / "blob", folder / MODEL)
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to("blob")


def _is_a_folder(folder: Path) -> None:
    _move(folder, "weights.safetensors")
    (folder / MODEL).mkdir()


def _index_absolute(folder: Path) -> None:
    files = _shards(folder, remove=True)
    state = [tensors_in(file) for file in files]
    _index(folder, {k: str(file.resolve()) for file, held in zip(files, state, strict=True) for k in held})


def _index_renamed(folder: Path, before: str) -> None:
    (folder / "sub").mkdir()
    files = _shards(folder, remove=True)
    _index(folder, {k: before + file.name for file in files for k in tensors_in(file)})


def _index_key_twice(folder: Path) -> None:
    files = _shards(folder, remove=True)
    path = folder / "model.safetensors.index.json"
    key = next(iter(tensors_in(files[0])))
    path.write_text(path.read_text()[:-2] + f', "{key}": "{files[1].name}"}}}}')


def _shards_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    files = _shards(folder, remove=True)
    _index(folder, {k: f"sub/{file.name}" for file in files for k in tensors_in(file)})
    for file in files:
        file.rename(folder / "sub" / file.name)


def _index_one_shard(folder: Path) -> None:
    files = _shards(folder, remove=True)
    _index(folder, {k: files[0].name for file in files for k in tensors_in(file)})


def _index_and_bin(folder: Path) -> None:
    _bin_instead(folder)
    _text(folder / "model.safetensors.index.json", '{"metadata": {}, "weight_map": {}}')


def _bin_instead(folder: Path, entry: str | None = None) -> None:
    state = tensors_in(folder / MODEL)
    torch.save({entry: state} if entry else state, folder / "pytorch_model.bin")
    (folder / MODEL).unlink()


def _bin_of_zeros(folder: Path) -> None:
    _bin_beside(folder)
    (folder / MODEL).unlink()


def _projection_beside(folder: Path) -> None:
    state = tensors_in(folder / MODEL)
    zeros = {k: torch.zeros_like(t) for k, t in state.items() if k.startswith("text_projection.")}
    save_file(zeros, folder / "text_projection.safetensors", {"format": "pt"})


def _text_behind(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + k if k.startswith("text_") else k: t for k, t in state.items()}


def _gamma_beta(state: State) -> State:
    """The names that norms have in TensorFlow; transformers renames them."""
    norms = {k.rpartition(".")[0] for k in state if "layer_norm" in k and k.startswith("text_")}
    new = {"weight": "gamma", "bias": "beta"}
    out = {}
    for key, tensor in state.items():
        module, _, name = key.rpartition(".")
        out[f"{module}.{new[name]}" if module in norms else key] = tensor
    return out


def _gamma_beside(state: State) -> State:
    norm = next(k for k in state if k.startswith("text_") and "layer_norm" in k and k.endswith(".weight"))
    return {**state, norm.removesuffix("weight") + "gamma": torch.zeros_like(state[norm])}


def _detector_model_beside(state: State) -> State:
    key = next(k for k in state if k.startswith("text_") and k.endswith(".weight"))
    return {**state, "detector_model." + key: torch.zeros_like(state[key])}


# ---- readers


def reading(folder: Path, layout: str) -> Reading | None:
    """What the folder's reader takes from it; None if it fails."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return _by_transformers(folder) if layout == "transformers" else _by_packed(folder)
    except Exception:
        return None  # whatever the library raises: nobody gets a wrong model from it


def _ids(vocab: int, length: int) -> torch.Tensor:
    rows = [[vocab - 2, 5, 9, vocab - 1, 0, 0], [vocab - 2, 7, vocab - 1, 0, 0, 0]]
    return torch.tensor([row + [0] * (length - 6) for row in rows])


def _by_packed(folder: Path) -> Reading:
    model = PackedTextModel.from_pretrained(folder)
    with torch.no_grad():
        out = model(_ids(512, 16))
    return Reading(
        {k: _hash(t) for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")},
        {"text projected": out.projected, "text pooled": out.pooled},
        "",
    )


def _by_transformers(folder: Path) -> Reading:
    import transformers

    torch.manual_seed(0)
    model, info = transformers.Sam3LiteTextModel.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] - {k for k in info["missing_keys"] if k.endswith("num_batches_tracked")}:
        raise ValueError("initialised at random")
    model.eval()
    size = 112
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    ids = _ids(512, 16)
    with torch.no_grad():
        text = model.text_encoder(input_ids=ids)
        out = model(pixel_values=picture, input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]))
    outputs = {
        "text features": model.text_projection(text.last_hidden_state),
        "text pooled": text.pooler_output,
        **{k: v for k, v in out.items() if isinstance(v, torch.Tensor)},
    }
    stated = model.config.geometry_encoder_config
    geometry = {k: v for k, v in stated.to_dict().items() if k in type(stated)().to_dict()}  # what the class knows
    # Read by no run here: boxes need torchvision. What is left out has no effect in evaluation.
    without = {"hidden_dropout", "dropout", "initializer_range", "layer_norm_eps", "model_type", "transformers_version"}
    read = {k: v for k, v in geometry.items() if k not in without and not k.startswith("_")}
    settings = json.dumps(read, sort_keys=True, default=str)
    state = {k: _hash(t) for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return Reading(state, outputs, settings)


def _hash(tensor: torch.Tensor) -> str:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + data).hexdigest()[:16]
