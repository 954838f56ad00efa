"""What a report holds beside a command's own record: the accounting, the receipt, versions."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version

from sam3lite_convert.convert.folder import Folder
from sam3lite_convert.plan.counts import accounting
from sam3lite_convert.plan.plan import Plan
from sam3lite_convert.records.shared import PageFacts

_PACKAGES = ("sam3lite-convert", "torch", "transformers", "safetensors", "huggingface_hub", "numpy")
_PER_TENSOR = ("tensors", "dropped")  # of a receipt: a line for each of more than a thousand keys


def provenance(plan: Plan | None, folder: Folder | None, command: str) -> PageFacts:
    """Where the figures of a page come from. ``command``: as it was typed."""
    receipt = folder.receipt if folder else None
    return PageFacts(
        accounting=accounting(plan.checkpoint, plan.names, plan) if plan else None,
        counts=plan.counts if plan else None,
        receipt={k: v for k, v in receipt.items() if k not in _PER_TENSOR} if receipt else None,
        versions=_versions(),
        command=command,
        made=datetime.date.today().isoformat(),
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
