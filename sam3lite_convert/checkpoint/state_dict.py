"""Finds the state dict in an unpickled checkpoint, and the byte positions of its tensors."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from sam3lite_convert.checkpoint import dtypes, kinds, unpickle
from sam3lite_convert.checkpoint.index import StoredTensor, check_names
from sam3lite_convert.checkpoint.pickle_machine import Opaque, repeated
from sam3lite_convert.checkpoint.selection import NOTHING_STATED, Selection
from sam3lite_convert.errors import CannotRun, UnsoundPlan, Untrusted
from sam3lite_convert.quoting import shell_word
from sam3lite_convert.records.record import JsonValue

WRAPPERS = ("model", "state_dict")  # entries that hold weights, also ones whose names have no parts
FILE_ITSELF = "."  # the path of a state dict that is not wrapped
_DEEPEST = 8  # entries within entries
_LISTED = 20
_ALIKE = 0.6  # how much alike a path is that may be meant, from 0 to 1
_SCATTERED = 5  # dicts of tensors, none with names of several parts, from which the names are taken to be split
_OPTIMIZER = "state"  # the entry of an optimizer that holds a dict for each parameter
_GIVE = "Give the file that holds the model's weights, or save model.state_dict() where it was written."
META = "meta"  # facts about the weights, which may stand beside them
_MOST_ELEMENTS = 1 << 40  # no tensor has more, however often it repeats one value


def all_tensors(tree: object) -> Iterator[unpickle.TensorRecord]:
    """Every tensor in nested dictionaries, lists and tuples."""
    stack, seen = [tree], set()
    while stack:
        item = stack.pop()
        if isinstance(item, unpickle.TensorRecord):
            yield item
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, Mapping) else item)


def read_at(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    """Bytes of the file, fewer at its end. Raises Untrusted if the offset is negative or too large for a file."""
    if not 0 <= offset < 1 << 63:
        raise Untrusted("the archive's directory points outside the file", "corrupt_file")
    file.seek(offset)
    return file.read(nbytes)


class Found(NamedTuple):
    """A state dict.

    ``wrapper``: path of the entry that holds it, joined with dots; None if the file is the state dict itself.
    ``tensors``: by key.
    ``notes``: on other contents of the file.
    ``others``: keys of entries that are not tensors.
    ``meta``: whole numbers of the file's ``meta`` entry, by key.
    ``left``: number of tensors in the other entries, by path.
    """

    wrapper: str | None
    tensors: dict[str, unpickle.TensorRecord]
    notes: tuple[str, ...]
    others: list[str]
    meta: dict[str, int]
    left: dict[str, int]


class _Dict(NamedTuple):
    """A dict of tensors in a file, and the path of keys that leads to it. ``pairs``: whether it is a list of pairs of a
    name and a tensor there."""

    path: tuple[str, ...]
    content: Mapping[object, object]
    tensors: dict[str, unpickle.TensorRecord]
    pairs: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path) or FILE_ITSELF

    @property
    def like_weights(self) -> bool:
        """Whether names have parts, as those of weights do; those of an optimizer's state, or of metrics, have none."""
        return any("." in key for key in self.tensors)


def state_dict_of(tree: object, unknown: list[str], selection: Selection = NOTHING_STATED) -> Found:
    """The state dict of a checkpoint, and what is said of the objects beside it. ``unknown``: the names of the classes
    in the file that were not built.

    Raises Untrusted if such an object stands where tensors belong, UnsoundPlan as ``find_state_dict``.
    """
    if isinstance(tree, Opaque) and (kind := kinds.kind_of_object(tree.name)):
        raise kind.refusal()
    for each in unpickle.objects_in(tree) if not _nests(tree) else ():
        raise unpickle.hostile(each.name, "where a dict of tensors belongs")
    try:
        found = find_state_dict(tree, selection)
    except UnsoundPlan as fault:
        if fault.code == "no_state_dict":
            _refuse_known(tree)
        if unknown and fault.code == "no_state_dict":
            raise unpickle.hostile(unknown[0], "and holds no dict of tensors beside it") from fault
        raise
    if not unknown:
        return found
    named = ", ".join(unknown[:6]) + f" and {len(unknown) - 6:,} more" * (len(unknown) > 6)
    return found._replace(notes=(*found.notes, f"objects beside the weights, not built and never called: {named}"))


