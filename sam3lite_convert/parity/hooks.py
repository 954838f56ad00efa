"""Makes the script that records a model's activations where this tool is not installed, from the tables of taps.

The script is ``hooks_template.py``, with the tables of module paths put in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from sam3lite_convert import __version__
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.opened import read_small_text
from sam3lite_convert.parity.detector.taps import ROWS, SAM3_ROWS, TEXT_ENCODER, Place
from sam3lite_convert.parity.hooks_template import Row, Table
from sam3lite_convert.parity.taps import ORIGINAL, READS_IDS, SAM3_ORIGINAL, SAM3_TRANSFORMERS, TAPS

MODULE = "sam3lite_hooks"  # the name of the script, in its examples
_TEMPLATE = "hooks_template.py"
_START, _END = "# ---- sam3lite record --script puts what is its own between these lines ----\n", "# ---- end ----\n"


def text_tables() -> tuple[Table, ...]:
    """The tables of the text encoder, from the table of taps."""
    return tuple(Table(kind, "text", tuple(_text_rows(kind))) for kind in READS_IDS)


def _text_rows(kind: str) -> list[Row]:
    rows = [Row("input_ids", READS_IDS[kind], at_input=True)]
    for point in TAPS:
        if module := (point.modules or point.elsewhere).get(kind):
            rows.append(Row(point.name, module, at_input=point.at_input))
    return rows


# A tap whose module reads an argument of the detector -> its name.
_ARGUMENTS = {"trunk.patch_embed": "image", "geometry.box_direct": "boxes", "geometry.box_label": "box_labels"}


def detector_tables() -> tuple[Table, ...]:
    """The tables of the whole detector, from its table of taps, with its arguments; its outputs are no module's."""
    found = []
    for kind, ids in READS_IDS.items():
        original = kind in (ORIGINAL, SAM3_ORIGINAL)
        rows = [Row("input_ids", f"{TEXT_ENCODER}{ids}" if original else ids, at_input=True)]
        for row in SAM3_ROWS if kind in (SAM3_ORIGINAL, SAM3_TRANSFORMERS) else ROWS:
            if place := row.original if original else row.converted:
                rows.append(_detector_row(row.name, place))
                if row.name in _ARGUMENTS:
                    rows.append(Row(_ARGUMENTS[row.name], place.path, at_input=True))
        found.append(Table(kind, "detector", tuple(rows)))
    return tuple(found)


def _detector_row(tap: str, place: Place) -> Row:
    """Where a tap of the detector is, as the script has it."""
    item = place.part if isinstance(place.part, int) else None
    cut = None if place.part is None or isinstance(place.part, int) else _CUTS[place.part]
    return Row(tap, place.path, place.fixed_call, place.call, place.at_input, item, cut)


_LONGEST = 1 << 20  # bytes; the script has 30 kB
# The presence token stands before the queries, in one tensor.
_CUTS: dict[str, tuple[int, int, int | None]] = {"presence": (1, 0, 1), "queries": (1, 1, None)}


def hooks_script(tables: Sequence[Table], module: str = MODULE) -> str:
    """The text of the script with these tables. ``module``: the name that its own examples import it by."""
    template = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    before, _, rest = template.replace(f"from {MODULE} import", f"from {module} import").partition(_START)
    _, _, after = rest.partition(_END)
    lines = [f'WRITTEN_BY = "sam3lite-convert {__version__}"', "TABLES: list[Table] = ["]
    for table in tables:
        lines += ["    Table(", f"        {json.dumps(table.name)},", f"        {json.dumps(table.component)},"]
        lines += ["        [", *(f"            {_literal(row)}," for row in table.rows), "        ],", "    ),"]
    return "".join([before, _START, *(f"{line}\n" for line in [*lines, "]"]), _END, after])


def is_hooks_script(path: Path) -> bool:
    """Whether a file was written from the template, so that it may be replaced."""
    try:
        return _START in read_small_text(path, _LONGEST)
    except CannotRun:
        return False


def _literal(row: Row) -> str:
    """A row as code: tap, module, and what is not as usual."""
    usual = row._field_defaults
    others = [f"{name}={value!r}" for name, value in row._asdict().items() if name in usual and value != usual[name]]
    return f"Row({', '.join([json.dumps(row.tap), json.dumps(row.module), *others])})"
