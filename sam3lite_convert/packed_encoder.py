"""The text encoder of a ``packed`` folder, built from torch's own modules; it runs without transformers.

Module names are the layout's keys. It was written independently of ``original_ref``, so that a comparison of the two
proves something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3lite_convert.convert.packed_config import PackedTextConfig
from sam3lite_convert.errors import CannotRun, UnsoundPlan
from sam3lite_convert.unforeseen import in_our_errors

if TYPE_CHECKING:
    from sam3lite_convert.convert.folder import Folder
    from sam3lite_convert.records.record import Json

ATTENTION = ("eager", "sdpa")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(),
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": lambda: nn.ReLU(),
}


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table of zeros: weights are loaded anyway, and torch's initialisation would import its compiler."""
    made: nn.Embedding = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
    return made


class PackedTextOutput(NamedTuple):
    """The outputs of the text encoder.

    tokens: (batch, sequence, hidden_size), after the final norm.
    projected: (batch, sequence, output_dim), which the detector reads.
    pooled: (batch, projection_dim).
    """

    tokens: Tensor
    projected: Tensor
    pooled: Tensor


class PositionEmbedding(nn.Module):
    """A learned position table, resized bilinearly if the sequence has another length."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.zeros(1, 1, rows, width))

    def forward(self, length: int) -> Tensor:
        table: Tensor = self.position_embedding
        if table.size(2) != length:
            table = functional.interpolate(table, (length, table.size(3)), mode="bilinear", align_corners=False)
        return table[0]


class PackedAttention(nn.Module):
    """Self-attention with the rows of q, k and v in one ``in_proj``, as in torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.num_heads = heads
        self.attention = attention
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            part.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for part in functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        )
        if self.attention == "sdpa":
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        else:
            scores = (q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)
            if attention_mask is not None:
                scores = scores + attention_mask
            mixed = scores.softmax(-1, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype) @ v
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class PackedLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: PackedTextConfig, attention: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.attention = PackedAttention(width, config.num_attention_heads, attention)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.layer_norm1(x), attention_mask)
        out: Tensor = x + self.fc2(self.activation(self.fc1(self.layer_norm2(x))))
        return out


def _conv_norm(width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2), groups=width, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class _Skip(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rbr_skip = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rbr_skip(x)
        return out


class _Mixer(_Skip):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__(width)
        self.rbr_conv = nn.ModuleList([_conv_norm(width, kernel)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rbr_conv[0](x) + self.rbr_skip(x)
        return out


class _TokenMixer(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))
        self.norm = _Skip(width)
        self.mixer = _Mixer(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer_scale * (self.mixer(x) - self.norm(x))
        return out


class _ConvFeedForward(nn.Module):
    def __init__(self, config: PackedTextConfig) -> None:
        super().__init__()
        self.conv = _conv_norm(config.hidden_size, config.repmixer_kernel_size)
        self.fc1 = nn.Conv2d(config.hidden_size, config.intermediate_size, 1)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.fc2 = nn.Conv2d(config.intermediate_size, config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(self.conv(x))))
        return out


class PackedRepMixer(nn.Module):
    """A RepMixer block. It treats the sequence as an image of height 1 and ignores the attention mask."""

    def __init__(self, config: PackedTextConfig) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(config.hidden_size, 1, 1))
        self.token_mixer = _TokenMixer(config.hidden_size, config.repmixer_kernel_size)
        self.convffn = _ConvFeedForward(config)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        image = self.token_mixer(x.transpose(-1, -2).unsqueeze(2))
        image = image + self.layer_scale * self.convffn(image)
        out: Tensor = image.squeeze(2).transpose(-1, -2)
        return out


class PackedTextEncoder(nn.Module):
    """The modules whose keys start with ``text_encoder.``."""

    def __init__(self, config: PackedTextConfig, attention: str) -> None:
        super().__init__()
        self.causal_masking = config.causal_masking
        self.token_embedding = embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        ends = {0, config.num_hidden_layers - 1} if config.use_repmixer_blocks else set()
        self.layers = nn.ModuleList(
            PackedRepMixer(config) if i in ends else PackedLayer(config, attention)
            for i in range(config.num_hidden_layers)
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.projection = nn.Parameter(torch.zeros(config.hidden_size, config.projection_dim))

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens after the final norm, and the pooled output: the token at the first greatest id, projected."""
        x = self.token_embedding(input_ids)
        length = input_ids.size(1)
        x = x + self.position_embedding(length).to(x.dtype)
        mask = None
        if self.causal_masking:
            mask = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.final_layer_norm(x)
        picked = x[torch.arange(x.size(0), device=x.device), input_ids.argmax(-1)]
        return x, picked @ self.projection


class PackedTextModel(nn.Module):
    """The text encoder with the projection that the detector reads."""

    def __init__(self, config: PackedTextConfig, attention: str = "eager") -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise CannotRun(f"attention is {' or '.join(ATTENTION)}, not {attention!r}", "usage")
        self.config = config
        self.text_encoder = PackedTextEncoder(config, attention)
        self.text_projection = nn.Linear(config.hidden_size, config.output_dim)

    def forward(self, input_ids: Tensor) -> PackedTextOutput:
        """``input_ids``: (batch, sequence), int64, padded with 0; padding is attended to."""
        tokens, pooled = self.text_encoder(input_ids)
        return PackedTextOutput(tokens, self.text_projection(tokens), pooled)

    @classmethod
    @in_our_errors
    def from_pretrained(cls, folder: str | Path, attention: str = "eager") -> PackedTextModel:
        """Load the text encoder of a folder in the packed layout; only its text tensors are read.

        The model is in evaluation mode and has the dtype of the file. Raises CannotRun if the folder does not exist or
        has another layout, UnsoundPlan if a weight is missing, Untrusted if a file is damaged. The files are those that
        ``verify`` judges: ``model.safetensors``, else the shards of its index.
        """
        from sam3lite_convert.convert.text_weights import folder_tensors

        found, config = packed_folder(folder)
        text = config.get("text_config")
        parsed = PackedTextConfig.from_dict(text if isinstance(text, dict) else {})
        keys = (key for key in found.tensors if key.startswith(("text_encoder.", "text_projection.")))
        return cls.from_weights(parsed, dict(folder_tensors(found, keys)), attention)

    @classmethod
    def from_weights(
        cls, config: PackedTextConfig, weights: Mapping[str, Tensor], attention: str = "eager"
    ) -> PackedTextModel:
        """A model with these weights (key -> tensor), which are not copied. Raises UnsoundPlan if they do not fit."""
        from sam3lite_convert.convert.text_weights import load_all

        with torch.device("meta"):
            model = cls(config, attention)
        load_all(model, weights, "the packed encoder")
        return model.requires_grad_(False).eval()


def packed_folder(folder: str | Path) -> tuple[Folder, Json]:
    """A folder in the packed layout, and its config.json.

    Raises CannotRun if the folder does not exist or has another layout, UnsoundPlan if its keys have a prefix,
    Untrusted if a file is damaged.
    """
    from sam3lite_convert.convert.config import PACKED_MODEL_TYPE
    from sam3lite_convert.convert.folder import read_folder

    found = read_folder(Path(folder))
    config = found.config or {}
    if config.get("model_type") != PACKED_MODEL_TYPE:
        raise CannotRun(f"{folder} is not a folder of the packed layout", "not_packed")
    if found.prefix:
        message = f"{folder}: every key starts with {found.prefix!r}; save the tensors without it"
        raise UnsoundPlan(message, "weights_not_loaded")
    return found, config
