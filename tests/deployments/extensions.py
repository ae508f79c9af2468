"""Extensions for the tests: small, importable by name, one per way of writing one."""

from __future__ import annotations

import numpy as np

from deployments.extension import Extension, Result, Scored, extension
from planner.features import Array, Feature, Port


@extension(
    inputs={"image": Feature("image/raw", "FP32", (4, 4))},
    outputs={"image": Feature("image/scaled", "FP32", (4, 4))},
)
def scale(image: Array, by: float = 16.0) -> Array:
    """Scales grey values to [0, 1].

    More words, which are for readers of the code.
    """
    return image / by


@extension(
    inputs={"text": Feature("text/en", "BYTES")},
    outputs={"upper": Feature("text/upper", "BYTES"), "length": Feature("count", "INT32")},
)
def shout(text: Array) -> dict[str, Array]:
    return {
        "upper": np.array([word.upper() for word in text], dtype=object),
        "length": np.array([len(word) for word in text]),
    }


@extension(
    inputs={"series": Feature("series", "FP32", (-1,))},
    outputs={"series": Feature("series/centred", "FP32", (-1,))},
)
def centre(series: Array) -> Array:
    return series - series.mean(axis=1, keepdims=True)


class ReadBlob(Extension):
    """Says which corner is brightest."""

    inputs = {"image": Feature("image/scaled", "FP32", (4, 4))}
    outputs = {"corner": Feature("label/corner", "INT64")}
    examples = ("which corner is bright",)

    def __init__(self, sharpness: float = 4.0) -> None:
        self.sharpness = sharpness

    def setup(self) -> None:
        self.corners = np.array([[0, 0], [0, 3], [3, 0], [3, 3]])

    def infer(self, image: Array) -> Result:
        scores = np.exp(self.sharpness * image[:, self.corners[:, 0], self.corners[:, 1]])
        scores /= scores.sum(axis=1, keepdims=True)
        return Scored(scores.argmax(axis=1), scores.max(axis=1))


class Vote(Extension):
    """Joins several probabilities of the same thing."""

    inputs = {"scores": Port("scores", Feature("scores", "FP64", (3,)), many=4)}
    outputs = {"scores": Feature("scores/joined", "FP64", (3,))}

    def infer(self, scores: Array) -> Result:
        return scores.mean(axis=1)


class Dice(Extension):
    inputs = {"sides": Feature("sides", "INT32")}
    outputs = {"eyes": Feature("eyes", "INT32")}
    deterministic = False

    def setup(self) -> None:
        self.rng = np.random.default_rng(0)

    def infer(self, sides: Array) -> Result:
        return self.rng.integers(1, sides + 2)
