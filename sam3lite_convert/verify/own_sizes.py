"""Whether the JSON files of a converted folder still say what its tensors are, without the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from sam3lite_convert.checkpoint.index import Checkpoint
from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.convert.receipt import RECEIPT_NAME
from sam3lite_convert.errors import Sam3LiteError
from sam3lite_convert.plan.families import FAMILIES
from sam3lite_convert.plan.stated import stated_causal
from sam3lite_convert.plan.tables import Mappings
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.record import Json
from sam3lite_convert.verify.config_check import check_config
from sam3lite_convert.verify.recognise import recognise


def edited_sizes(folder: Folder, tensors: Checkpoint, receipt: Receipt, mappings: Mappings) -> Iterator[str]:
    """What conversion.json and config.json say otherwise than the shapes of the folder's tensors, and than each other,
    in words.

    tensors: those of the folder under the original's names, as ``Source.read`` gives them.
    """
    family = FAMILIES.get(receipt.family)
    if stated_causal(folder.config) and not (receipt.options.causal or (family and family.causal)):
        yield f"config.json: causal_masking is true, and {RECEIPT_NAME} says that it was not asked for"
        return
    try:
        plan = recognise(folder, tensors, mappings, receipt.options.causal)
    except Sam3LiteError as fault:
        yield fault.message.rstrip(".")
        return
    true: Json = {
        "layout": plan.layout.name,
        "component": plan.options.component,
        "dtype": plan.floating_dtype,
        "context.called": plan.context.called,
    }
    stated: Json = {
        "layout": receipt.layout,
        "component": receipt.component,
        "dtype": receipt.dtype,
        "context.called": receipt.context.called,
    }
    sizes = plan.architecture.record().to_json()
    # Of what the folder does not hold, such as the detector of a text encoder, the tensors tell nothing.
    held = {name for name, value in sizes.items() if value is not None and name != "assumed"}
    for name, value in receipt.architecture.to_json().items():
        if name in held:
            true[f"architecture.{name}"], stated[f"architecture.{name}"] = sizes[name], value
    for name, value in true.items():
        if stated[name] != value:
            yield f"{RECEIPT_NAME}: {name} is {stated[name]!r}; the folder's tensors and config.json say {value!r}"
    shapes = {key: (tensor.dtype, tensor.shape) for key, (_, tensor) in folder.tensors.items()}
    listed = {key: (tensor.dtype, tensor.shape) for key, tensor in receipt.tensors.items()}
    if others := [key for key in {**shapes, **listed} if shapes.get(key) != listed.get(key)]:
        yield f"{RECEIPT_NAME}: {len(others):,} of its tensors are not the folder's, such as {others[0]}"
    if folder.config is None:
        yield "config.json is missing"
        return
    for wrong in check_config(plan, folder.config).faults:
        yield f"config.json: {wrong.path} {wrong.why}"
