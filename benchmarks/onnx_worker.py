"""One model of ``onnx.py``'s comparison in a process of its own: load it, run it, write what it took.

    python -m benchmarks.onnx_worker KIND FOLDER CHECKPOINT SIZE RUNS OUT.json

Run with ``-m``: as a script, ``import onnx`` would find the benchmark beside it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor

IDS = [49406, 320, 1125, 49407]
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Step = Callable[[], object]


def _ids(batch: int, length: int = 16) -> np.ndarray:
    ids = np.zeros((batch, length), np.int64)
    ids[:, : len(IDS)] = IDS
    return ids


def _picture(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, size, size), np.float32) * 2 - 1


def _tensors(*arrays: np.ndarray) -> list[Tensor]:
    import torch

    return [torch.from_numpy(array) for array in arrays]


def _sessions(folder: Path, *names: str) -> list[onnxruntime.InferenceSession]:
    """Graphs that take their memory from one place, as docs/onnx.md shows it."""
    import onnxruntime

    arena = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", arena, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = THREADS
    providers = ["CPUExecutionProvider"]
    return [onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=providers) for name in names]


def onnx_detector(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """The three graphs in onnxruntime: the image once, then text and decoding for each prompt."""
    vision, text, decode = _sessions(folder, "vision", "text", "decode")
    picture, ids = _picture(size), _ids(1)
    maps: dict[str, np.ndarray] = {}

    def image() -> None:
        names = [output.name for output in vision.get_outputs()]
        maps.update(zip(names, vision.run(None, {"image": picture}), strict=True))

    def prompt() -> None:
        said = dict(zip([o.name for o in text.get_outputs()], text.run(None, {"input_ids": ids}), strict=True))
        given = maps | said | {"boxes": np.zeros((1, 0, 4), np.float32)}
        given |= {"box_labels": np.zeros((1, 0), np.int64), "box_mask": np.zeros((1, 0), bool)}
        decode.run(None, {value.name: given[value.name] for value in decode.get_inputs()})

    return {"image": image, "prompt": prompt}


def packed_detector(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """This project's detector in torch."""
    from sam3lite_convert.packed_detector import PackedModel

    model = PackedModel.from_pretrained(folder, "sdpa", size)
    picture, ids = _tensors(_picture(size), _ids(1))
    seen: list[object] = []

    def image() -> None:
        seen[:] = [model.encode_image(picture)]

    return {"image": image, "prompt": lambda: model.decode(seen[0], ids)}  # type: ignore[arg-type]


def transformers_detector(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """transformers' detector, called as the original is."""
    import torch

    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.convert.text_weights import folder_tensors
    from sam3lite_convert.parity.detector.stock import stock_detector, text_argument
    from sam3lite_convert.plan.families import SAM3_LITETEXT

    found = read_folder(folder)
    weights = dict(folder_tensors(found, found.tensors))
    model = stock_detector(SAM3_LITETEXT, found.config or {}, weights, torch.float32, "sdpa", "sdpa", size)
    picture, ids = _tensors(_picture(size), _ids(1))
    seen: list[object] = []

    def image() -> None:
        seen[:] = [model.get_vision_features(pixel_values=picture)]

    def prompt() -> None:
        said = text_argument(model.get_text_features(input_ids=ids, return_dict=True))
        model(vision_embeds=seen[0], text_embeds=said, attention_mask=(ids != 0).long())

    return {"image": image, "prompt": prompt}


def reference_detector(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """The reference in torch, which computes image and prompt in one call."""
    import torch

    from sam3lite_convert.checkpoint.reader import read_checkpoint
    from sam3lite_convert.parity.detector.models import reference_detector as load
    from sam3lite_convert.plan.plan import Options, make_plan
    from sam3lite_convert.plan.tables import load_mappings

    plan = make_plan(read_checkpoint(checkpoint), load_mappings(None), Options("packed"))
    model = load(plan, 16, size, torch.device("cpu")).model
    picture, ids = _tensors(_picture(size), _ids(1))
    given = {"image": picture, "input_ids": ids, "boxes": torch.zeros(1, 0, 4)}
    given |= {"box_labels": torch.zeros(1, 0, dtype=torch.int64), "box_mask": torch.zeros(1, 0, dtype=torch.bool)}
    return {"image and prompt": lambda: model(**given)}


def onnx_text(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """The graph of the text encoder."""
    (session,) = _sessions(folder, "model")
    return {f"batch {n}": partial(session.run, None, {"input_ids": _ids(n)}) for n in (1, 32)}


def packed_text(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """This project's text encoder in torch."""
    from sam3lite_convert.packed_encoder import PackedTextModel

    model = PackedTextModel.from_pretrained(folder)
    return {f"batch {n}": partial(model, *_tensors(_ids(n))) for n in (1, 32)}


def transformers_text(folder: Path, checkpoint: Path, size: int) -> dict[str, Step]:
    """transformers' text encoder with the text projection."""
    import torch

    from sam3lite_convert.convert.folder import read_folder
    from sam3lite_convert.convert.text_weights import folder_weights
    from sam3lite_convert.parity.candidates import transformers_encoder
    from sam3lite_convert.plan.families import SAM3_LITETEXT
    from sam3lite_convert.plan.tables import load_mappings

    found = read_folder(folder)
    config = (found.config or {})["text_config"]
    weights = folder_weights(found, load_mappings(None).layout("transformers"))
    model = transformers_encoder(SAM3_LITETEXT, config, weights, torch.float32, "sdpa")  # type: ignore[arg-type]
    return {f"batch {n}": partial(model.run, *_tensors(_ids(n))) for n in (1, 32)}


KINDS = {
    "onnx detector": onnx_detector,
    "packed detector": packed_detector,
    "transformers detector": transformers_detector,
    "reference detector": reference_detector,
    "onnx text": onnx_text,
    "packed text": packed_text,
    "transformers text": transformers_text,
}


def _torch() -> Callable[[], AbstractContextManager[object]]:
    """torch's mode without gradients, with torch set to the threads; not for onnxruntime, which runs without torch."""
    import torch

    torch.set_num_threads(THREADS)
    return torch.inference_mode


def main() -> None:
    """Measure one kind; every step runs once before it is timed."""
    kind, folder, checkpoint, size, runs, out = sys.argv[1:]
    no_gradients = nullcontext if kind.startswith("onnx") else _torch()
    start = time.perf_counter()
    steps = KINDS[kind](Path(folder), Path(checkpoint), int(size))
    found: dict[str, float] = {"load": time.perf_counter() - start}
    with no_gradients():
        for step in steps.values():
            step()
        for name, step in steps.items():
            took = []
            for _ in range(int(runs)):
                start = time.perf_counter()
                step()
                took.append(time.perf_counter() - start)
            found[name] = statistics.median(took)
    unit = 1 if sys.platform == "darwin" else 1024
    found["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
