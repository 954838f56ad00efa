"""A fingerprint is made with one module's weights in memory, and its numbers are those of the encoder loaded whole."""

from __future__ import annotations

import pytest
import torch
from support import families
from torch import nn

from original_ref import TextReference
from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.commands.fingerprint import fingerprint_of
from sam3lite_convert.convert import text_weights
from sam3lite_convert.parity.fingerprint import fingerprint_ids, make_fingerprint
from sam3lite_convert.parity.noise_floor import in_float64
from sam3lite_convert.parity.on_demand import read_on_demand
from sam3lite_convert.parity.original import reference_encoder
from sam3lite_convert.plan.plan import Options, Plan, make_plan
from sam3lite_convert.plan.tables import load_mappings
from sam3lite_convert.records.fingerprint import Fingerprint


@pytest.fixture(scope="module", params=["s0", "teacher"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = families.write(tmp_path_factory.mktemp("on demand") / f"{request.param}_ctx16.pt", request.param)
    tables = load_mappings()
    return make_plan(read_checkpoint(path), tables, Options(component="text", context=16))


def loaded_whole(plan: Plan, dtype: torch.dtype = torch.float32) -> TextReference:
    weights = text_weights.cast(text_weights.source_weights(plan), dtype)
    model = reference_encoder(plan.architecture, weights, torch.float32).model
    assert isinstance(model, TextReference)
    return model


def of_the_whole(plan: Plan, made: Fingerprint, dtype: torch.dtype = torch.float32) -> Fingerprint:
    ids = fingerprint_ids(plan.architecture.called, plan.architecture.sizes["vocab"])
    return make_fingerprint(loaded_whole(plan, dtype), plan.architecture, made.source, ids, ids, plan.not_read)


def largest_module(plan: Plan) -> int:
    """Bytes of the tensors that one module of a layer holds while it and the modules in it run, as stored."""

    def own(module: nn.Module) -> int:
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        return sum(tensor.nbytes for tensor in tensors)

    def running(module: nn.Module) -> int:
        return own(module) + max(map(running, module.children()), default=0)

    return max(running(layer) for layer in loaded_whole(plan).parts.layers)


def test_the_numbers_are_those_of_the_encoder_loaded_whole(plan: Plan) -> None:
    made = fingerprint_of(plan)
    assert made == of_the_whole(plan, made)
    rounded = fingerprint_of(plan, None, "bfloat16")
    assert rounded == of_the_whole(plan, rounded, torch.bfloat16)
    assert rounded != made


def test_one_module_of_the_layers_is_in_memory_at_a_time(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffer(bytearray):
        """The memory of a tensor; torch holds it as long as anything uses its values."""

        alive = most = read = 0

        def __init__(self, nbytes: int) -> None:
            super().__init__(nbytes)
            Buffer.alive += nbytes
            Buffer.read += nbytes
            Buffer.most = max(Buffer.most, Buffer.alive)

        def __del__(self) -> None:
            Buffer.alive -= len(self)

    largest = largest_module(plan)
    monkeypatch.setattr(text_weights, "bytearray", Buffer, raising=False)
    fingerprint_of(plan)
    sizes = {piece.canonical: piece.source.nbytes for piece in plan.mapped.values()}
    in_layers = sum(nbytes for key, nbytes in sizes.items() if ".transformer." in key)
    resident = Buffer.read - 2 * in_layers  # which run once in float32 and once in float64
    assert 0 < resident < Buffer.most <= resident + largest
    assert Buffer.most - resident < in_layers / 4
    assert Buffer.alive == 0


def test_in_float64_no_layer_is_wide_before_it_runs(plan: Plan) -> None:
    model = loaded_whole(plan)
    with in_float64(model):
        assert {t.dtype for t in model.parts.layers.parameters()} == {torch.float32}


def test_weights_without_values_are_read_at_each_call_and_dropped() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.register_buffer("shift", torch.zeros(3))
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x) * self.scale + self.shift
            return out

    whole = Scaled()
    state = {
        key: torch.arange(1.0, tensor.numel() + 1).reshape(tensor.shape) for key, tensor in whole.state_dict().items()
    }
    whole.load_state_dict(state)
    lean, asked = Scaled().to("meta").half(), list[str]()

    def read(key: str) -> torch.Tensor:
        asked.append(key)
        return state[key]

    read_on_demand(lean, read)
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(lean(torch.ones(2, 3).half()), whole(torch.ones(2, 3)).half())
        assert all(tensor.is_meta for tensor in lean.state_dict().values())
    assert asked == 2 * ["scale", "shift", "inner.weight", "inner.bias"]
