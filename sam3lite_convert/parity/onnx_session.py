"""Runs ONNX graphs in onnxruntime, with torch tensors in and out."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sam3lite_convert.checkpoint.one_file import open_file
from sam3lite_convert.errors import CannotRun, in_short

if TYPE_CHECKING:
    import onnx

CPU = "CPUExecutionProvider"


def need_onnxruntime() -> None:
    """Raises CannotRun, saying what to install, if onnx or onnxruntime is not there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise CannotRun(
            "the onnx candidate needs onnx and onnxruntime: pip install 'sam3lite-convert[onnx]'", "no_onnx"
        ) from None


class OnnxRuntime:
    """onnxruntime, as it is installed.

    provider: by its name there. optimised: whether it may rewrite graphs.

    Raises CannotRun if it is not installed, or does not have the provider.
    """

    def __init__(self, provider: str = CPU, optimised: bool = True) -> None:
        need_onnxruntime()
        import onnxruntime

        _check_provider(provider)
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.provider, self.optimised = provider, optimised

    def load(self, model: onnx.ModelProto, folder: Path) -> OnnxSession:
        """Load a graph whose weights lie in a folder. Raises CannotRun if onnxruntime does not take it."""
        return OnnxSession(model, folder, self.optimised, self.provider)


def _check_provider(provider: str) -> None:
    """Raises CannotRun if onnxruntime does not have the provider here."""
    import onnxruntime

    able = onnxruntime.get_available_providers()
    if provider not in able:
        raise CannotRun(f"--provider {provider}: onnxruntime has {', '.join(able)} here", "no_device")


class OnnxSession:
    """One graph, loaded.

    model: the graph. folder: that its weights lie in. optimised: whether onnxruntime may rewrite the graph.
    provider: of onnxruntime, by its name.

    Raises CannotRun if the provider is not there, or if onnxruntime does not take the graph.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, optimised: bool = True, provider: str = CPU) -> None:
        need_onnxruntime()
        import onnxruntime

        _check_provider(provider)
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        # Told where the files lie, older versions optimise the graph without finding them; so they are given mapped.
        self._weights, files = _mapped(model, folder)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
        except Exception as fault:  # onnxruntime raises classes of its own that share no base
            said = str(fault).strip().splitlines() or [type(fault).__name__]
            raise CannotRun(f"onnxruntime does not load the graph: {said[0]}", "bad_graph") from fault
        _let_go(files)
        if provider not in self._session.get_providers():  # it falls back to the CPU where a provider does not start
            raise CannotRun(f"--provider {provider}: onnxruntime has it, but it does not start here", "no_device")
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.inputs = tuple(value.name for value in self._session.get_inputs())

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The outputs by name; of ``inputs`` those that the graph has are read. Raises CannotRun if it fails."""
        given = {name: _array(inputs[name]) for name in self.inputs}
        names = list(self.outputs if outputs is None else outputs)
        try:
            made = self._session.run(names, given)
        except Exception as fault:
            said = str(fault).strip().splitlines() or [type(fault).__name__]
            raise CannotRun(f"onnxruntime fails on the graph: {said[0]}", "bad_graph") from fault
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in zip(names, made, strict=True)}


def _mapped(model: onnx.ModelProto, folder: Path) -> tuple[dict[str, np.ndarray], list[mmap.mmap]]:
    """The weights that the graph reads from files, by name, and these files, mapped. Raises CannotRun if a file is not
    there."""
    import onnx

    found: dict[str, np.ndarray] = {}
    files: dict[str, mmap.mmap] = {}
    read = set(_read(model.graph)) | {value.name for value in model.graph.output}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name in read:
            place = {entry.key: entry.value for entry in tensor.external_data}
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            path, offset = folder / place["location"], int(place.get("offset", 0))
            try:
                if place["location"] not in files:
                    with open_file(path) as file:
                        files[place["location"]] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                flat = np.frombuffer(files[place["location"]], dtype, math.prod(tensor.dims), offset)
                found[tensor.name] = flat.reshape(tuple(tensor.dims))
            except (OSError, ValueError) as fault:
                raise CannotRun(
                    f"{path}: {tensor.name} cannot be read from it ({in_short(fault)})", "bad_graph"
                ) from fault
    return found, list(files.values())


def _let_go(files: Iterable[mmap.mmap]) -> None:
    """Give back the memory of mapped files: onnxruntime has copied most weights into its own order, and the others are
    read again when they are used."""
    for file in files:
        if hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that the nodes of a graph read, and those of the graphs inside it."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read(inner)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
