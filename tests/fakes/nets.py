"""Small networks of the kinds that people bring along."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Encoder(nn.Module):
    """BERT in small: token and position embeddings, a mask, transformer layers, two outputs."""

    def __init__(
        self, vocabulary: int = 50, width: int = 16, layers: int = 2, most: int = 12
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(most, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        x = self.layers(self.norm(x), src_key_padding_mask=mask == 0)
        return {"hidden": x, "pooled": torch.tanh(self.pooler(x[:, 0]))}


class Convolutional(nn.Module):
    """A few convolutions with BatchNorm, a residual and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + torch.relu(self.norm(self.deep(x)))
        return self.head(torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True).mean((2, 3)))


def encoder() -> nn.Module:
    """As a factory."""
    return Encoder()


def convolutional() -> nn.Module:
    """As a factory; BatchNorm's statistics are not those it starts with."""
    net = Convolutional()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return net


class Branching(nn.Module):
    """What it computes depends on what it is given: a branch, and a loop of unknown length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) if bool(x.sum() > 0) else self.second(x)
        while bool(y.abs().max() < 10):
            y = y * 2
        return y


class Recurrent(nn.Module):
    """An LSTM and the best of what it says: nothing that is cut around, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y, _ = self.lstm(x)
        values, indices = torch.topk(self.head(y[:, -1]), 2)
        return {"values": values, "indices": indices}


class Foreign(nn.Module):
    """It leaves torch in between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sort(x.numpy()))


def branching() -> nn.Module:
    """As a factory."""
    return Branching()


def recurrent() -> nn.Module:
    """As a factory."""
    return Recurrent()


def foreign() -> nn.Module:
    """As a factory."""
    return Foreign()
