"""The reference text encoder: same modules, state-dict keys and results as the original, with torch alone.

Written from a specification of the original encoder's behaviour. Contains no conversion code.
"""

from original_ref.encoder import TextEncoder, TextStudentEncoder, Tokenizer, load_reference

__all__ = ["TextEncoder", "TextStudentEncoder", "Tokenizer", "load_reference"]
