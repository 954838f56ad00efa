"""Tokenize prompts as the original does (extra ``prompts``).

The text is cleaned as CLIP cleans it, then split by byte-level BPE. Ids begin with 49406, end with 49407 and are padded
with 0; a prompt that is too long is cut to the context, with the end id last.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sam3lite_convert.convert.clip_ids import END, PAD, START
from sam3lite_convert.errors import CannotRun

_LONGEST_WORD = 10_000  # characters
_LONGEST_PROMPT = 1_000_000  # characters

if TYPE_CHECKING:
    from torch import Tensor


def clean(text: str) -> str:
    """Unescape HTML twice, collapse whitespace, strip and lower-case. ``text`` has been fixed by ftfy before."""
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text).strip().lower()


def tokenize(prompts: Sequence[str], context: int) -> Tensor:
    """Ids of shape (prompts, context), int64.

    Raises CannotRun as ``words_of`` does, or if the context has no room for a word.
    """
    import torch

    if context < 3:
        raise CannotRun(
            f"a context of {context} has no room for a word between the start and the end id", "short_context"
        )
    ids = torch.full((len(prompts), context), PAD, dtype=torch.int64)
    for row, words in zip(ids, words_of(prompts), strict=True):
        found = cut(words, context)
        row[: len(found)] = torch.tensor(found)
    return ids


def words_of(prompts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt from the start id to the end id, neither cut nor padded.

    Raises CannotRun if the extra ``prompts`` is not installed, or if a prompt or a word of one is too long.
    """
    try:
        import ftfy
        from instant_clip_tokenizer import Tokenizer
    except ImportError:
        if sys.version_info >= (3, 13):
            raise CannotRun(
                "prompts need the package instant-clip-tokenizer, which has no build for Python 3.13 and newer: use "
                "Python 3.10 to 3.12. Without it, the default input or --seed N compare the same encoders on ids.",
                "no_tokenizer",
            ) from None
        raise CannotRun(
            "prompts need the CLIP tokenizer: pip install 'sam3lite-convert[prompts]'. Without it, the default "
            "input or --seed N compare the same encoders on ids.",
            "no_tokenizer",
        ) from None
    tokenizer = Tokenizer()
    return [[START, *tokenizer.encode(_checked(clean(ftfy.fix_text(_checked(prompt))))), END] for prompt in prompts]


def _checked(prompt: str) -> str:
    """The prompt. Raises CannotRun if it, or a word of it, is longer than the tokenizer reads in a moment: the time for
    a word grows with the square of its length."""
    if len(prompt) > _LONGEST_PROMPT:
        raise _too_long(prompt, f"has {len(prompt):,} characters", _LONGEST_PROMPT)
    longest = max(map(len, prompt.split()), default=0)
    if longest > _LONGEST_WORD:
        raise _too_long(prompt, f"holds a word of {longest:,} characters", _LONGEST_WORD)
    return prompt


def _too_long(prompt: str, what: str, most: int) -> CannotRun:
    return CannotRun(f"the prompt {prompt[:20]!r}... {what}; at most {most:,} are read: shorten it", "long_prompt")


def cut(words: list[int], context: int) -> list[int]:
    """The ids that fit into the context, with the end id last."""
    return words if len(words) <= context else [*words[: context - 1], END]
