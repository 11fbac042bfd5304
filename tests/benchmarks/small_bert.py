"""A BERT of six layers, 256 wide, for sentences of 16 tokens: matrix products with few rows."""

from __future__ import annotations

from torch import nn

from tests.fakes.nets import Encoder

TOKENS, VOCABULARY = 16, 1000


def bert() -> nn.Module:
    """As a factory."""
    return Encoder(VOCABULARY, 256, 6, TOKENS)
