"""Reads the pickle of a torch checkpoint into inert records: nothing in the file is executed.

Python's unpickler can only call what ``find_class`` returns. Here that is a closed table of record types that hold
names and numbers; any other name in the file is refused, and the message says which. Tensor data is not read, and
torch is not imported.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

from sam3lite_convert.checkpoint import dtypes, pickle_limits
from sam3lite_convert.checkpoint.index import check_names
from sam3lite_convert.errors import Sam3LiteError, UnsoundPlan, Untrusted, in_short

# Named tuples: a pickle's BUILD cannot change one, so no file can leave a mark on the next.


class StorageRecord(NamedTuple):
    """A storage in a pickle.

    ``dtype``: None for an untyped (byte) storage.
    ``key``: its name in the file.
    ``start``: first element within the storage ``key``; not zero only for views in old files.
    """

    dtype: str | None
    key: str
    numel: int
    start: int = 0


class TensorRecord(NamedTuple):
    """A tensor in a pickle; ``offset`` and ``stride`` are in elements of the storage."""

    storage: StorageRecord
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Opaque:
    """Placeholder for a harmless object beside the tensors (a config, a path, a numpy scalar)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass


class StateDict(OrderedDict):  # type: ignore[type-arg]
    """An OrderedDict that ignores attributes (torch's ``_metadata``).

    Raises Untrusted if a key appears twice in the pairs.
    """

    def __init__(self, pairs: Sequence[tuple[object, object]] = ()) -> None:
        super().__init__(pairs)
        if len(self) != len(pairs):
            raise Untrusted(
                "the pickle gives a dict the same key twice, so one of the two values would be lost", "repeated_key"
            )

    def __setstate__(self, state: object) -> None:
        pass


class _Dtype(NamedTuple):
    name: str


class _StorageClass(NamedTuple):
    dtype: str | None


def _integers(values: object) -> tuple[int, ...]:
    # What cannot be iterated over raises TypeError, which ``load`` turns into a refusal.
    numbers = tuple(cast("Iterable[int]", values))
    if not all(type(v) is int and v >= 0 for v in numbers):
        raise Untrusted("a tensor of the file has sizes that are negative or not whole numbers")
    return numbers


def _tensor(storage: object, offset: object, size: object, stride: object, dtype: str | None) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise Untrusted("a tensor of the file has no valid storage")
    shape, steps = _integers(size), _integers(stride)
    (start,) = _integers([offset])
    name = dtype or storage.dtype
    if name is None or len(shape) != len(steps):
        raise Untrusted("a tensor of the file has no dtype, or strides that do not match its shape")
    return TensorRecord(storage, name, start, shape, steps)


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *ignored: object) -> TensorRecord:
    # The rest: requires_grad, hooks, and flags of a view whose bytes are not its values.
    marks = ignored[2] if len(ignored) > 2 else None
    if isinstance(marks, dict) and any(marks.values()):
        raise UnsoundPlan(
            "the file holds a lazily negated or conjugated tensor; save it again after .resolve_neg().resolve_conj()",
            "lazy_view",
        )
    return _tensor(storage, offset, size, stride, None)


def _rebuild_tensor_v3(storage: object, offset: object, size: object, stride: object, *rest: object) -> TensorRecord:
    named = [r.name for r in rest if isinstance(r, _Dtype)]
    return _tensor(storage, offset, size, stride, named[0] if named else None)


def _rebuild_parameter(data: object, *ignored: object) -> object:
    return data


def _rebuild_from_type(
    function: Callable[..., object], kind: object, arguments: Iterable[object], state: object
) -> object:
    # A tensor with Python attributes; the function came out of the closed table like any other.
    return function(*arguments)