def _refuse_known(tree: object) -> None:
    """Raises UnsoundPlan for a file without named tensors of which the kind can be told."""
    if isinstance(tree, Mapping):
        # What an entry is, tells what the file is, if there is nothing else in it.
        entries = [entry for value in tree.values() for entry in (value if isinstance(value, list) else [value])]
        inner = [entry for entry in entries if isinstance(entry, Mapping)]
        for each in (tree, *inner):
            if kind := kinds.kind_of_tree(each):
                raise kind.refusal()
        for each in (tree, *inner):
            _refuse_other_tensors(each)
    count = sum(1 for _ in all_tensors(tree))
    if count and _nests(tree) and not any(_dicts(tree)):
        raise kinds.nameless(count).refusal()


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
            where = f"at {_named(key)[:200]}, where only a tensor belongs"
            raise kinds.refuse_tensor(_named(key), each.name, 1) or unpickle.hostile(each.name, where)


def find_state_dict(tree: object, selection: Selection = NOTHING_STATED) -> Found:
    """The state dict of a checkpoint, wrapped at any depth or bare.

    ``selection``: may state the path of its entry.
    Raises UnsoundPlan if there is none, or more than one; CannotRun if no dict of tensors has the stated path.
    """
    if not _nests(tree):
        raise UnsoundPlan(f"the file holds {_kind(tree)}, not a state dict. {_GIVE}", "no_state_dict")
    dicts, wanted = list(_dicts(tree)), selection.state_dict_key
    if not dicts and not isinstance(tree, Mapping):
        raise UnsoundPlan(f"the file holds a list, not a state dict. {_GIVE}", "no_state_dict")
    if selection.passed_over and wanted not in [d.name for d in dicts]:
        wanted = None
    chosen = _only(dicts) if wanted is None else _named_dict(dicts, wanted)
    top = tree if isinstance(tree, Mapping) else {}
    left = dict(_left(tree, chosen.path))
    check_names(key for key in (*top, *chosen.content, *chosen.path, *left) if isinstance(key, str))
    notes = []
    meta = _numbers(top.get(META))
    beside = sorted({*map(_named, top)} - {*chosen.path[:1], *left}) if chosen.path else []
    if beside:  # what holds tensors is counted in ``left``
        words = (name + " (but for its whole numbers)" * (name == META and bool(meta)) for name in beside)
        notes.append("not read, beside the state dict: " + ", ".join(words))
    check_entries(chosen.content)
    if chosen.pairs:
        notes.append("a list of pairs of a name and a tensor, taken for the state dict")
    rest = {key: value for key, value in chosen.content.items() if not (isinstance(key, str) and key in chosen.tensors)}
    unnamed = [_named(key) for key, value in rest.items() if isinstance(value, unpickle.TensorRecord)]
    if unnamed:
        notes.append(
            (
                f"{len(unnamed):,} tensors of the state dict have keys that are not text, and are left out: "
                if len(unnamed) > 1
                else "1 tensor of the state dict has a key that is not text, and is left out: "
            )
            + ", ".join(unnamed[:5])
        )
    others = [_named(key) for key, value in rest.items() if not isinstance(value, unpickle.TensorRecord)]
    if others:
        notes.append(
            f"{len(others)} entries of the state dict are not tensors and are left out: " + ", ".join(others[:5])
        )
    return Found(".".join(chosen.path) or None, chosen.tensors, tuple(notes), others + unnamed, meta, left)


def _entries(item: object) -> list[tuple[object, object]]:
    """The entries of a dict, or of a list by position; nothing of another object."""
    if isinstance(item, Mapping):
        return list(item.items())
    return list(enumerate(item)) if isinstance(item, list | tuple) else []


def _nests(item: object) -> bool:
    return isinstance(item, Mapping | list | tuple) and not isinstance(item, unpickle.RECORDS)


def _dicts(tree: object) -> Iterator[_Dict]:
    """Every dict with named tensors, at any depth, outer ones first."""
    stack: list[tuple[tuple[str, ...], object]] = [((), tree)]
    seen: set[int] = set()
    while stack:
        path, item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        pairs = _pairs(item)
        if pairs is not None:
            item = pairs
        entries = _entries(item)
        if isinstance(item, Mapping):
            tensors = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, unpickle.TensorRecord)}
            if tensors:
                yield _Dict(path, item, tensors, pairs is not None)
        if len(path) < _DEEPEST:
            stack.extend(reversed([((*path, _named(k)), v) for k, v in entries if _nests(v)]))


