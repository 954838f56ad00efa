"""Checkpoints of modules in which torch computes weights from other tensors at each call, each with the call that makes
them plain."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sam3lite_convert.checkpoint.kinds import Kind

_PARAMETRIZE = "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
# What stands in the place of a weight, what then stands beside it, what it is called, and the call that undoes it.
_COMPUTED: tuple[tuple[str, str, str, str], ...] = (
    (r"(.*\bparametrizations\..+\.)original0", r"\1original1", "weight_norm", _PARAMETRIZE),
    (r"(.*\bparametrizations\..+\.)original", r"\g<1>0._u", "spectral_norm", _PARAMETRIZE),
    (r"(.*\bparametrizations\..+\.)original", r"\1original", "parametrize", _PARAMETRIZE),
    (r"(.*)_orig", r"\1_mask", "prune", "torch.nn.utils.prune.remove(module, name)"),
    (r"(.*)_orig", r"\1_u", "spectral_norm", "torch.nn.utils.remove_spectral_norm(module)"),
    (r"(.*)_g", r"\1_v", "weight_norm", "torch.nn.utils.remove_weight_norm(module)"),
)
_TRAINED_QUANTISED = Kind(
    "a checkpoint of quantisation-aware training, with fake quantisers beside the weights",
    "Save the state dict of the model before it was prepared for quantisation",
)
_FAKE_QUANTISED = re.compile(r".*(?:_fake_quant|activation_post_process)\.")


def computed_weights(keys: Iterable[str]) -> Kind | None:
    """The kind of a checkpoint with such keys; None if there are none among them."""
    names = set(keys)
    if any(map(_FAKE_QUANTISED.match, names)):
        return _TRAINED_QUANTISED
    for pattern, beside, name, call in _COMPUTED:
        found = [m for m in map(re.compile(pattern).fullmatch, names) if m and m.expand(beside) in names]
        if found:
            those = f"{name}: {len(found):,}, such as {min(match[0] for match in found)[:200]}"
            return Kind(
                f"a checkpoint in which weights are computed from other tensors ({those})",
                f"Where it was written, call {call} for each of them, and save the state_dict() anew",
            )
    return None
