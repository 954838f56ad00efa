"""Reads the pickle of a torch checkpoint into inert records: nothing in the file is executed.

The opcodes run over plain values (``pickle_machine``). Only what makes a tensor is made, by the table below; every
other class becomes an ``Opaque``: a record of its name, never called and never imported. Tensor data is not read, and
torch is not imported.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

from sam3lite_convert.checkpoint import dtypes
from sam3lite_convert.checkpoint.index import check_names
from sam3lite_convert.checkpoint.pickle_machine import Machine, Maker, Opaque, OtherKey, StateDict, repeated
from sam3lite_convert.errors import Sam3LiteError, Untrusted, in_short

# Named tuples: nothing can change one, so no file can leave a mark on the next.


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


def _state_dict(pairs: Iterable[Sequence[object]] = ()) -> StateDict:
    """An OrderedDict. Raises Untrusted if a key appears twice in the pairs."""
    made = StateDict()
    for key, value in pairs:
        hashed = key if isinstance(key, str | int) else OtherKey(key, None)
        if hashed in made:
            raise repeated(key)
        made[hashed] = value
    return made


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


def _rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *ignored: object
) -> TensorRecord | Opaque:
    # The rest: requires_grad, hooks, and flags of a view whose bytes are not its values.
    marks = ignored[2] if len(ignored) > 2 else None
    if isinstance(marks, dict) and any(marks.values()):
        return _LAZY
    return _tensor(storage, offset, size, stride, None)


def _rebuild_tensor_v3(storage: object, offset: object, size: object, stride: object, *rest: object) -> TensorRecord:
    named = [r.name for r in rest if isinstance(r, _Dtype)]
    return _tensor(storage, offset, size, stride, named[0] if named else None)


def _rebuild_parameter(data: object, *ignored: object) -> object:
    return data


def _rebuild_from_type(function: object, kind: object, arguments: Iterable[object], state: object) -> object:
    # A tensor with Python attributes. Of an unknown class nobody knows whether its values are its bytes.
    if isinstance(kind, Opaque) and not kind.harmless:
        return kind
    if isinstance(function, Opaque):
        return function
    if not isinstance(function, Maker):
        raise Untrusted("a tensor of the file is made by what is no function", "corrupt_file")
    return function.make(*arguments)


def _as_tuple(*args: Iterable[object]) -> tuple[object, ...]:
    return tuple(args[0]) if args else ()


_LAZY = Opaque("torch._lazy_view", False)  # a view that is lazily negated or conjugated
_HARMLESS = Opaque("", True)  # stands in the table for an Opaque of that name

_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Maker(_state_dict),
    ("torch._utils", "_rebuild_tensor"): Maker(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Maker(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_rebuild_from_type),
    ("torch._tensor", "_rebuild_from_type"): Maker(_rebuild_from_type),
    ("torch", "Size"): Maker(_as_tuple),
    ("torch.storage", "UntypedStorage"): _StorageClass(None),
    ("torch", "UntypedStorage"): _StorageClass(None),
}
# What training scripts leave beside the weights: also inside a state dict it is no reason to refuse.
_USUAL = {
    "torch": "Tensor device",
    "torch.nn.parameter": "Parameter Buffer",
    "torch.torch_version": "TorchVersion",
    "argparse": "Namespace",
    "yacs.config": "CfgNode",
    "pathlib": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "collections": "Counter defaultdict deque",
    "uuid": "UUID SafeUUID",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "types": "SimpleNamespace",
    "datetime": "datetime date time timedelta timezone",
    "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "_codecs": "encode",
    "_io": "BytesIO",
    "copyreg": "_reconstructor __newobj__",
    "copy_reg": "_reconstructor __newobj__",
    "builtins": "object dict list tuple set frozenset slice range int long float complex bool str unicode bytes "
    "bytearray",
}
_USUAL["__builtin__"] = _USUAL["builtins"]
for _module, _names in _USUAL.items():
    for _name in _names.split():
        _ALLOWED[_module, _name] = _HARMLESS
for _name, _dtype in dtypes.STORAGE_CLASSES.items():
    _ALLOWED["torch", _name] = _ALLOWED["torch.cuda", _name] = _StorageClass(_dtype)
for _dtype in dtypes.NAMES:
    _ALLOWED["torch", _dtype] = _Dtype(_dtype)

# What no checkpoint needs and what an attack is made of, wherever it stands: module -> why. Nothing is ever called;
# this warns whoever would load the file with torch.
_COMMANDS = "runs commands of the system"
_CODE = "runs code that the file brings"
_FILES = "opens or changes files"
_CONNECTIONS = "opens connections"
_PROGRAMS = "starts programs"
_DANGEROUS_MODULES = {
    "os": _COMMANDS, "posix": _COMMANDS, "nt": _COMMANDS, "subprocess": _COMMANDS, "pty": _COMMANDS,
    "commands": _COMMANDS, "popen2": _COMMANDS, "_posixsubprocess": _COMMANDS, "platform.popen": _COMMANDS,
    "sys": _CODE, "runpy": _CODE, "importlib": _CODE, "imp": _CODE, "ctypes": _CODE, "_ctypes": _CODE, "cffi": _CODE,
    "code": _CODE, "codeop": _CODE, "pdb": _CODE, "bdb": _CODE, "timeit": _CODE, "cProfile": _CODE, "profile": _CODE,
    "trace": _CODE, "doctest": _CODE, "pickle": _CODE, "_pickle": _CODE, "marshal": _CODE, "shelve": _CODE,
    "pip": _CODE, "ensurepip": _CODE, "venv": _CODE, "pydoc": _CODE, "lib2to3": _CODE, "idlelib": _CODE,
    "shutil": _FILES, "tempfile": _FILES, "io": _FILES, "_io": _FILES, "linecache": _FILES, "fileinput": _FILES,
    "_imp": _CODE, "_frozen_importlib": _CODE, "_frozen_importlib_external": _CODE, "_winapi": _COMMANDS,
    "socket": _CONNECTIONS, "_socket": _CONNECTIONS, "urllib": _CONNECTIONS, "http": _CONNECTIONS,
    "requests": _CONNECTIONS, "ftplib": _CONNECTIONS, "smtplib": _CONNECTIONS,
    "webbrowser": _PROGRAMS, "antigravity": _PROGRAMS, "asyncio": _COMMANDS,
    "torch.hub": _CODE,
}  # fmt: skip
_DANGEROUS_NAMES = {
    "builtins": "eval exec execfile compile __import__ open input breakpoint exit quit apply globals locals setattr",
    "types": "CodeType FunctionType LambdaType",
    "torch": "load compile",
    "torch.serialization": "load",
    "torch.jit": "load",
    "torch._C": "import_ir_module",
    "numpy": "load loadtxt fromfile",
    "torch.utils.cpp_extension": "load load_inline",
    "operator": "attrgetter methodcaller",
    "_operator": "attrgetter methodcaller",
    "pathlib": "Path.touch Path.unlink Path.write_text Path.write_bytes Path.rmdir",
}
_HARMLESS_IN = {
    "os": "stat_result terminal_size",
    "posix": "stat_result",
    "io": "BytesIO StringIO",
    "_io": "BytesIO StringIO",
    "sys": "version_info",
}


def danger(module: str, name: str) -> str | None:
    """Why a name is known to do harm when it is called, in words; None if it isn't."""
    module = {"__builtin__": "builtins"}.get(module, module)
    if name in _DANGEROUS_NAMES.get(module, "").split():
        return _FILES if name == "open" or module == "pathlib" else _CODE
    if name in _HARMLESS_IN.get(module, "").split():
        return None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if found := _DANGEROUS_MODULES.get(".".join(parts[:end])):
            return found
    # A module reached as an attribute of another one: collections.os, or torch with the name os.system.
    first = name.split(".")[0]
    return _DANGEROUS_MODULES.get(first) if first in ("os", "posix", "nt", "subprocess", "sys", "shutil") else None


