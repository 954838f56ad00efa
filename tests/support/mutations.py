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
from safetensors.torch import load_file, save_file

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


def _tensor_mutations(folder: Path) -> Iterator[Mutation]:
    state = load_file(folder / MODEL)
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
    state = load_file(folder / MODEL)
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
    keys = list(load_file(folder / MODEL))
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


def _behind(prefix: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder, lambda state: {prefix + k: t for k, t in state.items()})


def _text(path: Path, text: str) -> None:
    path.write_text(text)


def _cut(folder: Path) -> None:
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(data[: len(data) - 100])


def _move(folder: Path, name: str) -> None:
    (folder / MODEL).rename(folder / name)


def _split_off(folder: Path) -> None:
    state = load_file(folder / MODEL)
    keys = list(state)
    save_file({k: state[k] for k in keys[::2]}, folder / MODEL, {"format": "pt"})
    save_file({k: state[k] for k in keys[1::2]}, folder / "model-extra.safetensors", {"format": "pt"})


def _stale(folder: Path) -> None:
    shutil.copy(folder / MODEL, folder / "right.safetensors")
    _rewrite(folder, lambda s: dict(list(s.items())[::2]))


def _zeros(path: Path, like: Path) -> None:
    save_file({k: torch.zeros_like(t) for k, t in load_file(like).items()}, path, {"format": "pt"})


def _named_elsewhere(folder: Path) -> None:
    _zeros(folder / "other.safetensors", folder / MODEL)
    _edit(CONFIG, ("transformers_weights",), "other.safetensors")(folder)


def _index(folder: Path, weight_map: Mapping[str, str]) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _shards(folder: Path, remove: bool) -> list[Path]:
    state = load_file(folder / MODEL)
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
    torch.save({k: torch.zeros_like(t) for k, t in load_file(folder / MODEL).items()}, folder / "pytorch_model.bin")


def _other_fingerprint(folder: Path) -> None:
    path = folder / "fingerprint.json"
    content = json.loads(path.read_text())
    content["taps"][3]["values"][5] += 0.5
    path.write_text(json.dumps(content))


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
    geometry = model.config.geometry_encoder_config.to_dict()
    # Read by no run here: boxes need torchvision. What is left out has no effect in evaluation.
    without = {"hidden_dropout", "dropout", "initializer_range", "layer_norm_eps", "model_type", "transformers_version"}
    read = {k: v for k, v in geometry.items() if k not in without and not k.startswith("_")}
    settings = json.dumps(read, sort_keys=True, default=str)
    state = {k: _hash(t) for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return Reading(state, outputs, settings)


def _hash(tensor: torch.Tensor) -> str:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + data).hexdigest()[:16]
