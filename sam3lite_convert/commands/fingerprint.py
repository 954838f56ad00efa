"""Makes the fingerprint of a checkpoint, puts it into converted folders, and judges ports by it."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lite_convert.checkpoint.one_file import read_file
from sam3lite_convert.convert.side_files import FINGERPRINT_NAME, add_file
from sam3lite_convert.errors import CannotRun, Sam3LiteError, Untrusted, in_short
from sam3lite_convert.figures import only_compared
from sam3lite_convert.json_text import parse_json
from sam3lite_convert.opened import read_small
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.quoting import shell_path
from sam3lite_convert.records.fingerprint import Fingerprint, FingerprintDocument, FingerprintSource
from sam3lite_convert.records.receipt import Receipt
from sam3lite_convert.records.record import SCHEMA_VERSION
from sam3lite_convert.workers import Worker

if TYPE_CHECKING:
    import numpy as np

    from sam3lite_convert.parity.port_files import PortFile

_LIMIT = 4 << 20  # bytes; that of the largest released variant takes some 20 kB
# Of the greatest value and of the norm: rounding to float32 moves them by far less, and a tolerance beyond it is none.
_GREATEST_LIMIT = 0.01


def fingerprint_of(plan: Plan, called: int | None = None, dtype: str | None = None) -> Fingerprint:
    """What the original text encoder computes with the weights of a plan's checkpoint. Its hash is left open.

    ``plan``: of the whole file or of its text encoder; its tensors must be on this machine.
    ``called``: the context that the model is called with, in tokens; None: the plan's.
    ``dtype``: floating weights are cast to it first; None: taken as stored.

    Raises CannotRun if the reference computes NaN or infinity, UnsoundPlan if the weights do not fit it.
    """
    import torch
    from torch import Tensor

    from original_ref import TextReference
    from sam3lite_convert.checkpoint.reader import open_source
    from sam3lite_convert.convert.text_weights import SourceText
    from sam3lite_convert.parity.fingerprint import fingerprint_ids, make_fingerprint
    from sam3lite_convert.parity.on_demand import read_on_demand
    from sam3lite_convert.parity.original import reference_encoder
    from sam3lite_convert.parity.taps import belongs_to_layer

    architecture = plan.architecture
    if called is not None and architecture.context is not None:
        architecture = architecture.with_context(replace(architecture.context, called=called))
    ids = fingerprint_ids(architecture.called, architecture.sizes["vocab"])
    # Sorted: the rows are in the order of the ids, so that the greatest id stays the greatest.
    words = torch.unique(ids)
    small = replace(architecture, sizes=architecture.sizes | {"vocab": len(words)})
    source = FingerprintSource(name=plan.checkpoint.path.name, size=plan.checkpoint.size, sha256=None)
    with open_source(plan.checkpoint) as file:
        text = SourceText(file, plan, words.tolist())

        def read(name: str) -> Tensor:
            value = text.read(name)
            return value.to(getattr(torch, dtype)) if dtype is not None and value.is_floating_point() else value

        # The layers, nearly all of the encoder, are read module by module while they run.
        weights = {name: text.outline(name) if belongs_to_layer(name) else read(name) for name in text}
        reference = reference_encoder(small, weights, torch.float32)
        assert isinstance(reference.model, TextReference)
        read_on_demand(reference.model, read)
        rows = torch.searchsorted(words, ids)
        return make_fingerprint(reference.model, architecture, source, ids, rows, plan.not_read)


def _can_make() -> bool:
    return importlib.util.find_spec("torch") is not None


def start_fingerprint(plan: Plan) -> Worker[Fingerprint] | None:
    """Start to make the fingerprint, while tensors are written; None without torch."""
    return Worker(lambda: fingerprint_of(plan)) if _can_make() else None


def add_fingerprint(folder: Path, receipt: Receipt, made: Worker[Fingerprint] | None) -> tuple[Receipt, str | None]:
    """Write fingerprint.json into a folder. Returns the receipt that lists it, and why there is none: None if it was
    written."""
    if made is None:
        return receipt, f"no {FINGERPRINT_NAME}: torch is not installed"
    try:
        found = made.result()
    except CannotRun as fault:
        return receipt, f"no {FINGERPRINT_NAME}: {fault.message}"
    from sam3lite_convert.parity.fingerprint import in_lines

    sha256 = receipt.source.sha256 or _stated(receipt.source.etag)
    found = replace(found, source=replace(found.source, sha256=sha256))
    return add_file(folder, receipt, FINGERPRINT_NAME, in_lines(found)), None


def _stated(etag: str | None) -> str | None:
    """The SHA-256 that the Hub states of a file of which only ranges were read; small files have another etag."""
    return etag if etag is not None and len(etag) == 64 else None


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint. Raises CannotRun if there is no such file, Untrusted if it is not a fingerprint."""
    if path.is_dir():
        path = path / FINGERPRINT_NAME
    try:
        found = Fingerprint.from_json(parse_json(read_small(path, _LIMIT), nan=True))
    except CannotRun as fault:
        if fault.code == "too_large":
            raise _not_a_fingerprint(path) or Untrusted(
                f"{path}: is too large for a fingerprint", "corrupt_file"
            ) from None
        raise
    except ValueError as fault:
        if other := _not_a_fingerprint(path):
            raise other from None
        raise Untrusted(f"{path}: is not a fingerprint ({in_short(fault)})", "corrupt_file") from fault
    if found.schema_version != SCHEMA_VERSION:
        said = f"is of version {found.schema_version}; this version of the tool reads {SCHEMA_VERSION}"
        raise Untrusted(f"{path}: {said}", "corrupt_file")
    if not found.taps or not 0 <= found.tolerance <= 64:
        raise Untrusted(f"{path}: it holds no taps, or a tolerance that would pass anything", "corrupt_file")
    if len({tap.name for tap in found.taps}) < len(found.taps):
        raise Untrusted(f"{path}: it holds a tap twice", "corrupt_file")
    for tap in found.taps:
        where = found.positions.get("x".join(map(str, tap.shape)), ())
        numel = math.prod(tap.shape)
        if not where or len(where) != len(tap.values) or not all(0 <= n < numel for n in where):
            raise Untrusted(f"{path}: its positions do not fit the values at {tap.name}", "corrupt_file")
        if not all(map(math.isfinite, (tap.l2, tap.max_abs, tap.floor, tap.floor_l2, *tap.values))):
            raise Untrusted(f"{path}: it holds NaN or infinity at {tap.name}", "corrupt_file")
        if not (tap.floor >= 0 and tap.floor_l2 >= 0):
            raise Untrusted(f"{path}: its floor at {tap.name} is not a number from 0 on", "corrupt_file")
        limits = found.tolerance * tap.floor, found.tolerance * tap.floor_l2
        if limits[0] > _GREATEST_LIMIT * tap.max_abs or limits[1] > _GREATEST_LIMIT * tap.l2:
            raise Untrusted(f"{path}: its floor at {tap.name} would pass wrong values", "corrupt_file")
    return found


