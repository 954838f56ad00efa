"""Convert SAM3-LiteText checkpoints to safetensors, and prove the result.

    import sam3lite_convert as s3

    checkpoint = s3.open_checkpoint("s0.pt")
    plan = s3.make_plan(checkpoint, layout="transformers")
    done = s3.convert_checkpoint(plan, "out", verify=True)

Everything is loaded when it is first used, so importing the package takes no time and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from sam3lite_convert.commands.library import (
        ConversionPlan,
        OpenCheckpoint,
        convert_checkpoint,
        diff_checkpoints,
        judge_activations,
        make_plan,
        open_checkpoint,
        push_folder,
        restore_folder,
        run_detector_parity,
        run_parity,
        verify_folder,
        write_demo_checkpoint,
    )
    from sam3lite_convert.errors import CannotRun, Sam3LiteError, UnsoundPlan, Untrusted
    from sam3lite_convert.packed_detector import PackedModel
    from sam3lite_convert.packed_encoder import PackedTextModel

_HOMES = {
    "commands.library": (
        "ConversionPlan", "OpenCheckpoint", "convert_checkpoint", "diff_checkpoints", "judge_activations", "make_plan",
        "open_checkpoint", "push_folder", "restore_folder", "run_detector_parity", "run_parity", "verify_folder",
        "write_demo_checkpoint",
    ),
    "errors": ("CannotRun", "Sam3LiteError", "UnsoundPlan", "Untrusted"),
    "packed_detector": ("PackedModel",),
    "packed_encoder": ("PackedTextModel",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CannotRun",
    "ConversionPlan",
    "OpenCheckpoint",
    "PackedModel",
    "PackedTextModel",
    "Sam3LiteError",
    "UnsoundPlan",
    "Untrusted",
    "__version__",
    "convert_checkpoint",
    "diff_checkpoints",
    "judge_activations",
    "make_plan",
    "open_checkpoint",
    "push_folder",
    "restore_folder",
    "run_detector_parity",
    "run_parity",
    "verify_folder",
    "write_demo_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
