"""Finds the state dict in an unpickled checkpoint, and the byte positions of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from sam3lite_convert.checkpoint import dtypes, kinds, unpickle
from sam3lite_convert.checkpoint.index import StoredTensor, check_names
from sam3lite_convert.checkpoint.pickle_machine import Opaque
from sam3lite_convert.errors import UnsoundPlan, Untrusted

WRAPPERS = ("model", "state_dict")
META = "meta"  # facts about the weights, which may stand beside them
_MOST_ELEMENTS = 1 << 40  # no tensor has more, however often it repeats one value


def read_at(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    """Bytes of the file, fewer at its end. Raises Untrusted if the offset is negative or too large for a file."""
    if not 0 <= offset < 1 << 63:
        raise Untrusted("the archive's directory points outside the file", "corrupt_file")
    file.seek(offset)
    return file.read(nbytes)


class Found(NamedTuple):
    """A state dict.

    ``wrapper``: the entry of the file that holds it; None if the file is the state dict itself.
    ``tensors``: by key.
    ``notes``: on other contents of the file.
    ``others``: keys of entries that are not tensors.
    ``meta``: whole numbers of the file's ``meta`` entry, by key.
    """

    wrapper: str | None
    tensors: dict[str, unpickle.TensorRecord]
    notes: tuple[str, ...]
    others: list[str]
    meta: dict[str, int]


def state_dict_of(tree: object, unknown: list[str]) -> Found:
    """The state dict of a checkpoint, and what is said of the objects beside it. ``unknown``: the names of the classes
    in the file that were not built.

    Raises Untrusted if such an object stands where tensors belong, UnsoundPlan as ``find_state_dict``.
    """
    if isinstance(tree, Opaque) and (kind := kinds.kind_of_object(tree.name)):
        raise kind.refusal()
    for each in unpickle.objects_in(tree) if not isinstance(tree, Mapping) else ():
        raise unpickle.hostile(each.name, "where a dict of tensors belongs")
    try:
        found = find_state_dict(tree)
    except UnsoundPlan as fault:
        if fault.code == "no_state_dict" and isinstance(tree, Mapping):
            _refuse_known(tree)
        if unknown and fault.code == "no_state_dict":
            raise unpickle.hostile(unknown[0], "and holds no dict of tensors beside it") from fault
        raise
    if not unknown:
        return found
    named = ", ".join(unknown[:6]) + f" and {len(unknown) - 6:,} more" * (len(unknown) > 6)
    return found._replace(notes=(*found.notes, f"objects beside the weights, not built and never called: {named}"))


def _refuse_known(tree: Mapping[object, object]) -> None:
    """Raises UnsoundPlan for a file without tensors of which the kind can be told."""
    if kind := kinds.kind_of_tree(tree):
        raise kind.refusal()
    for inner in (tree, *(value for value in tree.values() if isinstance(value, Mapping))):
        _refuse_other_tensors(inner)


def _refuse_other_tensors(entries: Mapping[object, object]) -> None:
    """Raises UnsoundPlan if an entry is a tensor whose values are not plain bytes."""
    classes = [(_named(key), value.name) for key, value in entries.items() if isinstance(value, Opaque)]
    for key, name in classes:
        if fault := kinds.refuse_tensor(key, name, sum(name == other for _, other in classes)):
            raise fault


def check_entries(entries: Mapping[object, object]) -> None:
    """Raises UnsoundPlan if an entry of a state dict is a tensor whose values are not plain bytes; Untrusted if one
    holds any other object of an unusual class."""
    _refuse_other_tensors(entries)
    for key, value in entries.items():
        for each in unpickle.objects_in((key, value)):
            raise unpickle.hostile(each.name, f"at {_named(key)[:200]}, where only a tensor belongs")


def find_state_dict(tree: object) -> Found:
    """The state dict of a checkpoint, wrapped or bare. Raises UnsoundPlan if there is none, or more than one."""
    if not isinstance(tree, Mapping):
        raise UnsoundPlan(f"the file holds {_kind(tree)}, not a state dict", "no_state_dict")
    holders = [w for w in WRAPPERS if isinstance(tree.get(w), Mapping)]
    if len(holders) > 1:
        raise UnsoundPlan(
            "the file holds both 'model' and 'state_dict'; save a file with only the one to convert", "two_state_dicts"
        )
    check_names(key for each in (tree, *(tree[w] for w in holders)) for key in each if isinstance(key, str))
    wrapper = holders[0] if holders else None
    inner = tree[wrapper] if wrapper else tree
    notes = []
    meta = _numbers(tree.get(META))
    if wrapper and len(tree) > 1:
        beside = sorted(
            _named(k) + " (but for its whole numbers)" * bool(k == META and meta) for k in tree if k != wrapper
        )
        notes.append("not read, beside the state dict: " + ", ".join(beside))
    tensors, others = {}, []
    for key, value in inner.items():
        if isinstance(value, unpickle.TensorRecord) and isinstance(key, str):
            tensors[key] = value
        else:
            others.append(_named(key))
    if not tensors:
        raise UnsoundPlan(
            "the file holds no state dict (no tensors with names)" + _hidden_state_dicts(inner),
            "no_state_dict",
        )
    check_entries(inner)
    if others:
        notes.append(
            f"{len(others)} entries of the state dict are not tensors and are left out: " + ", ".join(others[:5])
        )
    return Found(wrapper, tensors, tuple(notes), others, meta)


def _numbers(meta: object) -> dict[str, int]:
    """The plain whole numbers of a ``meta`` entry. Nothing else in it is looked at."""
    if not isinstance(meta, Mapping):
        return {}
    return {key: value for key, value in meta.items() if isinstance(key, str) and type(value) is int}


def _named(key: object) -> str:
    """A key, which may be of any type, as short text."""
    if isinstance(key, str):
        return key
    short = isinstance(key, float) or (isinstance(key, int) and abs(key) < 1 << 64)
    return str(key) if short else "(a key that is not text)"


def _kind(tree: object) -> str:
    """What an unpickled object is, in words."""
    if isinstance(tree, unpickle.TensorRecord):
        return "a single tensor"
    if type(tree) in (list, tuple):
        return "a list"
    if tree is None or isinstance(tree, str | bytes | int | float):
        return "a single value"
    return "an object of another kind"


def _hidden_state_dicts(tree: Mapping[object, object]) -> str:
    """A hint at tensors one level below, in words. Only the known wrappers are opened, others are not guessed."""
    counts = {
        k: n
        for k, v in tree.items()
        if isinstance(k, str) and isinstance(v, Mapping)
        if (n := sum(isinstance(t, unpickle.TensorRecord) for t in v.values()))
    }
    if not counts:
        return ""
    held = ", ".join(f"{name!r} holds {n} tensors" for name, n in counts.items())
    return f". The entry {held}; save only the entry to convert, or save it under 'model' or 'state_dict'"


def locate(found: dict[str, unpickle.TensorRecord], storages: dict[str, tuple[int, int]]) -> dict[str, StoredTensor]:
    """The tensors with their byte positions.

    Raises Untrusted if data is missing or a tensor exceeds its storage.
    """
    out = {}
    for key, tensor in found.items():
        if tensor.storage.key not in storages:
            raise Untrusted(f"{key}: its data is not in the file", "truncated_file")
        base, available = storages[tensor.storage.key]
        width = dtypes.itemsize(tensor.dtype)
        unit = dtypes.itemsize(tensor.storage.dtype) if tensor.storage.dtype else width
        start = tensor.storage.start * unit + tensor.offset * width
        stored = StoredTensor(key, tensor.dtype, tensor.shape, base + start, tensor.stride)
        if start + stored.span * width > available or stored.numel > _MOST_ELEMENTS:
            raise Untrusted(
                f"{key}: its shape {'x'.join(map(str, tensor.shape))} exceeds the data that is stored for it",
                "corrupt_file",
            )
        out[key] = stored
    return out
