"""What ``demo`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sam3lite_convert.records.record import Document

if TYPE_CHECKING:
    from sam3lite_convert.records.convert import ConvertDocument
    from sam3lite_convert.records.inspect import InspectDocument
    from sam3lite_convert.records.parity import ParityDocument
    from sam3lite_convert.records.verify import VerifyDocument

    StepDocument = InspectDocument | ConvertDocument | VerifyDocument | ParityDocument  # of one command


@dataclass(frozen=True, kw_only=True)
class DemoDocument(Document):
    """The main job on a small checkpoint.

    converted: by layout; a layout whose encoder needs a package that is not installed is not compared.
    verified: by layout; a layout whose encoder needs a package that is not installed is not compared.
    compared: by layout; a layout whose encoder needs a package that is not installed is not compared.
    """

    inspected: InspectDocument
    converted: dict[str, ConvertDocument]
    verified: dict[str, VerifyDocument]
    compared: dict[str, ParityDocument]
    verdict: Literal["proven", "mismatch"]
