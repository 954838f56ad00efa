"""The model card: README.md of a converted folder, made from its receipt alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sam3lite_convert.checkpoint.hashing import git_blob_id
from sam3lite_convert.checkpoint.selection import stated
from sam3lite_convert.convert.calling_recipe import detector_recipe
from sam3lite_convert.convert.clip_ids import END, PAD, START
from sam3lite_convert.convert.graph_files import DETECTOR_MODELS, QUANTIZED_MODELS, TEXT_MODEL, quantized_name
from sam3lite_convert.convert.processor_files import DEFAULT_TOKENIZER
from sam3lite_convert.figures import human_bytes
from sam3lite_convert.plan.architecture import SAM3_TEXT_PARAMETERS
from sam3lite_convert.plan.families import FAMILIES, Family
from sam3lite_convert.plan.loaders import LOADERS
from sam3lite_convert.quoting import (
    markdown_code,
    markdown_link,
    markdown_text,
    python_text,
    shell_line,
    shell_path,
    shell_word,
    yaml_text,
)
from sam3lite_convert.records.export import GraphLoss
from sam3lite_convert.records.receipt import ParitySummary, Receipt
from sam3lite_convert.records.record import JsonValue

CARD_NAME = "README.md"

# Measured against the original code; the layout notes, fact 5.
_AS_USED = """\
The weights are {whose}{cast}. Called through the stock `{processor}`, the model still differs from the
original, for reasons that no weight file can fix:

{text}- without a box prompt the geometry encoder is skipped, while the original always appends its class token (one
  box labelled -10 brings it back);
- the presence logit is clamped to +-10; the original's is not.

{cleaned}"""
_TEXT_AS_USED = """\
- the processor pads every prompt to a length of 32, whatever the tokenizer's `model_max_length`{stretched};
- CLIP's tokenizer pads with id 49407; the original pads with 0 and attends to padding{padded};
- the attention mask reaches the text encoder, which then masks padding; the original masks nothing;
"""
_CLEANED = """\
Prompts are cleaned differently too: the original unescapes HTML and repairs broken Unicode (ligatures, full-width
letters) before it tokenizes, and it truncates prompts that are longer than the context, which the processor does not.
`sam3lite parity --as-used` measures how much each difference on the text side changes the text features."""
_CAUSAL_CLEANED = """\
Padding and its mask change nothing: the text encoder masks causally, so no word reads what comes after it. Prompts are
cleaned differently: the original unescapes HTML and repairs broken Unicode (ligatures, full-width letters) before it
tokenizes, and it truncates prompts that are longer than the context, which the processor does not: the model fails on
more than {context} tokens. `sam3lite parity --as-used` measures how much each difference changes the text features."""
_CAUSAL_AS_USED = "- the processor pads every prompt to a length of 32, and the model fails on more than {context};\n"
# Measured against the original's modules at image size 1008 with random weights, but for the last two, which were read.
_VIDEO_AS_USED = """\
The tracker's modules compute what the original's do (within 5e-6, on the same weights); the steps around them are
the library's own, and no weight file changes them:

- a mask as prompt, which is how every new object enters the tracker: the original takes the token of the single mask
  and keeps the mask at 8/7 of the image's size, the library the best of three masks, at the image's size (the object's
  pointer differs by 1.2 %);
- the tracker used alone resizes the logits of a mask before the sigmoid on the way into memory, the original after it
  (0.4 %; 16 % for masks from points); memory is always stored in bfloat16 (0.17 %; the original's predictor does so
  too);
- the original skips the memory of frames on which the object was lost, the library takes the last six frames (1.7 %
  with all frames good, 10 % with two bad ones);
