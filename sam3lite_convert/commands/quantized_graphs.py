"""Puts graphs with int8 weights into converted folders, with what they lose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sam3lite_convert.convert.graph_files import Method, quantized_name
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.files import write_whole
from sam3lite_convert.progress import bar
from sam3lite_convert.records.export import QuantizedFile
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.seen import NOTHING, Seen
from sam3lite_convert.working_places import clear_leftovers, working_place


@dataclass(frozen=True)
class Quantization:
    """That graphs are to be quantised.

    budget: relative L2 that a tap may have; None for the default, which is only reported.
    prompts: what the loss is measured on; empty for the built-in phrases.
    """

    method: Method
    budget: float | None = None
    prompts: tuple[str, ...] = ()


def check_quantizable(receipt: Receipt, asked: Quantization) -> None:
    """Raises CannotRun, before anything is written, if the graphs of a folder cannot be quantised, or not be measured
    on the prompts."""
    from sam3lite_convert.parity.onnx_session import need_onnxruntime

    if asked.budget is not None and not 0 <= asked.budget < math.inf:
        raise CannotRun("--budget must be a number of at least 0", "usage")
    if receipt.dtype != "float32":
        raise CannotRun(
            f"--quantize needs a float32 folder, and this one is {receipt.dtype}: convert with --dtype float32",
            "unsupported_dtype",
        )
    need_onnxruntime()
    if asked.prompts:
        from sam3lite_convert.parity.graph_loss import text_inputs

        text_inputs(receipt.context.called, receipt.architecture.vocab_size, asked.prompts)


def add_quantized(
    folder: Path, graphs: Mapping[str, bytes], asked: Quantization, earlier: Mapping[str, Seen]
) -> dict[str, QuantizedFile]:
    """Quantise the graphs of a folder, measure what that loses, and write them, each as a whole or not at all; returns
    by name what is said of them.

    graphs: the bytes of their files by name.
    earlier: what stood under the names of the new ones when the run began.

    Raises CannotRun if onnxruntime fails, or if the prompts cannot be measured on.
    """
    import onnx

    from sam3lite_convert.graph.folder_graphs import serialized
    from sam3lite_convert.graph.quantize import quantized, with_loss
    from sam3lite_convert.parity.graph_loss import BUDGET, graph_losses, loss_inputs

    plain = {of: onnx.ModelProto.FromString(data) for of, data in graphs.items()}
    inputs = loss_inputs(plain, asked.prompts)
    made = {}
    with bar("quantising", len(plain)) as advance:
        for of, model in plain.items():
            with _working_folder(folder / quantized_name(of, asked.method)) as work:
                made[of] = quantized(model, folder, asked.method, work)
            advance(stage=of)
    budget = BUDGET if asked.budget is None else asked.budget
    written = {}
    for of, loss in graph_losses(plain, made, folder, inputs, budget).items():
        loss = replace(loss, own_prompts=bool(asked.prompts))
        name, data = quantized_name(of, asked.method), serialized(with_loss(made[of], loss))
        write_whole(folder / name, data, earlier[name])
        digest = hashlib.sha256(data).hexdigest()
        written[name] = QuantizedFile(name=name, of=of, method=asked.method, size=len(data), sha256=digest, loss=loss)
    return written


@contextmanager
def _working_folder(target: Path) -> Iterator[Path]:
    """A folder beside a file for what its making needs; it is removed, also one that a killed run left.

    Raises CannotRun if it cannot be made.
    """
    work = None
    try:
        clear_leftovers(target)
        work = working_place(target, True, NOTHING)
        yield work.path
    except OSError as fault:
        raise CannotRun(f"{target}: {fault.strerror or fault}; nothing was written there", "cannot_write") from fault
    finally:
        if work is not None:
            work.remove()
            work.close()
