"""Fits the demo's models on the train parts: one function per model. Nothing here stores or deploys."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fenix.demo.data import SEED
from fenix.demo.network import DigitNetwork
from planner.features import Array

_EPOCHS, _BATCH_ROWS, _PEAK_RATE = 10, 64, 4e-3


def fit_network(pixels: Array, labels: Array, seed: int = SEED) -> DigitNetwork:
    """Trains on the pixels (n, 64) and on their copies shifted by one pixel in four directions.

    One-cycle learning rate. Source: Smith and Topin 2018, Super-Convergence.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DigitNetwork()
        x, y = torch.from_numpy(with_shifted(pixels)), torch.from_numpy(np.tile(labels, 5))
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        starts = range(0, len(x), _BATCH_ROWS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=_EPOCHS * len(starts))
        for _ in range(_EPOCHS):
            order = torch.randperm(len(x))
            for start in starts:
                rows = order[start : start + _BATCH_ROWS]
                optimiser.zero_grad()
                torch.autograd.backward(torch.nn.functional.cross_entropy(network.logits(x[rows]), y[rows]))
                optimiser.step()
                schedule.step()
    return network.eval()


def with_shifted(pixels: Array) -> Array:
    """The images (n, 64) followed by their copies moved left, right, up and down: (5 n, 64)."""
    images = pixels.reshape(-1, 8, 8)
    copies = [images]
    for axis in (1, 2):
        for step in (-1, 1):
            moved = np.roll(images, step, axis=axis)
            edge = np.moveaxis(moved, axis, 0)
            edge[0 if step == 1 else -1] = 0.0  # what rolled in from the other side
            copies.append(moved)
    return np.concatenate(copies).reshape(-1, 64)


def fit_trees(pixels: Array, labels: Array, seed: int = SEED) -> Any:
    """Extremely randomised trees on the pixels. Source: Geurts, Ernst and Wehenkel 2006, Machine Learning 63."""
    return ExtraTreesClassifier(60, random_state=seed).fit(pixels, labels)


def fit_strokes(strokes: Array, labels: Array, seed: int = SEED) -> Any:
    """A kernel classifier on stroke features. Source: Williams and Seeger 2001, Using the Nystroem Method, NIPS."""
    kernel = Nystroem(gamma=1.0, n_components=400, random_state=seed)
    return make_pipeline(kernel, LogisticRegression(C=100.0, max_iter=500)).fit(strokes, labels)


def fit_quick(pixels: Array, labels: Array) -> Any:
    """Logistic regression on the pixels: a single small matrix."""
    return LogisticRegression(max_iter=300).fit(pixels, labels)


def fit_linear(table: Array, labels: Array) -> Any:
    """Standardised columns, then logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(table, labels)


def fit_forest(table: Array, labels: Array, seed: int = SEED) -> Any:
    """A random forest. Source: Breiman 2001, Machine Learning 45."""
    return RandomForestClassifier(60, random_state=seed).fit(table, labels)
