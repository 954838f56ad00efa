"""A thousand noun phrases, as people ask a detector for things: an attribute and a noun each, always the same."""

from __future__ import annotations

import torch

from sam3lite_convert.convert.clip_ids import framing_ids
from sam3lite_convert.convert.prompts import tokenize
from sam3lite_convert.errors import CannotRun
from sam3lite_convert.parity.inputs import Inputs, framed

_ATTRIBUTES = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "orange", "pink", "small", "large", "wooden",
    "metal", "plastic", "old", "new", "broken", "dirty", "striped",
)  # fmt: skip
_NOUNS = (
    "car", "bus", "delivery truck", "bicycle", "boat", "train", "chair", "dining table", "park bench", "sofa",
    "desk lamp", "clock", "coffee cup", "bottle", "bowl", "spoon", "cardboard box", "basket", "bag", "umbrella",
    "door", "window", "fence", "garden gate", "ladder", "bridge", "house", "roof", "water tower", "street sign",
    "traffic light", "fire hydrant", "bucket", "brush", "pencil", "book", "mobile phone", "camera", "radio", "toy",
    "ball", "kite", "drum", "guitar", "running shoe", "hat", "bicycle helmet", "suitcase", "shopping cart", "doll",
)  # fmt: skip


def noun_phrases() -> tuple[str, ...]:
    """The phrases; no two are alike."""
    return tuple(f"{attribute} {noun}" for noun in _NOUNS for attribute in _ATTRIBUTES)


def phrase_inputs(context: int, vocab: int) -> Inputs:
    """The phrases as ids of shape (1000, context).

    Without the tokenizer (extra ``prompts``), or if the vocabulary is not CLIP's, each word is one id, and the inputs
    say so: phrases that share a word then still share an id.
    """
    phrases = noun_phrases()
    start, end = framing_ids(vocab)
    try:
        ids = tokenize(phrases, context)
        if int(ids.max()) < vocab:
            return Inputs(ids, f"{len(phrases):,} built-in noun phrases", phrases)
        why = "the vocabulary is not CLIP's"
    except CannotRun as fault:
        if fault.code != "no_tokenizer":
            raise
        why = "without the extra 'prompts'"
    words = sorted({word for phrase in phrases for word in phrase.split()})
    numbers = {word: 1 + n % max(start - 1, 1) for n, word in enumerate(words)}
    rows = [framed([numbers[word] for word in phrase.split()], context, start, end) for phrase in phrases]
    return Inputs(torch.tensor(rows), f"{len(phrases):,} built-in noun phrases, each word as one id ({why})", phrases)
