"""What stands beside the weights: objects of any class are passed over, never called, and named; long logs are read."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import functools
import io
import logging
import random
import re
import sys
import types

import numpy as np
import pytest
import torch
from support.checkpoints import assert_index_is, either_format, quantised, refused, saved, tensors
from support.hostile import pickled, state, tensor, text

from sam3lite_convert.checkpoint.reader import read_checkpoint
from sam3lite_convert.errors import UnsoundPlan, Untrusted


def stand_in(monkeypatch, module: str, name: str, bases: tuple[type, ...] = (object,)) -> type:
    """A class of that name, as a library that is not installed here has it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    made = type(name, bases, {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, made)
    return made


class Mode(enum.Enum):
    A = 1


OBJECTS = {
    "enum": Mode.A,
    "partial": functools.partial(torch.optim.AdamW, lr=1e-4),
    "class": torch.optim.AdamW,
    "module": torch.nn.Linear(2, 2),
    "optimizer": None,  # made by the test, since making one loads torch's compiler
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.empty(3, device="meta"),
    "bound method": [].append,
}


@either_format
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_beside_the_weights_is_named_and_left(kind, legacy, tmp_path):
    meta = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1) if kind == "optimizer" else OBJECTS[kind]
    path = saved(tmp_path, {"model": tensors(), "meta": meta}, legacy)
    assert_index_is(path, tensors())
    assert any(
        "objects beside the weights, not built and never called: " in note for note in read_checkpoint(path).notes
    )


@dataclasses.dataclass
class Config:
    rate: float = 1e-4
    best: object = None


class Number(enum.IntEnum):
    A = 1


class Derived(dict):
    """Reduced with its items and attributes."""


class WithArguments:
    def __new__(cls, a, *, b=2):
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return ((1,), {"b": 3})


class Iterated:
    def __reduce__(self):
        return list, ((1, 2),), None, iter([3, torch.ones(2)])


def looped() -> Config:
    made = Config()
    made.best = made
    return made


MORE = {
    "enum with a base": Number.A,
    "flag": re.ASCII,
    "dataclass with a tensor": Config(best=torch.ones(2)),
    "loop": looped(),
    "dict of its own class": Derived(a=torch.ones(2)),
    "keyword arguments of new": WithArguments(1),
    "items by an iterator": Iterated(),
    "partial of a tensor": functools.partial(torch.add, torch.ones(2)),
    "function": torch.nn.functional.relu,
    "built-in function": len,
    "ellipsis": ...,
    "factory": collections.defaultdict(functools.partial(list)),
    "chain": collections.ChainMap({"a": 1}),
    "pattern": re.compile("a"),
    "bytes that change": bytearray(b"xyz"),
    "array": array.array("f", [1.0, 2.0]),
    "numpy objects": np.array([{"a": 1}], dtype=object),
    "numpy generator": np.random.default_rng(1),
    "numpy masked": np.ma.array([1, 2], mask=[0, 1]),
    "exception": ValueError("x"),
    "logger": logging.getLogger("a"),
    "random": random.Random(3),
    "type of a list": list[int],
    "untyped storage": torch.ones(3).untyped_storage(),
    "negated": torch._neg_view(torch.ones(2)),
    "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1), 3),
    "surrogate": "\ud800",
    "large number": -(10**700),
}


@either_format
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_are_passed_over_in_every_protocol(protocol, legacy, tmp_path):
    """torch.save takes another protocol than 2, also for the format before torch 1.6."""
    beside = MORE | OBJECTS | {"last": quantised()}
    path = saved(tmp_path, {"first": beside, "model": tensors(), "meta": beside}, legacy, pickle_protocol=protocol)
    assert_index_is(path, tensors())
    (note,) = [note for note in read_checkpoint(path).notes if "never called" in note]
    assert "Number" in note and "more" in note


