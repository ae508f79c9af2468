"""The digits network: three unlike ways to read a handwritten digit, and what joins them.

    image ── normalise ──┬── digit-network (torch) ─────────────────────┬── fuse-scores ── label ── parity
                         ├── digit-trees (scikit-learn) ────────────────┤
                         └── stroke-features ── digit-strokes (sklearn) ┘

Each of the three gives a score per digit. A reader behind one of them (`read-network`, `read-strokes`) makes it a
model of its own; the trees have none, because alone they cost five times what the network costs for no more accuracy.
`glance-digit` reads the pixels directly: the cheapest, and the start of cascades. `locate-digit` (scans.py) finds the
image in a scan, and with that one step all of this reads scans, too.
"""

from __future__ import annotations

import numpy as np

from deployments.extension import Scored, extension
from fenix.demo.data import GREYS
from planner.errors import BadInput
from planner.features import Array, Feature

N_BLOCKS, N_DIRECTIONS = 9, 8

IMAGE = Feature("image/digit", "UINT8", (8, 8))
PIXELS = Feature("pixels/digit", "FP32", (64,))
STROKES = Feature("strokes/digit", "FP32", (N_BLOCKS * N_DIRECTIONS,))
NETWORK_SCORES = Feature("scores/digit/network", "FP32", (10,))
TREES_SCORES = Feature("scores/digit/trees", "FP32", (10,))
STROKES_SCORES = Feature("scores/digit/strokes", "FP32", (10,))
DIGIT = Feature("label/digit", "INT64")
PARITY = Feature("label/parity", "INT64")

_VOTES = (2.0, 1.0, 1.0)  # of network, trees and strokes
_LEAST_SHARE = 0.01  # of a score, so that no single model can veto what the other two agree on


@extension(inputs={"image": IMAGE}, outputs={"pixels": PIXELS})
def normalise(image: Array) -> Array:
    """Turns a scanned digit of 8 x 8 grey values from 0 to 16 into 64 numbers from 0 to 1."""
    if image.max(initial=0) > GREYS:
        row = int(np.argmax(image.reshape(len(image), -1).max(axis=1) > GREYS))
        raise BadInput(f"input 'image' has a grey value above {GREYS} in row {row}.", hint="Scale it to 0 to 16.")
    return image.reshape(len(image), -1).astype(np.float32) / GREYS


@extension(inputs={"pixels": PIXELS}, outputs={"strokes": STROKES})
def stroke_features(pixels: Array) -> Array:
    """Describes a digit by the directions of its strokes in nine overlapping blocks of the image.

    Histograms of oriented gradients. Source: Dalal and Triggs 2005, CVPR.
    """
    padded = np.pad(pixels.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    direction = np.arctan2(down, across) * (N_DIRECTIONS / (2 * np.pi))
    half = N_DIRECTIONS / 2
    apart = np.abs((direction[..., None] - np.arange(N_DIRECTIONS) + half) % N_DIRECTIONS - half)
    votes = np.hypot(across, down)[..., None] * np.maximum(0.0, 1.0 - apart)
    corners = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)]
    blocks = np.stack([votes[:, r : r + 4, c : c + 4].sum(axis=(1, 2)) for r, c in corners], axis=1)
    blocks /= np.sqrt((blocks**2).sum(axis=(1, 2), keepdims=True) + 1e-3)
    features: Array = np.sqrt(blocks).reshape(len(pixels), -1).astype(np.float32)
    return features


@extension(inputs={"scores": NETWORK_SCORES}, outputs={"digit": DIGIT}, kind="rule")
def read_network(scores: Array) -> Scored:
    """Reads the digit that the neural network finds most likely."""
    return _most_likely(scores)


@extension(inputs={"scores": STROKES_SCORES}, outputs={"digit": DIGIT}, kind="rule")
def read_strokes(scores: Array) -> Scored:
    """Reads the digit that the directions of the strokes speak for."""
    return _most_likely(scores)


@extension(
    inputs={"network": NETWORK_SCORES, "trees": TREES_SCORES, "strokes": STROKES_SCORES},
    outputs={"digit": DIGIT},
)
def fuse_scores(network: Array, trees: Array, strokes: Array) -> Scored:
    """Reads the digit that neural network, trees and strokes agree on best: three opinions, one answer.

    The geometric mean of the scores, each at least 1 %; the network, which alone is right most often, counts twice.
    Source: Hinton 1999, Products of Experts, ICANN.
    """
    logs = [np.log(np.maximum(scores, _LEAST_SHARE)) for scores in (network, trees, strokes)]
    pooled = np.exp(np.average(logs, axis=0, weights=_VOTES))
    return _most_likely(pooled / pooled.sum(axis=1, keepdims=True))


@extension(
    inputs={"digit": DIGIT},
    outputs={"parity": PARITY},
    kind="rule",
    examples=("is this number even or odd",),
)
def parity(digit: Array) -> Array:
    """Says whether a digit is even (0) or odd (1)."""
    return digit % 2


def _most_likely(scores: Array) -> Scored:
    best = scores.argmax(axis=1)
    return Scored(best.astype(np.int64), np.take_along_axis(scores, best[:, None], axis=1)[:, 0])