def _as_tuple(*args: Iterable[object]) -> tuple[object, ...]:
    return tuple(args[0]) if args else ()


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): StateDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_from_type,
    ("torch", "Tensor"): Opaque,
    ("torch.nn.parameter", "Parameter"): Opaque,
    ("torch", "Size"): _as_tuple,
    ("torch", "device"): Opaque,
    ("torch.storage", "UntypedStorage"): _StorageClass(None),
    ("torch", "UntypedStorage"): _StorageClass(None),
    # What training scripts leave beside the weights.
    ("argparse", "Namespace"): Opaque,
    ("yacs.config", "CfgNode"): Opaque,
    ("pathlib", "PosixPath"): Opaque,
    ("pathlib", "WindowsPath"): Opaque,
    ("pathlib._local", "PosixPath"): Opaque,
    ("pathlib._local", "WindowsPath"): Opaque,
    ("collections", "Counter"): Opaque,
    ("collections", "defaultdict"): Opaque,
    ("collections", "deque"): Opaque,
    ("torch.torch_version", "TorchVersion"): Opaque,
    ("uuid", "UUID"): Opaque,
    ("decimal", "Decimal"): Opaque,
    ("fractions", "Fraction"): Opaque,
    ("numpy", "dtype"): Opaque,
    ("numpy", "ndarray"): Opaque,
    ("numpy.core.multiarray", "scalar"): Opaque,
    ("numpy._core.multiarray", "scalar"): Opaque,
    ("numpy.core.multiarray", "_reconstruct"): Opaque,
    ("numpy._core.multiarray", "_reconstruct"): Opaque,
    ("_codecs", "encode"): Opaque,
    ("__builtin__", "set"): Opaque,
    ("builtins", "set"): Opaque,
    ("copy_reg", "_reconstructor"): Opaque,
    ("copyreg", "_reconstructor"): Opaque,
    ("__builtin__", "object"): Opaque,
    ("builtins", "object"): Opaque,
}
for _name in ("datetime", "date", "time", "timedelta", "timezone"):
    _ALLOWED["datetime", _name] = Opaque
for _name in (
    "dict", "list", "tuple", "int", "float", "complex", "bytearray", "frozenset", "slice", "range", "long", "unicode",
    "str", "bytes", "bool",
):  # fmt: skip
    _ALLOWED["builtins", _name] = _ALLOWED["__builtin__", _name] = Opaque
for _name, _dtype in dtypes.STORAGE_CLASSES.items():
    _ALLOWED["torch", _name] = _ALLOWED["torch.cuda", _name] = _StorageClass(_dtype)
for _dtype in dtypes.NAMES:
    _ALLOWED["torch", _dtype] = _Dtype(_dtype)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            check_names([module, name])
            raise Untrusted(
                f"the pickle refers to {module}.{name}, which no checkpoint of tensors needs. Nothing was executed. If "
                "you trust the file, load it in the program that wrote it and save only its state dict.",
                "hostile_pickle",
                {"global": f"{module}.{name}"},
            ) from None

    def persistent_load(self, pid: object) -> StorageRecord:
        # ("storage", class, key, location, numel), and a view (key, offset, numel) in old files.
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Untrusted("the pickle has a reference to a storage that torch does not write")
        _, kind, key, _, numel = pid[:5]
        if not isinstance(kind, _StorageClass) or not isinstance(key, str):
            raise Untrusted("the pickle has a storage of an unknown type")
        (count,) = _integers([numel])
        view = pid[5] if len(pid) == 6 else None
        start = _integers([view[1]])[0] if isinstance(view, tuple) and len(view) == 3 else 0
        return StorageRecord(kind.dtype, key, count, start)


def load(data: io.BytesIO) -> object:
    """The next pickle of ``data`` as plain containers, TensorRecords and inert placeholders.

    Leaves ``data`` at the end of the pickle. Raises Untrusted if the pickle is malformed or refers to a name outside
    the closed table, UnsoundPlan for a tensor whose bytes are not its values.
    """
    try:
        pickle_limits.check(data)
        return _Reader(data, encoding="utf-8").load()
    except Sam3LiteError:
        raise
    except Exception as fault:  # a hostile or broken pickle can raise nearly anything
        # Only the pickle library's own words help; those of Python's errors are about the types of this tool.
        own = isinstance(fault, pickle.UnpicklingError | EOFError | ValueError)
        why = in_short(fault) if own else "its instructions do not fit together"
        raise Untrusted(f"the file's pickle is invalid: {why}", "corrupt_file") from fault