class Reader:
    """Reads the pickles of one file, one after the other.

    ``storages``: dtype of each storage that they name, by its key; None for an untyped one.
    ``unknown``: the names of classes and functions in them that are not among the usual ones. None was called.
    """

    def __init__(self, data: io.BytesIO) -> None:
        self.storages: dict[str, str | None] = {}
        self._elements: dict[str, str] = {}
        self._views: dict[str, tuple[str | int, ...]] = {}
        self._opaque: dict[str, Opaque] = {}
        self._machine = Machine(data, self._find, self._storage)

    @property
    def unknown(self) -> list[str]:
        return [name for name, each in self._opaque.items() if not each.harmless]

    def load(self) -> object:
        """The next pickle as plain containers, TensorRecords and Opaques. Leaves the stream at its end.

        Raises Untrusted if the pickle is malformed, too large, or names what is known to do harm.
        """
        try:
            return self._machine.load()
        except Sam3LiteError:
            raise
        except Exception as fault:  # a hostile or broken pickle can raise nearly anything
            # Only words about the pickle help; those of Python's errors are about the types of this tool.
            own = isinstance(fault, EOFError | ValueError)
            why = in_short(fault) if own else "its instructions do not fit together"
            raise Untrusted(f"the file's pickle is invalid: {why}", "corrupt_file") from fault

    def _find(self, module: str, name: str) -> object:
        found = _ALLOWED.get((module, name))
        if found is not None and found is not _HARMLESS:
            return found
        full = f"{module}.{name}"
        if full not in self._opaque:
            check_names([module, name])
            why = None if found else danger(module, name)
            if why:
                raise hostile(full, f"which {why}")
            if len(self._opaque) >= _MOST_NAMES:
                raise Untrusted(f"the pickle names more than {_MOST_NAMES:,} classes", "hostile_pickle")
            self._opaque[full] = Opaque(full, found is not None)
        return self._opaque[full]

    def _storage(self, pid: object) -> object:
        # Before 1.6 torch wrote a module's class with its source file: ("module", class, file, source).
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], Opaque):
            return pid[1]
        # ("storage", class, key, location, numel), and a view (key, offset, numel) in old files.
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Untrusted("the pickle has a reference to a storage that torch does not write")
        _, kind, key, _, numel = pid[:5]
        if isinstance(kind, Opaque) and kind.name in _QUANTISED:
            if isinstance(key, str):
                self._check_meaning(key, kind.name.removeprefix("torch.").removesuffix("Storage"), None)
                self.storages.setdefault(key, _QUANTISED[kind.name])
            return kind  # what rebuilds a tensor of it is not built either
        if not isinstance(kind, _StorageClass) or not isinstance(key, str):
            raise Untrusted("the pickle has a storage of an unknown type")
        (count,) = _integers([numel])
        view = pid[5] if len(pid) == 6 else None
        view = view if isinstance(view, tuple) and len(view) == 3 else None
        start = _integers(view[1:])[0] if view else 0
        self._check_meaning(key, kind.dtype or "uint8", view)  # torch takes an untyped one for bytes
        self.storages.setdefault(key, kind.dtype)
        return StorageRecord(kind.dtype, key, count, start)

    def _check_meaning(self, key: str, elements: str, view: tuple[object, ...] | None) -> None:
        """Raises Untrusted for a storage that the pickle gives two meanings, of which torch takes the first: two
        element types, or in an old file two places. ``view``: name, offset and length, if only a part is meant."""
        first = self._elements.setdefault(key, elements)
        if first != elements:
            raise Untrusted(
                f"the storage {key[:40]!r} has two element types, {first} and {elements}: torch would read all of it "
                f"as {first}. Where it was written, save a .clone() of each tensor that is a view of another type.",
                "storage_of_two_kinds",
            )
        if view is not None:
            name = view[0]
            place: tuple[str | int, ...] = (key, *_integers(view[1:]))
            if not isinstance(name, str) or self._views.setdefault(name, place) != place:
                raise Untrusted(f"a part of the storage {key[:40]!r} stands at two places", "storage_of_two_kinds")
            key = name if name in self._elements else key
        if key in self._views and key in self._elements:
            raise Untrusted(f"the storage {key[:40]!r} is also a part of another one", "storage_of_two_kinds")


def hostile(name: str, why: str) -> Untrusted:
    """The refusal of a file for a name in its pickle."""
    return Untrusted(
        f"the pickle refers to {name}, {why}. Nothing was executed. If you trust the file, load it in the program that "
        "wrote it and save only its state dict.",
        "hostile_pickle",
        {"global": name},
    )


def objects_in(value: object) -> Iterator[Opaque]:
    """The objects of unusual classes in a value, and in the containers in it, keys included."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if isinstance(item, Opaque):
            if not item.harmless:
                yield item
        elif isinstance(item, OtherKey):
            stack.append(item.held)
        elif isinstance(item, dict | list | tuple) and not isinstance(item, RECORDS) and id(item) not in seen:
            seen.add(id(item))
            stack.extend([*item.keys(), *item.values()] if isinstance(item, dict) else item)


RECORDS = (TensorRecord, StorageRecord, _Dtype, _StorageClass)
_MOST_NAMES = 10_000
_QUANTISED = {  # storage class -> a dtype of as many bytes
    "torch.QInt8Storage": "int8",
    "torch.QUInt8Storage": "uint8",
    "torch.QInt32Storage": "int32",
    "torch.QUInt4x2Storage": "uint8",
    "torch.QUInt2x4Storage": "uint8",
}