def _pairs(item: object) -> dict[object, object] | None:
    """What a list of pairs of a name and a value holds, such as ``list(state_dict.items())``; None if it is no such
    list, or holds no tensor. Raises Untrusted if a name appears twice."""
    if not isinstance(item, list | tuple) or isinstance(item, unpickle.RECORDS):
        return None
    made: dict[object, object] = {}
    for each in item:
        if not isinstance(each, list | tuple) or isinstance(each, unpickle.RECORDS) or len(each) != 2:
            return None
        name, value = each
        if not isinstance(name, str):
            return None
        if name in made:
            raise repeated(name)
        made[name] = value
    return made if any(isinstance(value, unpickle.TensorRecord) for value in made.values()) else None


def _only(dicts: list[_Dict]) -> _Dict:
    """The dict that holds the weights. Raises UnsoundPlan if there is none, or more than one."""
    likely = [d for d in dicts if d.like_weights] or [d for d in dicts if d.name in WRAPPERS]
    likely = likely or [d for d in dicts if not d.path]
    if not likely and len(dicts) > _SCATTERED and not any(_OPTIMIZER in d.path for d in dicts):
        raise kinds.scattered(len(dicts)).refusal()
    if not likely:
        hint = f"To take one all the same: --state-dict-key {shell_word(dicts[0].name)}" if dicts else _GIVE
        raise UnsoundPlan(f"the file holds no state dict (no tensors with names). {hint}", "no_state_dict")
    if any(d.tensors != likely[0].tensors for d in likely[1:]):
        lines = [f"the file holds {len(likely)} dicts of tensors, which are not merged:"]
        lines += [_listed(d) for d in likely[:_LISTED]]
        lines += [f"  ... and {len(likely) - _LISTED} more"] if len(likely) > _LISTED else []
        few = [f"--state-dict-key {shell_word(d.name)}" for d in likely[:_LISTED]]
        lines.append(f"Choose one: {' or '.join(few)}")
        raise UnsoundPlan("\n".join(lines), "several_state_dicts", {"entries": _counts(likely)})
    return likely[0]


def _named_dict(dicts: list[_Dict], wanted: str) -> _Dict:
    found = [d for d in dicts if d.name == wanted]
    if len(found) == 1:
        return found[0]
    why = "has two meanings in this file" if found else "is no dict of tensors in this file"
    lines = [f"{wanted!r} {why} (--state-dict-key). It holds:", *(_listed(d) for d in dicts[:_LISTED])]
    details: dict[str, JsonValue] = {"entries": _counts(dicts)}
    near = [] if found else difflib.get_close_matches(wanted, [d.name for d in dicts], 1, _ALIKE)
    if near:
        lines.append(f"Did you mean --state-dict-key {shell_word(near[0])}?")
        details["options"] = ["--state-dict-key", near[0]]
    raise CannotRun("\n".join(lines), "unknown_entry", details)


def _listed(entry: _Dict) -> str:
    check_names(entry.path)
    numel = sum(math.prod(t.shape) for t in entry.tensors.values())
    many = "1 tensor" if len(entry.tensors) == 1 else f"{len(entry.tensors):,} tensors"
    return f"  {entry.name}: {many}, {numel:,} parameters"


def _counts(dicts: list[_Dict]) -> dict[str, JsonValue]:
    return {
        d.name: {"tensors": len(d.tensors), "parameters": sum(math.prod(t.shape) for t in d.tensors.values())}
        for d in dicts
    }


def _left(tree: object, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The entries beside each part of a path that hold tensors: their path, and how many tensors."""
    above: list[str] = []
    for part in path:
        entries = (
            tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
        )
        inner: object = None
        for key, value in entries:
            if _named(key) == part and _nests(value):
                inner = value
            elif n := sum(1 for _ in all_tensors(value)):
                yield ".".join([*above, _named(key)]), n
        above.append(part)
        tree = inner


def _numbers(meta: object) -> dict[str, int]:
    """The integers of a ``meta`` entry, by key. Its other values are ignored."""
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
    if isinstance(tree, unpickle.RECORDS):
        return "a single value"
    if tree is None or isinstance(tree, str | bytes | int | float):
        return "a single value"
    return "an object of another kind"


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