def _not_a_fingerprint(path: Path) -> CannotRun | None:
    """The error for a checkpoint in the place of a fingerprint; None if it is no checkpoint either."""
    from sam3lite_convert.parity.port_files import tap_of

    try:
        names = list(read_file(path).tensors)
    except Sam3LiteError:
        return None
    if any(map(tap_of, names)):
        return CannotRun(f"{path} holds activations, not a fingerprint; give it as FILE, in front", "usage")
    return CannotRun(
        f"{path} is a checkpoint, not a fingerprint. To judge by it: sam3lite judge FILE "
        f"{shell_path(path)}. A fingerprint is made by sam3lite record {shell_path(path)} --fingerprint, and lies in "
        f"every converted folder as {FINGERPRINT_NAME}.",
        "usage",
    )


def fault_of(folder: Path, plan: Plan, made: Worker[Fingerprint] | None = None) -> str | None:
    """What is wrong with a folder's fingerprint, in words; None if nothing is, if there is none, or without torch.

    ``made``: that of the same plan, if it is being made already; None to make it.
    """
    stated = folder / FINGERPRINT_NAME
    if not stated.exists() or not _can_make():
        return None
    from sam3lite_convert.parity.fingerprint import first_difference

    try:
        found = read_fingerprint(stated)
        if made is not None:
            return first_difference(found, made.result())
        # The file may have had another name when it was converted, which stated another context.
        context, length = plan.architecture.context, len(found.ids[0]) if found.ids else 0
        renamed = context is not None and length > 0 and min(length, context.rows) == context.held
        called = length if renamed else None
        other = first_difference(found, fingerprint_of(plan, called))
        if other is None or plan.options.dtype is None:
            return other
        # Of a cast folder it may be that of the cast weights: so if it was converted from a copy that was cast before.
        return other if first_difference(found, fingerprint_of(plan, called, plan.options.dtype)) else None
    except Sam3LiteError as fault:
        return fault.message


