"""The noise floor: how far the reference is from itself when only its arithmetic is changed.

Measured in the run: the reference in the dtype under test against the same weights in float64.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from original_ref import TextStudentEncoder
from sam3lite_convert.parity.compare import greatest_and_row_mean
from sam3lite_convert.parity.encoders import EMBEDDINGS, FINAL, POOLED, PROJECTED, Activations
from sam3lite_convert.parity.judgement import Floor


def noise_floor(model: TextStudentEncoder, recorded: Activations, input_ids: Tensor) -> dict[str, Floor]:
    """By tap. ``recorded``: the reference's own activations for these ids.

    One module at a time goes to float64, so that no second copy of the weights is in memory.
    """
    encoder = model.encoder
    floors: dict[str, Floor] = {}
    with torch.inference_mode():
        exact = encoder.embedding_layer(input_ids).double()
        if encoder.positional_embedding is not None:
            exact = exact + _double(encoder.positional_embedding)(input_ids.shape[1])
        floors[EMBEDDINGS] = _floor(recorded[EMBEDDINGS], exact, exact)
        mask, read = encoder.causal_mask(exact), recorded[EMBEDDINGS].double()
        for i, block in enumerate(encoder.transformer):
            name, wide = f"layers.{i}", _double(block)
            alone, exact = wide(read, mask), wide(exact, mask)
            floors[name] = _floor(recorded[name], exact, alone)
            read = recorded[name].double()
        wide = _double(encoder.final_layer_norm)
        alone, exact = wide(read), wide(exact)
        floors[FINAL] = _floor(recorded[FINAL], exact, alone)
        read = recorded[FINAL].double()
        wide = _double(model.projector)
        floors[PROJECTED] = _floor(recorded[PROJECTED], wide(exact), wide(read))
        rows = torch.arange(input_ids.shape[0]), input_ids.argmax(-1)
        matrix = encoder.projection_layer.double()
        floors[POOLED] = _floor(recorded[POOLED], exact[rows] @ matrix, read[rows] @ matrix)
    return floors


def _floor(recorded: Tensor, propagated: Tensor, isolated: Tensor) -> Floor:
    (far, mean_far), (near, mean_near) = (greatest_and_row_mean(recorded, exact) for exact in (propagated, isolated))
    return Floor(far, near, mean_far, mean_near)


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()