- with more than four conditioning frames the original drops the pointers of far ones, the library keeps them (4.5 %);
- without the package `kernels` the library skips mask NMS and the filling of holes, and says so once;
- masks of new objects are cut at a logit of 0 after resizing in the original, at 0.5 before it in the library;
- when an object is detected again, the original recomputes its pointer and mask, the library keeps the tracked one."""


def model_card(receipt: Receipt) -> str:
    """The text of README.md, for readers who did not make the folder.

    If the receipt has a ``model_id`` (the repository that the folder is pushed to), the examples use it.
    """
    family, loader = FAMILIES[receipt.family], LOADERS[receipt.loader]
    a, counts = receipt.architecture, receipt.counts
    by_kind = receipt.lost.dropped.by_kind if receipt.lost.dropped else {}
    filled = [f"| of these filled, not converted | {counts.filled} |"] if counts.filled else []
    own = "" if family.causal else f" (SAM3's own: {SAM3_TEXT_PARAMETERS / 1e6:.2f} M)"
    lines = [
        *_metadata(receipt, family),
        "",
        f"# {markdown_text(f'{_title(receipt, family)}, {a.variant}')}, layout {markdown_code(receipt.layout)}",
        "",
        *_provenance(receipt),
        "",
        "| | tensors |",
        "|---|---|",
        f"| in the checkpoint | {counts.source} |",
        f"| mapped | {counts.mapped} |",
        f"| dropped | {counts.dropped} |",
        f"| in this folder | {counts.target} |",
        *filled,
        "",
        *(f"- dropped {n}: {markdown_text(label)}" for label, n in by_kind.items()),
        *(f"- {markdown_text(note)}" for note in receipt.notes),
        "",
        f"Text encoder: {a.num_hidden_layers} layers, {a.hidden_size} wide, context {a.context_length}, "
        f"{receipt.text_parameters / 1e6:.2f} M parameters{own}. Tensors: {receipt.dtype}.",
        "",
        "## Loading",
        "",
        *_EXAMPLES[loader.name](receipt, family),
        "",
        *_parity(receipt.parity),
    ]
    if loader.processor and receipt.component != "text":
        lines += ["## As it is used", "", *_as_used(receipt, family), "", *_recipe(receipt, family)]
    lines += _graphs(receipt)
    lines += ["## Checking", "", "```", _check(receipt), "```", ""]
    return "\n".join(lines)


def _title(receipt: Receipt, family: Family) -> str:
    """What the folder holds, and what it was taken from where that is not a released detector of the family."""
    whole = f"{family.name} detector"
    source = receipt.kind.partition(", with ")[0]
    if receipt.component == "text":
        return f"{family.name} text encoder" + (f", from {source}" if source != receipt.kind else "")
    return f"{family.name} video model" if (receipt.component, receipt.kind) == ("video", whole) else receipt.kind


def _as_used(receipt: Receipt, family: Family) -> Iterator[str]:
    """How the library's model, called as its users call it, differs from the original."""
    context, video = receipt.architecture.context_length, receipt.component == "video"
    stretched = f", so this model's table of {context} positions is stretched" if context != 32 else ""
    padded = "; the tokenizer here pads with 0" if receipt.tokenizer else ""
    text = _TEXT_AS_USED.format(stretched=stretched, padded=padded)
    if family.causal:  # its position table is never stretched
        text = _CAUSAL_AS_USED.format(context=context) if context < 32 else ""
    yield _AS_USED.format(
        whose="those tensors of the original that are known here" if receipt.not_read else "the original's",
        cast=f", rounded to {receipt.dtype}" if receipt.lost.cast else "",
        processor=family.library.video_processor if video else family.library.processor,
        text=text,
        cleaned=_CAUSAL_CLEANED.format(context=context) if family.causal else _CLEANED,
    )
    if video:
        yield ""
        yield _VIDEO_AS_USED


def _metadata(receipt: Receipt, family: Family) -> Iterator[str]:
    source = receipt.source
    yield "---"
    yield f"library_name: {receipt.library or 'sam3lite-convert'}"
    for key, value in (source.licence or {}).items():
        if not isinstance(value, bool):  # YAML reads "license: no" as a boolean, which the Hub does not accept
            yield f"{key}: {_yaml(value if isinstance(value, list) else str(value))}"
    if source.repo:
        yield f"base_model: {_yaml(source.repo)}"
    yield "pipeline_tag: mask-generation" if receipt.component != "text" else "pipeline_tag: feature-extraction"
    video = ("video", "object-tracking") if receipt.component == "video" else ()
    yield from ("tags:", *(f"- {tag}" for tag in (*family.tags, *video, "safetensors")), "---")


