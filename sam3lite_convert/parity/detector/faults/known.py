"""All known faults of ports of the detector, by the row of the table of taps at which they show first.

To add one, write it in the module of its stage: a change of the reference that computes exactly what the wrong port
computes. The tests make each in the tiny detector and hold the row to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from original_ref import Detector
from sam3lite_convert.parity.detector.faults.changes import DetectorFault
from sam3lite_convert.parity.detector.faults.detr import detr_faults
from sam3lite_convert.parity.detector.faults.heads import head_faults
from sam3lite_convert.parity.detector.faults.prompt import prompt_faults
from sam3lite_convert.parity.detector.faults.vision import vision_faults

FAULTS: tuple[DetectorFault, ...] = (*vision_faults(), *prompt_faults(), *detr_faults(), *head_faults())


def faults_for(row: str, model: Detector, layer: int = 0) -> Iterator[DetectorFault]:
    """Those that can explain a divergence at a tap: of this row, in this layer of the reference.

    ``row``: its name in the table of taps, ``{i}`` included, or ``outputs.NAME``.
    """
    return (fault for fault in FAULTS if fault.row == row and fault.applies(model, layer))
