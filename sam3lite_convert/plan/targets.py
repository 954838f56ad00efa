"""The tensors that a layout must hold: their keys, their shapes, and the files that they are written to."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sam3lite_convert.errors import CannotRun
from sam3lite_convert.plan.architecture import OPTIONAL_BLOCKS, SIZES, Architecture
from sam3lite_convert.plan.tables import ANY, Layout
from sam3lite_convert.plan.unsound import Expected, PlanFault

MODEL, TEXT_PROJECTION = "model", "text_projection"  # stems of the safetensors files


def expected_targets(layout: Layout, architecture: Architecture, component: str) -> Iterator[tuple[str, Expected]]:
    """Every target key with its shape; a dimension is None if the checkpoint does not show it.

    Raises CannotRun if a target table names a size or a list that does not exist.
    """
    for template, each, sizes in layout.shapes:
        if template.endswith("." + ANY) or (component == "text" and not layout.is_text(template)):
            continue
        shape = tuple(_side(text, architecture.sizes, f"layout {layout.name}, {template}") for text in sizes)
        for i in _indices(layout, architecture, each):
            yield (template if i is None else template.replace("{i}", str(i))), shape


def _indices(layout: Layout, architecture: Architecture, each: str | None) -> tuple[int | None, ...]:
    if each is None:
        return (None,)
    if each not in architecture.blocks:
        names = ", ".join(sorted(architecture.blocks))
        raise CannotRun(f"target table of layout {layout.name}: no list {each!r}; there are: {names}", "bad_table")
    return architecture.blocks[each]


_SIDE = re.compile(r"(?:(\d{1,9})\*)?([a-z_]\w*|\d{1,9})(?:/([1-9]\d{0,8}))?(?:\+(\d{1,9}))?", re.ASCII)


def _side(text: str, sizes: dict[str, int], where: str) -> int | None:
    """The value of a shape expression: ``2*hidden``, ``vit_hidden/4``, ``hidden+2``, ``hidden`` or ``16``."""
    match = _SIDE.fullmatch(text)
    if match is None or not (match[2].isdigit() or match[2] in SIZES):
        known = ", ".join(sorted(SIZES))
        raise CannotRun(f"target table, {where}: {text!r} is not a size; use a number or one of {known}", "bad_table")
    value = int(match[2]) if match[2].isdigit() else sizes.get(match[2])
    if value is None:
        return None
    return int(match[1] or 1) * value // int(match[3] or 1) + int(match[4] or 0)


def empty_lists(layout: Layout, architecture: Architecture, component: str) -> list[PlanFault]:
    """Stacks of layers of which the file holds none; no other check notices that they are missing."""
    modules: dict[str, str] = {}
    for template, each, _ in layout.shapes:
        if each and each not in OPTIONAL_BLOCKS and (component != "text" or layout.is_text(template)):
            modules.setdefault(each, template.split(".{i}")[0].removesuffix(".layers"))
    return [
        PlanFault("missing_component", modules[each], "the file has none of its layers")
        for each in modules
        if not architecture.blocks.get(each)
    ]


def written_name(target: str, layout: Layout, component: str) -> tuple[str, str]:
    """The stem of the file that a target is written to, and its key in that file."""
    if component != "text" or not layout.strips_text:
        return MODEL, target
    if layout.text_projection and target.startswith(layout.text_projection):
        return TEXT_PROJECTION, _projection_key(layout) + target.removeprefix(layout.text_projection)
    return MODEL, target.removeprefix(layout.text_encoder)


def target_of_text(key: str, layout: Layout) -> str:
    """The target of a key of a text encoder that was written without its prefix: the inverse of ``written_name``."""
    beside = _projection_key(layout)
    if beside and key.startswith(beside):
        return layout.text_projection + key.removeprefix(beside)
    return layout.text_encoder + key


def _projection_key(layout: Layout) -> str:
    return layout.family.projection_key or layout.text_projection