def _yaml(value: JsonValue) -> str:
    """A value as YAML."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return yaml_text(value) if isinstance(value, str) else json.dumps(value)


def with_card(receipt: Receipt) -> tuple[Receipt, bytes]:
    """The receipt with its card's blob id added, and the bytes of the card."""
    data = model_card(receipt).encode("utf-8", "backslashreplace")
    return replace(receipt, card_blob_id=git_blob_id(data)), data


def _provenance(receipt: Receipt) -> Iterator[str]:
    tool, source = receipt.tool, receipt.source
    hashed = "SHA-256 " if source.sha256 else "SHA-256 as stated by the Hub "
    hashed += markdown_code(str(source.sha256 or source.etag))
    size = f"{source.size:,} bytes, {hashed}"
    if source.repo:
        file, repo, commit = (markdown_code(str(name)) for name in (source.file, source.repo, source.commit))
        yield f"Converted from {file} of {repo} at commit {commit} ({size}) by"
    else:
        yield f"Converted from {markdown_code(source.name)} ({size}) by"
    yield (
        f"{tool.name} {tool.version} (mapping tables `{tool.mappings_sha256[:16]}`). `conversion.json` "
        "accounts for every tensor."
    )
    licence = source.licence or {}
    yield ""
    if licence:
        named = licence.get("license_name") or licence.get("license")
        named = ", ".join(map(str, named)) if isinstance(named, list) else str(named)
        link = licence.get("license_link")
        where = f" ({markdown_link(str(link))})" if link else ""
        yield f"Licence, as stated by the source: {markdown_text(named)}{where}."
    elif source.repo and source.licence is None:
        yield "The source's card was not read because the Hub could not be reached; the source's licence applies."
    elif source.repo:
        yield "The source's card names no licence; ask its authors before you use or publish this model."
    else:
        yield (
            "The checkpoint was a local file; neither licence information nor a licence file came with it. The licence "
            "of its origin applies."
        )
    if source.repo:
        yield from _licence_files(receipt)


def _licence_files(receipt: Receipt) -> Iterator[str]:
    """Where the source's licence files are, and why one is not here."""
    if receipt.licences is None:
        yield "A licence file, if the source's repository has one, was not fetched."
    elif not receipt.licences:
        yield "The source's repository holds no licence file, neither beside the checkpoint nor at its top."
    for licence in receipt.licences or ():
        path = markdown_code(licence.path)
        if licence.name:
            yield f"Its licence file {path} is here as it is there: {markdown_code(licence.name)}."
        else:
            yield f"Its licence file {path} is not here: {markdown_text(str(licence.why))}."


def _of_the_library(receipt: Receipt, family: Family) -> Iterator[str]:
    """Example: loading the folder with transformers."""
    if receipt.component == "video":
        yield from _video(receipt, family)
        return
    model_id = receipt.model_id
    place = python_text(model_id or ".")
    text_only = receipt.component == "text"
    model = family.library.text_model if text_only else family.library.model
    tokenizer = bool(receipt.tokenizer)
    yield "```python"
    yield f"from transformers import {'AutoTokenizer, ' if tokenizer else ''}{model}"
    yield ""
    yield f"model = {model}.from_pretrained({place})"
    if tokenizer:
        yield f"tokenizer = AutoTokenizer.from_pretrained({place})"
        yield 'ids = tokenizer(["a dog"], padding="max_length", truncation=True, return_tensors="pt").input_ids'
    if text_only:
        yield ""
        yield "# The detector reads every token through this projection, not the pooled output:"
        if model_id:
            yield "from huggingface_hub import hf_hub_download"
        yield "from safetensors.torch import load_file"
        yield ""
        path = (
            f'hf_hub_download({place}, "text_projection.safetensors")' if model_id else '"text_projection.safetensors"'
        )
        yield f"projection = load_file({path})"
    yield "```"
    yield ""
    if not tokenizer:
        yield "This folder holds no tokenizer files; to add them, run `sam3lite convert` again with"
        yield "`--tokenizer DIR_OR_REPO`."
    elif not text_only:
        stock = family.library.processor
        yield f"`AutoProcessor.from_pretrained` gives the stock `{stock}`; see below for how it differs from"
        yield "the original. It needs torchvision."


