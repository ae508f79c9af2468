"""The torch module behind `digit-network`. Alone in its file, so that only its replica imports torch."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class DigitNetwork(nn.Module):
    """A small convolutional network: pixels (n, 64) in [0, 1] in, a logit per digit (n, 10) out."""

    def __init__(self, channels: int = 12, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * 16, 10),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.layers(pixels))
