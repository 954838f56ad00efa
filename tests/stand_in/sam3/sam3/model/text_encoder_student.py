"""A stand-in for the file of the same name, written from the specification: the layout of a checkout, not its code."""

import torch
from torch import nn

from sam3.backbones.mobile_clip import MobileCLIPTextTransformer

from .tokenizer_ve import SimpleTokenizer


class TextStudentEncoder(nn.Module):
    def __init__(self, cfg, context_length, output_dim=256, bpe_path=None):
        super().__init__()
        self.context_length = context_length
        self.tokenizer = SimpleTokenizer(bpe_path=bpe_path, context_length=context_length)
        self.encoder = MobileCLIPTextTransformer(cfg=cfg, projection_dim=cfg["dim"])
        self.projector = nn.Linear(cfg["dim"], output_dim)

    def forward(self, text):
        ids = self.tokenizer(text, context_length=self.context_length)
        embedded = self.encoder.forward_embedding(ids)
        memory = self.projector(self.encoder(embedded, return_all_tokens=True, input_is_embeddings=True))
        return torch.eq(ids, 0), memory.transpose(0, 1), embedded.transpose(0, 1)
