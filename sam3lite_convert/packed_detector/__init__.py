"""The whole detector of a ``packed`` folder, on torch alone: picture and prompt in, scores, boxes and masks out.

Matrices are transposed by ``transpose(-1, -2)``: converters that trace a model, such as CoreML's, do not know ``.mT``.
"""

from sam3lite_convert.packed_detector.model import PackedModel
from sam3lite_convert.packed_detector.outputs import PackedOutput
from sam3lite_convert.packed_detector.picture import Objects, find_objects, prepare_image

__all__ = ["Objects", "PackedModel", "PackedOutput", "find_objects", "prepare_image"]