def _video(receipt: Receipt, family: Family) -> Iterator[str]:
    """Example: the objects that a prompt names, followed through a video."""
    place, names, context = python_text(receipt.model_id or "."), family.library, receipt.architecture.context_length
    tokenizer = place if receipt.tokenizer else python_text(DEFAULT_TOKENIZER)
    yield "```python"
    yield "from glob import glob"
    yield ""
    yield "import numpy as np"
    yield "import torch"
    yield "from PIL import Image"
    yield f"from transformers import AutoTokenizer, {names.video_model}, {names.video_session}"
    yield ""
    yield f"model = {names.video_model}.from_pretrained({place})"
    yield f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})"
    yield f'how = {{"padding": "max_length", "truncation": True, "max_length": {context}, "return_tensors": "pt"}}'
    yield 'words = tokenizer("a dog", **how)'
    yield 'frames = [np.array(Image.open(name).convert("RGB")) for name in sorted(glob("frames/*.jpg"))]'
    yield "frames = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)"
    yield "size = [model.config.image_size] * 2"
    yield 'pixels = torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True)'
    yield f"session = {names.video_session}((pixels / 255 - 0.5) / 0.5, *frames.shape[2:], dtype=model.dtype)"
    yield 'prompt = session.add_prompt("a dog")'
    yield "session.prompt_input_ids[prompt] = words.input_ids"
    yield "session.prompt_attention_masks[prompt] = words.attention_mask"
    yield "with torch.inference_mode():"
    yield "    for frame in model.propagate_in_video_iterator(session):"
    yield "        for number, mask in frame.obj_id_to_mask.items():"
    yield "            print(frame.frame_idx, number, (mask > 0).float().mean().item())  # the part of the frame"
    yield "```"
    yield ""
    yield f"`{names.model}` and `{names.tracker_model}` load from this folder too: the detector, and the tracker alone."
    yield f"`AutoProcessor.from_pretrained` gives the stock `{names.video_processor}`, which prepares frames and"
    yield "prompts in place of the lines above; see below for how it differs from the original. It needs torchvision."
    if family.causal:
        yield f"With transformers 5.10.1, `{names.model}` of this folder gets a random text encoder (a known bug there,"
        yield "36 tensors are missing); other versions read it."
    if not receipt.tokenizer:
        yield "This folder holds no tokenizer files; to add them, run `sam3lite convert` again with"
        yield "`--tokenizer DIR_OR_REPO`."


def _folder(model_id: str | None) -> str:
    """The line of an example that sets ``folder``."""
    return f"folder = snapshot_download({python_text(model_id)})" if model_id else 'folder = "."'


def _packed_model(receipt: Receipt, family: Family) -> Iterator[str]:
    """Example: a picture and a prompt, and the masks that this project's own detector finds."""
    if receipt.component == "text":
        yield from _packed_encoder(receipt, family)
        return
    words = receipt.architecture.vocab_size > END  # a test checkpoint has fewer ids than CLIP's tokenizer
    yield "```python"
    if not words:
        yield "import torch"
    if receipt.model_id:
        yield "from huggingface_hub import snapshot_download"
    yield "from PIL import Image"
    yield "from sam3lite_convert import PackedModel"
    yield ""
    yield _folder(receipt.model_id)
    yield "model = PackedModel.from_pretrained(folder)"
    prompt = '"a dog"' if words else f"torch.zeros({receipt.architecture.context_length}, dtype=torch.int64)"
    yield f'found = model.segment(Image.open("picture.jpg"), {prompt})'
    yield "for score, box, mask in zip(found.scores, found.boxes, found.masks):"
    yield '    print(f"{score:.2f}", box.tolist(), mask.sum().item(), "pixels")'
    yield "```"
    yield ""
    yield "It needs `pip install 'sam3lite-convert[prompts,pictures]'`."


