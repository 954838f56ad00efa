"""A stand-in for the file of the same name, written from the specification: the layout of a checkout, not its code."""

import torch
import torch.nn.functional as F
from timm.models.layers import DropPath, trunc_normal_
from torch import nn
from torchvision.ops import StochasticDepth


class NormF32(nn.LayerNorm):
    def forward(self, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, width * 3)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, mask):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        weights = (q / q.shape[-1] ** 0.5) @ k.mT
        if mask is not None:
            weights = weights + mask
        weights = weights.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.pre_norm_mha = nn.Sequential(NormF32(width), Attention(width, heads), nn.Dropout(0.0))
        self.pre_norm_ffn = nn.Sequential(
            NormF32(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width)
        )
        self.drop_path = StochasticDepth(p=0.1, mode="row")

    def forward(self, x, mask=None):
        norm, attention, dropout = self.pre_norm_mha
        x = x + self.drop_path(dropout(attention(norm(x), mask)))
        return x + self.drop_path(self.pre_norm_ffn(x))


def depthwise(width):
    return nn.Conv2d(width, width, (1, 11), padding=(0, 5), groups=width, bias=False)


def conv_norm(width):
    out = nn.Sequential()
    out.add_module("conv", depthwise(width))
    out.add_module("bn", nn.BatchNorm2d(width))
    return out


class Branches(nn.Module):
    def __init__(self, width, convs):
        super().__init__()
        self.rbr_skip = nn.BatchNorm2d(width)
        self.rbr_conv = nn.ModuleList(conv_norm(width) for _ in range(convs))

    def forward(self, x):
        return self.rbr_skip(x) + sum(branch(x) for branch in self.rbr_conv)


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = Branches(width, 0)
        self.mixer = Branches(width, 1)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-5))

    def forward(self, x):
        return x + (self.mixer(x) - self.norm(x)) * self.layer_scale


class Ffn(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.conv = conv_norm(width)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)
        trunc_normal_(self.fc1.weight, std=0.02)
        trunc_normal_(self.fc2.weight, std=0.02)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(self.conv(x))))


class RepMixer(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.token_mixer = Mixer(width)
        self.convffn = Ffn(width, hidden)
        self.drop_path = DropPath(0.1)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-5))

    def forward(self, x, mask=None):
        image = self.token_mixer(x.mT[:, :, None, :])
        return (image + self.drop_path(self.layer_scale * self.convffn(image)))[:, :, 0, :].mT


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1, rows, width))

    def forward(self, length):
        table = self.pos_embed
        if length != table.shape[2]:
            table = F.interpolate(table, size=(length, table.shape[3]), mode="bilinear")
        return table[0]


class Positions(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.pos_embed = Table(rows, width)

    def forward(self, length):
        return self.pos_embed(length)


class MobileCLIPTextTransformer(nn.Module):
    def __init__(self, cfg, projection_dim):
        super().__init__()
        width, heads = cfg["dim"], cfg["n_heads_per_layer"]
        hidden = int(width * cfg["ffn_multiplier_per_layer"])
        self.causal_masking = cfg["causal_masking"]
        self.embedding_layer = nn.Embedding(cfg["vocab_size"], width)
        self.positional_embedding = None if cfg["no_pos_embedding"] else Positions(cfg["context_length"], width)
        self.embedding_dropout = nn.Dropout(cfg["embed_dropout"])
        layers = [Layer(width, heads, hidden) for _ in range(cfg["n_transformer_layers"])]
        if cfg["model_name"] == "mct":
            layers = [RepMixer(width, hidden), *layers, RepMixer(width, hidden)]
        self.transformer = nn.ModuleList(layers)
        self.final_layer_norm = {"layer_norm_fp32": NormF32}[cfg["norm_layer"]](width)
        self.projection_layer = nn.Parameter(torch.randn(width, projection_dim))

    def forward_embedding(self, ids):
        x = self.embedding_layer(ids)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding(ids.shape[1]).to(x.dtype)
        return self.embedding_dropout(x)

    def forward(self, text, return_all_tokens=False, input_is_embeddings=False):
        x = text if input_is_embeddings else self.forward_embedding(text)
        mask = None
        if self.causal_masking:
            mask = x.new_full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        for layer in self.transformer:
            x = layer(x, mask)
        x = self.final_layer_norm(x)
        if return_all_tokens:
            return x
        return x[torch.arange(len(x)), text.argmax(-1)] @ self.projection_layer
