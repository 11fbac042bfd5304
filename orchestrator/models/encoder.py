"""A text encoder of BERT's form, with random weights: what transformers are measured and tried out with.

Its size is MiniLM's (6 layers of width 384, 12 heads; 22.6 M parameters), its vocabulary BERT's. To serve it:
`orchestrator.models.encoder:encoder --input-shape ids:1x128:int64 --input-shape mask:1x128:int64`.
"""

from __future__ import annotations

import torch
from torch import nn

VOCABULARY = 30_522
WIDTH, LAYERS, HEADS, MOST_TOKENS = 384, 6, 12, 512


class Encoder(nn.Module):
    """Token and position embeddings, transformer layers, and a pooler over the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(MOST_TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Float32 [batch, WIDTH] of int64 `ids` and `mask` [batch, tokens]; a mask of 0 hides a token."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        x = self.layers(self.norm(x), src_key_padding_mask=mask == 0)
        return torch.tanh(self.pooler(x[:, 0]))


def encoder() -> nn.Module:
    """As a factory."""
    return Encoder()