def _packed_encoder(receipt: Receipt, family: Family) -> Iterator[str]:
    """Example: running the text encoder of the folder with this project's own."""
    context, model_id = receipt.architecture.context_length, receipt.model_id
    yield "```python"
    yield "import torch"
    if model_id:
        yield "from huggingface_hub import snapshot_download"
    yield "from sam3lite_convert import PackedTextModel"
    yield ""
    yield _folder(model_id)
    yield "model = PackedTextModel.from_pretrained(folder)"
    if receipt.architecture.vocab_size > END:
        yield f"ids = torch.tensor([[{START}, 1929, {END}] + [{PAD}] * {context - 3}])  # dog"
    else:
        yield f"ids = torch.zeros(1, {context}, dtype=torch.int64)"
    yield "print(model(ids).projected.shape)  # what the detector reads"
    yield "```"
    if receipt.component != "text":
        yield ""
        yield "No model for the rest of the detector in this layout is known; its tensors are in `conversion.json`."


def _plain(receipt: Receipt, family: Family) -> Iterator[str]:
    """Example: reading the tensors of a layout for which this project has no model."""
    reader = markdown_text(receipt.reader or "no program that reads it is known")
    yield f"Layout {markdown_code(receipt.layout)}: {reader}. The tensors:"
    yield ""
    yield "```python"
    yield "from pathlib import Path"
    yield ""
    if receipt.model_id:
        yield "from huggingface_hub import snapshot_download"
    yield "from safetensors.torch import load_file"
    yield ""
    yield _folder(receipt.model_id)
    yield "tensors = {}"
    yield 'for file in sorted(Path(folder).glob("*.safetensors")):'
    yield "    tensors |= load_file(file)"
    yield f"assert len(tensors) == {receipt.counts.target}"
    yield "```"
    yield ""
    yield "`conversion.json` says where each tensor comes from; `config.json` holds the sizes of the model."


_EXAMPLES: dict[str, Callable[[Receipt, Family], Iterator[str]]] = {
    "transformers": _of_the_library,
    "packed_model": _packed_model,
    "packed_encoder": _packed_encoder,
    "none": _plain,
}


def loads_with(receipt: Receipt, folder: str) -> tuple[str, ...]:
    """Lines of Python, each of which loads the folder: as the model that it holds, then as parts of it. Of a layout for
    which there is no model, the line that reads its tensors."""
    names, text_only = FAMILIES[receipt.family].library, receipt.component == "text"
    video = (names.video_model, names.model, names.tracker_model)
    model = (names.text_model if text_only else names.model,)
    models = {
        "transformers": [f"transformers.{name}" for name in (video if receipt.component == "video" else model)],
        "packed_model": [f"sam3lite_convert.{'PackedTextModel' if text_only else 'PackedModel'}"],
        "packed_encoder": ["sam3lite_convert.PackedTextModel"],
    }
    if receipt.loader in models:
        return tuple(f"{model}.from_pretrained({python_text(folder)})" for model in models[receipt.loader])
    first, *more = (f"safetensors.torch.load_file({python_text(f'{folder}/{name}')})" for name in receipt.files)
    return (first + (f"  # and the other {len(more)}" if more else ""),)


def _recipe(receipt: Receipt, family: Family) -> Iterator[str]:
    """The code that reproduces the original's detections."""
    a = receipt.architecture
    # Of the video model the example above is the code; a test checkpoint has fewer ids than CLIP's tokenizer.
    if receipt.component == "video" or a.vocab_size <= END:
        return
    run = f" run in {receipt.dtype}" if receipt.lost.cast else ""
    part = ", as far as its tensors are known here" if receipt.not_read else ""
    yield f"This code finds what the original{run} finds{part}, up to rounding."
    yield "It needs `ftfy`, `pillow` and `torchvision`:"
    yield ""
    yield "```python"
    yield detector_recipe(family, a.context_length, receipt.model_id or ".", bool(receipt.tokenizer)) + "```"
    yield ""


def _parity(parity: ParitySummary | None) -> Iterator[str]:
    if parity is None:
        return
    yield "## Parity with the original text encoder"
    yield ""
    yield (
        f"{markdown_code(parity.verdict)}: {markdown_text(parity.reference)} and "
        f"{markdown_text(parity.candidate_encoder)}, {parity.dtype}, {markdown_text(parity.inputs)}; compared in "
        "float64."
    )
    if parity.verdict == "incomplete":
        yield ""
        yield "Not `exact`: the tensors above that no module of the reference reads take part on neither side."
    yield ""
    yield "| tap | max abs diff | isolated | relative L2 |"
    yield "|---|---|---|---|"
    for tap in parity.layers:
        shown = map(_shown, (tap.max_abs_diff, tap.isolated_max_abs_diff, tap.relative_l2))
        yield f"| {markdown_code(tap.name, cell=True)} | {' | '.join(shown)} |"
    yield ""


