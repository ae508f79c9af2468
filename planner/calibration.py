"""Calibration: what a confidence is worth, as far as the evidence tells. Temperatures, and scaling by them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from planner.cards import Card, Evidence
from planner.features import Array

_LEAST_RATIO, _MOST_RATIO = 0.05, 20.0  # of temperatures
_SURE = 5e-4  # evidence is kept in float16: nearer to 0 and 1 than this it cannot tell
_MOST_EXPONENT = 700.0  # of e, that a float holds


def scaled(confidence: float, temperature: float) -> float:
    """A confidence in [0, 1] after temperature scaling: its log odds divided by the temperature."""
    if temperature == 1.0 or confidence <= 0.0 or confidence >= 1.0:
        return confidence
    odds = math.log(confidence / (1.0 - confidence)) / temperature
    return 1.0 / (1.0 + math.exp(min(-odds, _MOST_EXPONENT)))


def scaled_rows(confidence: Array, temperature: float) -> Array:
    """Confidences, shape (n_rows,), each as `scaled` gives it; float64."""
    sure: Array = np.asarray(confidence, dtype=np.float64)
    if temperature == 1.0:
        return sure
    with np.errstate(divide="ignore", over="ignore"):  # 0 and 1 have no odds, and stay what they are
        made: Array = 1.0 / (1.0 + np.exp(-(np.log(sure) - np.log1p(-sure)) / temperature))
    return made


def fit_temperature(confidence: Array, right: Array) -> float:
    """The temperature, in [0.05, 20], under which these confidences say best how often they are right.

    `confidence` is float (n_rows,) in [0, 1], `right` boolean (n_rows,). Above 1 where they claim too much, below 1
    where too little, 1 where there are no rows. Least negative log likelihood of `right`; the logits of other classes
    are not known here, so that of the answer against all others is divided. Targets are drawn in as Platt has it, so
    that rows which are all right do not ask for certainty.
    Sources: Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks, ICML; Platt 1999,
    Probabilistic Outputs for Support Vector Machines.
    """
    sure = np.clip(np.asarray(confidence, dtype=np.float64), _SURE, 1.0 - _SURE)
    logits = np.log(sure / (1.0 - sure))
    n_right = int(np.count_nonzero(right))
    n_wrong = len(logits) - n_right
    target = np.where(right, (n_right + 1.0) / (n_right + 2.0), 1.0 / (n_wrong + 2.0))

    def slope(sharpness: float) -> float:
        """Of the negative log likelihood, which is convex in the sharpness 1 / T."""
        return float(np.sum((1.0 / (1.0 + np.exp(-sharpness * logits)) - target) * logits))

    low, high = 1.0 / _MOST_RATIO, 1.0 / _LEAST_RATIO
    if not np.any(logits):
        return 1.0
    if slope(low) >= 0.0:
        return _MOST_RATIO
    if slope(high) <= 0.0:
        return _LEAST_RATIO
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0.0 else (middle, high)
    return 1.0 / math.sqrt(low * high)


def temperature_of(card: Card) -> float:
    """The temperature that the card's evidence asks for; 1 where it has none or gives no confidence."""
    return 1.0 if card.evidence is None else _temperature(card.evidence)


@lru_cache(maxsize=4096)
def _temperature(evidence: Evidence) -> float:
    confidence = evidence.confidence_rows()
    return 1.0 if confidence is None else fit_temperature(confidence, evidence.correct_rows())