@pytest.mark.parametrize("kind", ["negated", "conjugated"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_lazy_view_is_refused_in_the_place_of_a_tensor_alone(inside, kind, tmp_path):
    odd = [MORE[kind]] if inside else MORE[kind]
    fault = refused(saved(tmp_path, {"model": tensors() | {"odd": odd}}), UnsoundPlan)
    assert fault.code == "not_a_plain_tensor"
    assert "odd is a lazily negated or conjugated tensor" in fault.message and "resolve_conj()" in fault.message


@pytest.mark.parametrize(
    ("module", "name", "bases"),
    [
        ("omegaconf.dictconfig", "DictConfig", (object,)),
        ("easydict", "EasyDict", (dict,)),
        ("mmengine.logging.history_buffer", "HistoryBuffer", (object,)),
        ("train.config", "Paths", (list,)),
    ],
)
def test_an_object_of_a_library_that_is_not_installed_is_passed_over(module, name, bases, monkeypatch, tmp_path):
    it = stand_in(monkeypatch, module, name, bases)()
    it.__dict__["value"] = {"lr": 1e-4}
    if bases == (dict,):
        it["a"] = {"b": 1}
    elif bases == (list,):
        it.extend([1, {"b": 1}])
    path = saved(tmp_path, {"model": tensors(), "optimizer": {"param_groups": [{"betas": it}]}})
    for part in range(module.count(".") + 1):
        monkeypatch.delitem(sys.modules, module.rsplit(".", part)[0])
    assert_index_is(path, tensors())
    assert any(f"{module}.{name}" in note for note in read_checkpoint(path).notes)
    assert module not in sys.modules


@either_format
@pytest.mark.parametrize("where", ["value", "inside a value", "key", "all", "the dict of weights", "no weights"])
def test_an_object_in_the_place_of_a_tensor_is_refused(where, legacy, tmp_path):
    content = {
        "value": {"model": tensors() | {"w": Mode.A}},
        "inside a value": tensors() | {"w": {"a": [(1, Mode.A)]}},
        "key": {"model": tensors() | {(Mode.A, 1): 2}},
        "all": Mode.A,
        "the dict of weights": {"model": Mode.A, "epoch": 1},
        "no weights": {"a": Mode.A},
    }[where]
    fault = refused(saved(tmp_path, content, legacy), Untrusted)
    assert fault.code == "hostile_pickle" and "Mode" in fault.message


def test_what_state_of_layers_is_usual_inside_a_state_dict_is_left(tmp_path):
    usual = {"a._extra_state": io.BytesIO(b"x"), "b._extra_state": {"scale": 1.0}, "c": torch.device("cpu")}
    path = saved(tmp_path, tensors() | usual)
    assert read_checkpoint(path).others == usual.keys()


@pytest.mark.parametrize(
    "name",
    ["posix\nsystem", "nt\nsystem", "subprocess\nPopen", "importlib\nimport_module", "collections\nos.system",
     "builtins\neval", "__builtin__\nexecfile", "types\nCodeType", "torch.hub\nload", "torch\nload", "shutil\nrmtree"],
)  # fmt: skip
def test_what_does_harm_is_refused_anywhere_and_said_why(name, tmp_path):
    beside = b"c" + name.encode() + b"\n)R"
    path = pickled(tmp_path / "a.pt", state(text("model"), state(text("w"), tensor())[2:-1], text("meta"), beside))
    fault = refused(path, Untrusted)
    assert fault.code == "hostile_pickle" and f"{name.replace(chr(10), '.')}, which " in fault.message


@pytest.mark.stress
def test_much_python_beside_the_weights_is_read(tmp_path):
    beside = {
        "numbers": [n / 7 for n in range(1_000_000)],
        "log": [{"step": n, "loss": n / 3, "lr": 1e-4} for n in range(30_000)],
        "order": list(range(70_000, 200_000)),
        "done": tuple(range(5000)),
        "cache": {(n, n + 1): n for n in range(20_000)},
        "seen": set(range(20_000)),
    }
    assert_index_is(saved(tmp_path, {"model": tensors()} | beside), tensors())


N = 3_900_000
GREEDY = {
    "lists": b"]" * N,
    "dicts": b"}K\1Ns" * (N // 5),
    "tuples": b"N\x85" * (N // 2),
    "memo": b"N" + b"\x94" * N,
    "marks": b"(" * 5000,
    "names": b"".join(b"ca\nb%d\n" % n for n in range(20_000)),
    "instructions": b"N" * 4_000_001,
}


@pytest.mark.stress
@pytest.mark.parametrize("kind", GREEDY)
def test_what_would_take_too_much_is_refused(kind, tmp_path):
    fault = refused(pickled(tmp_path / "a.pt", b"\x80\x04](" + GREEDY[kind] + b"e."), Untrusted)
    assert fault.code == "hostile_pickle"
    words = {"marks": "nests", "names": "classes", "instructions": "instructions", "dicts": ""}.get(kind, "memory")
    assert words in fault.message
