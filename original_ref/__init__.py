"""The reference text encoder: the original's modules, state-dict keys and numbers, on torch alone.

Written from a specification of the original encoder's behaviour. There is no conversion code here.
"""

from original_ref.encoder import TextEncoder, TextStudentEncoder, Tokenizer, load_reference

__all__ = ["TextEncoder", "TextStudentEncoder", "Tokenizer", "load_reference"]
