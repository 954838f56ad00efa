"""The reference: same modules, state-dict keys and results as the original, with torch alone.

``load_reference`` gives its text encoder, ``load_detector`` the whole detector. Written from specifications of the
original's behaviour. Contains no conversion code.
"""

from original_ref.detector import Detector, load_detector, rotary_table
from original_ref.encoder import TextEncoder, TextStudentEncoder, Tokenizer, load_reference

__all__ = [
    "Detector",
    "TextEncoder",
    "TextStudentEncoder",
    "Tokenizer",
    "load_detector",
    "load_reference",
    "rotary_table",
]