def _graphs(receipt: Receipt) -> Iterator[str]:
    """The ONNX graphs of the folder: how they are called, and what is claimed of them, with what shows it."""
    names = [name for name in (TEXT_MODEL, *DETECTOR_MODELS) if name in receipt.beside]
    quantized = [name for name in QUANTIZED_MODELS if name in receipt.beside]
    if not names and not quantized:
        return
    yield "## ONNX"
    yield ""
    if names:
        one, text = len(names) == 1, TEXT_MODEL if TEXT_MODEL in names else "text.onnx"
        yield (
            f"{_listed(names)}: {'a graph' if one else 'graphs'} without weights. {'It reads' if one else 'They read'} "
            f"the tensor files beside {'it' if one else 'them'}: keep them in one folder."
        )
        if "vision.onnx" in names:
            yield (
                "`vision.onnx` makes maps of an image, `text.onnx` features of a prompt, and `decode.onnx` finds "
                "boxes, scores and masks in both. docs/onnx.md of sam3lite-convert has the code for them."
            )
        if text in names:
            yield ""
            yield from _graph_example(receipt, text)
        yield ""
    if quantized:
        one = len(quantized) == 1
        yield (
            f"{_listed(quantized)}: {'a smaller graph, which holds' if one else 'smaller graphs, which hold'} int8 "
            f"weights of {'its' if one else 'their'} own. {'It is' if one else 'They are'} called in the same way, and "
            f"{'computes' if one else 'compute'} something else than the original, by what is measured below."
        )
        yield ""
    yield "| claim | shown by |"
    yield "|---|---|"
    yield from _claims(receipt, names)
    yield from _losses(receipt, quantized)
    yield ""
    if any(loss.random_weights for name, loss in (receipt.graph_losses or {}).items() if name in quantized):
        yield "The weights look random: what is measured of int8 graphs tells nothing about trained ones."
        yield ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _graph_example(receipt: Receipt, name: str) -> Iterator[str]:
    """Example: the graph of the text encoder in onnxruntime."""
    context = receipt.context.called
    yield "```python"
    if receipt.model_id:
        yield "from huggingface_hub import snapshot_download"
    yield "import numpy as np"
    yield "import onnxruntime"
    yield ""
    yield _folder(receipt.model_id)
    yield f'session = onnxruntime.InferenceSession(f"{{folder}}/{name}")'
    if receipt.architecture.vocab_size > END:
        yield f"ids = np.array([[{START}, 1929, {END}] + [{PAD}] * {context - 3}])  # dog, padded with {PAD}; no mask"
    else:
        yield f"ids = np.zeros((1, {context}), np.int64)"
    yield 'features = session.run(["text_features"], {"input_ids": ids})[0]'
    yield "print(features.shape)  # what the detector reads"
    yield "```"


def _claims(receipt: Receipt, names: Sequence[str]) -> Iterator[str]:
    """Rows of a table: what is claimed of the graphs, and the command that shows it."""
    checked = markdown_code(_check(receipt), cell=True)
    how = f"but for the cast to {receipt.dtype}" if receipt.lost.cast else "bit for bit"
    for name, digest in (receipt.proven or {}).items():
        file = f"{markdown_code(name, cell=True)} (SHA-256 {markdown_code(digest, cell=True)})"
        yield f"| {file} turns back into the source, {how} | {checked} |"
    for name in names:
        yield f"| `{name}` is the graph that sam3lite-convert writes over these tensors | {checked} |"
    if parity := receipt.graph_parity:
        command = f"sam3lite parity {named_checkpoint(receipt)} --converted {_place(receipt)} --candidate onnx"
        yield (
            f"| `{TEXT_MODEL}` beside the original text encoder: {markdown_code(parity.verdict, cell=True)}, "
            f"max abs diff {_shown(parity.max_abs_diff)} ({markdown_text(parity.candidate_encoder)}, {parity.dtype}, "
            f"{markdown_text(parity.inputs)}) | {markdown_code(command, cell=True)} |"
        )