def _arranged(fingerprint: Fingerprint, port: PortFile) -> tuple[dict[str, np.ndarray], list[str]]:
    """The activations in the shapes of the fingerprint, where they can be read so, and how others were read."""
    import torch

    from sam3lite_convert.parity.port import fitted
    from sam3lite_convert.parity.taps import point_of

    out, read = {}, dict[str, list[str]]()
    for tap in fingerprint.taps:
        if tap.name not in port.propagated:
            continue
        given = port.propagated[tap.name]
        value, how = fitted(given, torch.Size(tap.shape), point_of(tap.name).has_positions)
        out[tap.name] = (given if value is None else value).detach().double().numpy()
        if how:
            read.setdefault(how, []).append(tap.name)
    return out, [f"{', '.join(taps)}: {how}" for how, taps in read.items()]


def judge_by_fingerprint(path: Path, port: PortFile, name: str) -> FingerprintDocument:
    """A port's activations on the fingerprint's ids, compared with it.

    ``path``: of the fingerprint, or of a converted folder.

    Raises CannotRun if the port's file holds other ids or no tap of the fingerprint, and as ``read_fingerprint`` does.
    """
    from sam3lite_convert.parity.fingerprint import by_tap

    fingerprint = read_fingerprint(path)
    notes = port.notes
    if port.ids is None:
        notes = (*notes, f"{name} holds no ids: it is taken to be computed from those of the fingerprint")
    elif tuple(map(tuple, port.ids.tolist())) != fingerprint.ids:
        raise CannotRun(f"{name} was computed from other ids than those of the fingerprint", "bad_ids")
    activations, arranged = _arranged(fingerprint, port)
    notes = (*notes, *arranged)
    checks = by_tap(fingerprint, activations)
    if not checks:
        taps = ", ".join(tap.name for tap in fingerprint.taps)
        raise CannotRun(f"no activation of {name} is at a tap of the fingerprint; its taps are {taps}", "unknown_tap")
    given = {check.name for check in checks}
    missing = tuple(tap.name for tap in fingerprint.taps if tap.name not in given)
    first = next((check for check in checks if not check.agrees), None)
    # A position may be drawn twice.
    drawn = {shape: len(set(where)) for shape, where in fingerprint.positions.items()}
    looked_at = sum(drawn["x".join(map(str, tap.shape))] for tap in fingerprint.taps if tap.name in given)
    if fingerprint.not_read:
        notes = (*notes, f"the checkpoint holds {len(fingerprint.not_read):,} text tensors that no reference reads")
    if first is not None:
        summary = f"at {first.name}: {first.why}"
    else:
        norms = "the norm of 1 tap" if len(checks) == 1 else f"the norms of {len(checks)} taps"
        summary = f"{looked_at:,} values and {norms} are the original's"
    if missing:
        few = only_compared([check.name for check in checks], len(fingerprint.taps))
        summary = f"{few}: {summary}; not compared: {', '.join(missing)}"
    return FingerprintDocument(
        candidate=name,
        fingerprint=str(path),
        source=fingerprint.source,
        verdict="agrees" if first is None else "differs",
        first_off=first.name if first else None,
        taps=checks,
        not_given=missing,
        notes=notes,
        summary=summary,
    )
