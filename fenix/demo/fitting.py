"""Fits the demo's models: one function per kind of model, from rows, labels and a seed. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fenix.demo.data import SEED
from fenix.demo.network import DigitNetwork
from planner.features import Array

_EPOCHS, _BATCH_ROWS, _PEAK_RATE = 7, 64, 4e-3


def fit_network(pixels: Array, labels: Array, seed: int = SEED) -> DigitNetwork:
    """Trains on the pixels (n, 64) and on their copies shifted by one pixel in four directions.

    One-cycle learning rate. Source: Smith and Topin 2018, Super-Convergence.
    """
    with torch.random.fork_rng(), _one_thread():
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
                torch.autograd.backward(torch.nn.functional.cross_entropy(network(x[rows]), y[rows]))
                optimiser.step()
                schedule.step()
    return network.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """On batches this small, threads that wait for each other took 43 s on a busy machine; one thread takes 1.5 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def fit_extra_trees(pixels: Array, labels: Array, seed: int = SEED) -> Any:
    """Extremely randomised trees. Source: Geurts, Ernst and Wehenkel 2006, Machine Learning 63."""
    return ExtraTreesClassifier(60, random_state=seed).fit(pixels, labels)


def fit_kernel(strokes: Array, labels: Array, seed: int = SEED) -> Any:
    """A kernel classifier on landmarks. Source: Williams and Seeger 2001, Using the Nystroem Method, NIPS."""
    kernel = Nystroem(gamma=0.5, n_components=600, random_state=seed)
    return make_pipeline(kernel, LogisticRegression(C=100.0, max_iter=500)).fit(strokes, labels)


def fit_glance(pixels: Array, labels: Array, seed: int = SEED) -> Any:
    """Logistic regression: a single small matrix, regularised so much that it goes by little more than the mean image
    of each class. Nothing in it is random."""
    return LogisticRegression(C=0.01, max_iter=200).fit(pixels, labels)


def fit_scaled_linear(table: Array, labels: Array, seed: int = SEED) -> Any:
    """Standardised columns, then logistic regression. Nothing in it is random."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(table, labels)


def fit_discriminant(table: Array, labels: Array, seed: int = SEED) -> Any:
    """Standardised columns, then linear discriminant analysis. Source: Fisher 1936, Annals of Eugenics 7."""
    return make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(table, labels)


def fit_forest(table: Array, labels: Array, seed: int = SEED) -> Any:
    """A random forest. Source: Breiman 2001, Machine Learning 45."""
    return RandomForestClassifier(60, random_state=seed).fit(table, labels)
