"""The reference: same modules, state-dict keys and results as the original, with torch alone.

``load_reference`` gives its text encoder, ``load_clip_text`` that of its teacher, SAM3 itself, and ``load_detector``
the whole detector. Written from specifications of the original's behaviour. Contains no conversion code.
"""

from original_ref.clip_text import ClipText, load_clip_text
from original_ref.detector import Detector, load_detector, rotary_table
from original_ref.encoder import TextEncoder, TextStudentEncoder, load_reference
from original_ref.text_reference import TextParts, TextReference, Tokenizer

__all__ = [
    "ClipText",
    "Detector",
    "TextEncoder",
    "TextParts",
    "TextReference",
    "TextStudentEncoder",
    "Tokenizer",
    "load_clip_text",
    "load_detector",
    "load_reference",
    "rotary_table",
]
