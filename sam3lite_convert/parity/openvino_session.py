"""Runs ONNX graphs in OpenVINO, with torch tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sam3lite_convert.errors import CannotRun, in_short
from sam3lite_convert.graph.read import place_of
from sam3lite_convert.opened import check_regular

if TYPE_CHECKING:
    import onnx
    import openvino

CPU = "CPU"


class OpenvinoRuntime:
    """OpenVINO, as it is installed. It rewrites every graph, which it has no switch for.

    provider: a device by its name there.

    Raises CannotRun if it or onnx is not installed, if it does not have the device, or if ``optimised`` is false.
    """

    def __init__(self, provider: str = CPU, optimised: bool = True) -> None:
        try:
            import onnx  # noqa: F401
            import openvino
        except ImportError:
            raise CannotRun(
                "the openvino candidate needs onnx and openvino: pip install 'sam3lite-convert[openvino]'", "no_onnx"
            ) from None
        if not optimised:
            raise CannotRun("--no-graph-optimisation: OpenVINO has no such switch; leave it out", "usage")
        self._core = openvino.Core()
        able = self._core.available_devices
        if provider not in able:
            raise CannotRun(f"--provider {provider}: OpenVINO has {', '.join(able) or 'no device'} here", "no_device")
        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self.provider = provider
        self.optimised: bool = optimised

    def load(self, model: onnx.ModelProto, folder: Path) -> OpenvinoSession:
        """Load a graph whose weights lie in a folder. Raises CannotRun if OpenVINO does not take it."""
        import onnx

        # It reads weights beside a file only, and a part of a graph is in none.
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        try:
            for tensor in whole.graph.initializer:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    check_regular(folder / place_of(tensor).file)
            onnx.load_external_data_for_model(whole, str(folder))
            read = self._core.read_model(whole.SerializeToString(), b"")
            # Its own choice is bfloat16 on some machines, and float16 on a GPU.
            settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32"}
            if self.provider == CPU:
                settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
            compiled = self._core.compile_model(read, self.provider, settings)
        except Exception as fault:  # RuntimeError of its own, and what protobuf raises above 2 GB
            raise CannotRun(f"OpenVINO does not load the graph: {_said(fault)}", "bad_graph") from fault
        return OpenvinoSession(compiled, [value.name for value in model.graph.output])


class OpenvinoSession:
    """One graph, loaded. compiled: by OpenVINO. outputs: of the graph, in its order."""

    def __init__(self, compiled: openvino.CompiledModel, outputs: Sequence[str]) -> None:
        self._compiled = compiled
        self.inputs = tuple(port.any_name for port in compiled.inputs)
        self.outputs = tuple(outputs)

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The outputs by name; of ``inputs`` those that the graph has are read. Raises CannotRun if it fails."""
        given = {name: inputs[name].detach().cpu().contiguous().numpy() for name in self.inputs}
        try:
            made = self._compiled(given)
        except Exception as fault:
            raise CannotRun(f"OpenVINO fails on the graph: {_said(fault)}", "bad_graph") from fault
        names = self.outputs if outputs is None else outputs
        return {name: torch.from_numpy(np.array(made[self._compiled.output(name)])) for name in names}


def _said(fault: Exception) -> str:
    """The last line: those before name places in its own source code."""
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return in_short(ValueError(lines[-1])) if lines else in_short(fault)
