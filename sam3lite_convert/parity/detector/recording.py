"""Reads the activations of a detector at its taps while it runs, and puts others in their place."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn

from sam3lite_convert.errors import UnsoundPlan
from sam3lite_convert.parity.detector.taps import Place, Stage, Tap

# (tap, activation) -> what later modules read in its place; None to leave it.
Read = Callable[[str, Tensor], Tensor | None]


@contextmanager
def reading(
    model: nn.Module, taps: Mapping[str, Tap], side: Literal["original", "converted"], read: Read
) -> Iterator[None]:
    """Call ``read`` at every tap of one pass of the model inside this context.

    Raises UnsoundPlan if the model has no module at a place of the table.
    """
    places: dict[str, list[tuple[Tap, Place]]] = defaultdict(list)
    for tap in taps.values():
        if tap.row is None:
            continue
        place = tap.row.original if side == "original" else tap.row.converted
        if place is not None:
            places[tap.path(place)].append((tap, place))
    calls: Counter[str] = Counter()
    handles = []
    for path, here in places.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise UnsoundPlan(
                f"the detector has no module {path}, so {here[0][0].name} cannot be read", "other_depth"
            ) from None
        before = [(tap, place) for tap, place in here if place.at_input]
        behind = [(tap, place) for tap, place in here if not place.at_input]
        if before:
            handles.append(module.register_forward_pre_hook(_before(before, read), with_kwargs=True))
        if behind:
            handles.append(module.register_forward_hook(_behind(path, behind, calls, read)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(
    here: Sequence[tuple[Tap, Place]], read: Read
) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], tuple[tuple[object, ...], dict[str, object]] | None]:
    def hook(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        ((tap, _),) = here
        if args:
            other = read(tap.name, cast(Tensor, args[0]))
            return None if other is None else ((other, *args[1:]), kwargs)
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        other = read(tap.name, cast(Tensor, kwargs[name]))
        return None if other is None else (args, kwargs | {name: other})

    return hook


def _behind(
    path: str, here: Sequence[tuple[Tap, Place]], calls: Counter[str], read: Read
) -> Callable[[nn.Module, object, object], object]:
    def hook(module: nn.Module, args: object, output: object) -> object:
        number, calls[path] = calls[path], calls[path] + 1
        changed = False
        for tap, place in here:
            if tap.call(place) == number:
                other = read(tap.name, _part(output, place))
                if other is not None:
                    output, changed = _with_part(output, place, other), True
        return output if changed else None

    return hook


def _part(output: object, place: Place) -> Tensor:
    """The part of a module's output that a tap is."""
    if isinstance(place.part, int):
        return cast("tuple[Tensor, ...]", output)[place.part]
    whole = output if isinstance(output, Tensor) else cast("tuple[Tensor, ...]", output)[0]
    return whole[:, _SLICES[place.part]] if place.part else whole


def _with_part(output: object, place: Place, other: Tensor) -> object:
    """The module's output with another value in this part."""
    if isinstance(place.part, int):
        parts = list(cast("tuple[Tensor, ...]", output))
        parts[place.part] = other
        return tuple(parts)
    if not isinstance(output, Tensor):
        first, *rest = cast("tuple[Tensor, ...]", output)
        return (_with_part(first, place, other), *rest)
    if place.part is None:
        return other
    presence, queries = output[:, _SLICES["presence"]], output[:, _SLICES["queries"]]
    return torch.cat((other, queries) if place.part == "presence" else (presence, other), 1)


# Both are parts of one tensor in the converted detector's decoder.
_SLICES = {"presence": slice(0, 1), "queries": slice(1, None)}


class Clock:
    """The wall time of each stage: what passes between two taps belongs to the stage of the second."""

    def __init__(self, taps: Mapping[str, Tap]) -> None:
        self._taps = taps
        self._last = time.perf_counter()
        self.seconds: Counter[Stage] = Counter()

    def at(self, tap: str) -> None:
        """Called when a tap was reached."""
        now = time.perf_counter()
        self.seconds[self._taps[tap].stage] += now - self._last  # type: ignore[assignment]
        self._last = now

    def resume(self) -> None:
        """Called when the work on a tap is done, which is not the model's."""
        self._last = time.perf_counter()
