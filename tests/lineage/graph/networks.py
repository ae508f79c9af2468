"""Small networks for digits, trained in a tenth of a second: 64 pixels, hidden units, 10 logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any]]


@cache
def digits() -> tuple[Floats, npt.NDArray[np.int64]]:
    """Pixels (n, 64) in 0..1, and labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16.0).astype(np.float32), labels


def fresh(seed: int, *hidden: int) -> Tensors:
    """Untrained (He et al. 2015)."""
    rng = np.random.default_rng(seed)
    sizes = [64, *(hidden or (32, 32)), 10]
    tensors: Tensors = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        tensors[f"{i}.weight"] = rng.normal(0.0, np.sqrt(2.0 / n_in), (n_out, n_in)).astype(np.float32)
        tensors[f"{i}.bias"] = np.zeros(n_out, np.float32)
    return tensors


def trained(
    start: Mapping[str, npt.NDArray[Any]],
    seed: int,
    n_steps: int = 600,
    rate: float = 0.1,
    frozen: Collection[str] = (),
    noise: float = 0.0,
) -> Tensors:
    """Stochastic gradient descent from `start`, on batches of 32 digits that `seed` draws, with noise on the pixels."""
    rng = np.random.default_rng(seed)
    tensors = {name: array.copy() for name, array in start.items()}
    pixels, labels = digits()
    n_layers = len(tensors) // 2
    for _ in range(n_steps):
        rows = rng.integers(0, len(pixels), 32)
        seen = [pixels[rows] + noise * rng.normal(size=(32, 64)).astype(np.float32)]
        for i in range(n_layers):
            made = seen[-1] @ tensors[f"{i}.weight"].T + tensors[f"{i}.bias"]
            seen.append(np.maximum(made, 0.0) if i < n_layers - 1 else made)
        slope = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(32), labels[rows]] -= 1.0
        for i in reversed(range(n_layers)):
            of_weight, of_bias = slope.T @ seen[i] / 32, slope.mean(axis=0)
            slope = (slope @ tensors[f"{i}.weight"]) * (seen[i] > 0.0)
            for name, change in ((f"{i}.weight", of_weight), (f"{i}.bias", of_bias)):
                if name not in frozen:
                    tensors[name] -= (rate * change).astype(np.float32)
    return tensors


def accuracy(tensors: Mapping[str, npt.NDArray[Any]]) -> float:
    """On all digits, those of the training among them."""
    pixels, labels = digits()
    n_layers = len(tensors) // 2
    for i in range(n_layers):
        pixels = pixels @ tensors[f"{i}.weight"].T + tensors[f"{i}.bias"]
        pixels = np.maximum(pixels, 0.0) if i < n_layers - 1 else pixels
    return float(np.mean(pixels.argmax(axis=1) == labels))
