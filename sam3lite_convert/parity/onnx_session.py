"""Runs ONNX graphs in onnxruntime, with torch tensors in and out."""

from __future__ import annotations

import json
import math
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# What a provider is told. OpenVINO's own choice is float16 on a GPU.
_SETTINGS = {"OpenVINOExecutionProvider": {"precision": "FP32"}}


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
        self.optimised = optimised
        self._wanted = provider
        self._nodes: Counter[str] = Counter()

    @property
    def provider(self) -> str:
        """What computes: the provider, and which other ones ran how many of the nodes that it left."""
        every, others = self._nodes.total(), {name: n for name, n in self._nodes.items() if name != self._wanted}
        left = "".join(f"; {name} ran {n:,} of {every:,} nodes" for name, n in sorted(others.items()))
        return self._wanted + left

    def load(self, model: onnx.ModelProto, folder: Path) -> OnnxSession:
        """Load a graph whose weights lie in a folder. Raises CannotRun if onnxruntime does not take it."""
        return OnnxSession(model, folder, self.optimised, self._wanted, self._ran)

    def _ran(self, nodes: Counter[str]) -> None:
        """Count nodes by what ran them. Raises CannotRun if the first graph, which is a whole one, has none on the
        provider."""
        self._nodes += nodes
        if not self._nodes[self._wanted]:
            names = ", ".join(sorted(nodes)) or "nothing"
            raise CannotRun(f"--provider {self._wanted}: it runs no node of the graph; {names} runs all", "no_device")


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
    ran: told at the first run how many nodes which provider ran; not with the CPU's, which leaves none to others.

    Raises CannotRun if the provider is not there, or if onnxruntime does not take the graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        optimised: bool = True,
        provider: str = CPU,
        ran: Callable[[Counter[str]], None] | None = None,
    ) -> None:
        need_onnxruntime()
        import onnxruntime

        _check_provider(provider)
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        self._ran = ran if provider != CPU else None
        self._place = tempfile.TemporaryDirectory(prefix="sam3lite-profile-") if self._ran else None
        if self._place is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._place.name) / "nodes")
        # Told where the files lie, older versions optimise the graph without finding them; so they are given mapped.
        self._weights, files = _mapped(model, folder)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        chosen = [(provider, _SETTINGS.get(provider, {}))]
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=chosen)
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
        if self._ran is not None and self._place is not None:
            nodes = _nodes_of(Path(self._session.end_profiling()))
            self._place.cleanup()
            told, self._ran = self._ran, None
            told(nodes)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in zip(names, made, strict=True)}


def _nodes_of(profile: Path) -> Counter[str]:
    """How many nodes each provider ran, of a profile of one run; a part that a provider compiled is one."""
    events = json.loads(profile.read_text())
    return Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider") and "kernel_time" in event["name"]
    )


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