def _losses(receipt: Receipt, names: Sequence[str]) -> Iterator[str]:
    """Rows of the same table: what quantised graphs are made of, and what they lose."""
    losses, checked = receipt.graph_losses or {}, markdown_code(_check(receipt), cell=True)
    for name in names:
        of, method = QUANTIZED_MODELS[name]
        # Its graphs are written together, for one size of pictures, which the last one's loss states.
        last = losses.get(quantized_name(DETECTOR_MODELS[-1], method))
        found = last.detection if of != TEXT_MODEL and last is not None else None
        sized = f" for {found.size} pixels" if found is not None and of != "text.onnx" else ""
        loss = losses.get(name)
        runtime = markdown_text(loss.runtime if loss is not None else "onnxruntime")
        yield f"| `{name}` is what the quantizer of {runtime} makes of `{of}`{sized} ({method}) | {checked} |"
        if loss is None:
            continue
        command = f"sam3lite export onnx {_place(receipt)}"
        command += "" if of == TEXT_MODEL else " --component detector"
        command += f" --size {found.size}" if found is not None else ""
        command += f" --quantize {method}" + (" --prompts-file FILE" if loss.own_prompts else "")
        for claim in _loss(name, of, loss):
            yield f"| {claim} | {markdown_code(command, cell=True)} |"


def _loss(name: str, of: str, loss: GraphLoss) -> Iterator[str]:
    """What one quantised graph loses, claim by claim."""
    before, after = human_bytes(loss.unquantised_bytes), human_bytes(loss.bytes)
    yield f"`{name}` takes {after}; `{of}` takes {before} with its weights"
    inputs = markdown_text(loss.inputs)
    worst = max(loss.taps, key=lambda tap: tap.relative_l2)
    over = (
        f"no tap is over {loss.budget:g}"
        if loss.first_over_budget is None
        else f"the first over {loss.budget:g} is {markdown_code(loss.first_over_budget, cell=True)}"
    )
    yield (
        f"`{name}` beside `{of}` on {inputs}: relative L2 {_shown(worst.relative_l2)} at the worst tap "
        f"({markdown_code(worst.name, cell=True)}); {over}"
    )
    if loss.agreement:
        what = {"tokens": "by the mean of the text features", "end": "by the pooled output"}
        shares = ", ".join(f"{each.share:.1%} {what[each.features]}" for each in loss.agreement)
        yield f"`{name}` keeps the nearest other prompt of {inputs}: {shares}"
    if (found := loss.detection) is not None:
        seen = f'{markdown_text(found.picture)} and "{markdown_text(found.prompt[:60])}"'
        yield (
            f"all of these graphs together, on the {seen}, the "
            f"{found.queries} best queries: IoU of masks {found.mask_iou_mean:.3f} on average, "
            f"{found.mask_iou_least:.3f} at least; scores change by {_shown(found.score_max_abs_diff)} at most; "
            f"{found.crossed} of all cross 0.5"
        )


def _shown(error: float) -> str:
    # The receipt's JSON does not keep NaN apart from infinity; the card must be the same once it is read back.
    return f"{error:.3g}" if math.isfinite(error) else "inf"


def _check(receipt: Receipt) -> str:
    """The command that verifies the folder."""
    return f"sam3lite verify {_place(receipt)} {named_checkpoint(receipt)}"


def _place(receipt: Receipt) -> str:
    """The folder, in a command that stands in its card."""
    return "DIR" if receipt.model_id else "."


def named_checkpoint(receipt: Receipt) -> str:
    """The checkpoint of a folder in a command to be typed, with the options that it needs."""
    source = receipt.source
    if source.repo:
        words = shell_line(map(str, ("--repo-id", source.repo, "--revision", source.commit)))
        named = f"{shell_path(str(source.file))} {words}"
    else:
        named = shell_word(f"PATH/TO/{source.name}")
    named += stated(receipt.to_json()).options
    return named + (" --mapping PATH/TO/MAPPINGS" if receipt.own_tables else "")
