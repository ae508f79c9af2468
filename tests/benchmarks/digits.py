"""Worlds of real digits: small models that see the scikit-learn digits whole, noisy, blurred, shifted or inverted.

Which digits come, how they are corrupted, and what each model says of them is real: rows that no model was trained on,
corrupted anew, with the model's own prediction and the time that a call took. Cards promise what the models' authors
measured, each on data like that it was trained on, so the planner's first is seldom the best.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.choice.policy import FEATURES, Arm, value
from planner.choice.worlds import Truth, World
from planner.goals import Objective

Floats = npt.NDArray[np.float64]

CORRUPTIONS = ("clean", "noise", "blur", "shift", "inverted")
HELD_OUT = 1  # the seed that says which digits are; policies were tuned with those of seed 0
_N_TRAIN, _N_CARD = 800, 200  # digits for training, and for the card; the others are held out
_DRAWINGS = 5  # of each held-out digit under each corruption
_TIMED = 300
_COST = 2e-6  # of one multiplication


def corrupted(images: Floats, kind: str, rng: np.random.Generator) -> Floats:
    """Digits of shape (n, 8, 8), grey values in 0..1, as they come in."""
    if kind == "noise":
        return np.clip(images + rng.normal(0.0, 0.45, images.shape), 0.0, 1.0)
    if kind == "blur":
        from scipy.ndimage import gaussian_filter

        return np.asarray(gaussian_filter(images, (0.0, 1.3, 1.3)))
    if kind == "shift":
        moved = np.zeros_like(images)
        for i, (down, right) in enumerate(rng.integers(-2, 3, (len(images), 2))):
            whole = np.pad(images[i], 2)
            moved[i] = whole[2 - down : 10 - down, 2 - right : 10 - right]
        return moved
    return 1.0 - images if kind == "inverted" else images


@dataclass(frozen=True, slots=True)
class Models:
    """What is known of the models on held-out digits.

    `arms` are in the planner's order. `right` of shape (n_corruptions, n_arms, n_rows) says who is right on which row,
    `accuracy` (n_corruptions, n_arms) how often, `features` (n_corruptions, n_rows, 2) are mean and deviation of the
    rows. `times_ms` are of single calls, by arm.
    """

    arms: tuple[Arm, ...]
    right: npt.NDArray[np.bool_]
    accuracy: tuple[tuple[float, ...], ...]
    features: Floats
    times_ms: tuple[tuple[float, ...], ...]

    @property
    def n_rows(self) -> int:
        return self.right.shape[2]


def _untrained() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """The models by name, with the corruptions of the data that each is trained on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    def mlp(*sizes: int) -> Any:
        return MLPClassifier(sizes, max_iter=50, learning_rate_init=0.005, random_state=0)

    return {
        "clean-linear": (LogisticRegression(max_iter=300), ("clean",)),
        "clean-svc": (SVC(), ("clean",)),
        "noise-mlp": (mlp(64), ("noise",)),
        "blur-mlp": (mlp(64), ("blur",)),
        "shift-mlp": (mlp(128), ("shift",)),
        "inverted-mlp": (mlp(32), ("inverted",)),
        "all-linear": (LogisticRegression(max_iter=300), CORRUPTIONS),
        "all-mlp": (mlp(256, 64), CORRUPTIONS),
    }


def _multiplications(model: Any) -> int:
    """How many a row takes, about."""
    if hasattr(model, "coefs_"):
        return sum(int(weights.size) for weights in model.coefs_)
    if hasattr(model, "support_vectors_"):
        return int(model.support_vectors_.size)
    return int(model.coef_.size)


@cache
def models(seed: int = HELD_OUT) -> Models:
    """Trains them all (5 s); `seed` decides which digits are held out. The same for the whole process."""
    import warnings

    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8) / 16.0
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    train, card, held = np.split(order, [_N_TRAIN, _N_TRAIN + _N_CARD])
    made = []
    for name, (model, kinds) in _untrained().items():
        n_each = max(1, 3 // len(kinds))
        rows = np.concatenate([corrupted(images[train], kind, rng) for kind in kinds for _ in range(n_each)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of networks that could have been trained for longer
            model.fit(rows.reshape(len(rows), -1), np.tile(labels[train], n_each * len(kinds)))
        seen = np.concatenate([corrupted(images[card], kind, rng) for kind in kinds]).reshape(-1, 64)
        promised = float(np.mean(model.predict(seen) == np.tile(labels[card], len(kinds))))
        times_ms = []
        for row in range(_TIMED):
            begun_ns = time.thread_time_ns()
            model.predict(seen[row % len(seen)][None])
            times_ms.append((time.thread_time_ns() - begun_ns) / 1e6)
        arm = Arm(name, promised, len(seen), float(np.median(times_ms)), _COST * _multiplications(model))
        made.append((arm, model, tuple(times_ms)))
    made.sort(key=lambda one: -value(Objective(), one[0].accuracy, one[0].p50_ms, one[0].cost))
    truths = np.tile(labels[held], _DRAWINGS)
    drawings = []
    for kind in CORRUPTIONS:
        seen = np.concatenate([corrupted(images[held], kind, rng) for _ in range(_DRAWINGS)]).reshape(-1, 64)
        drawings.append(seen)
    right = np.array([[model.predict(seen) == truths for _, model, _ in made] for seen in drawings])
    features = np.array([np.stack([seen.mean(axis=1), seen.std(axis=1)], axis=1) for seen in drawings])
    accuracy = tuple([tuple(of_arm) for of_arm in right.mean(axis=2).T.tolist()])
    return Models(tuple([arm for arm, _, _ in made]), right, accuracy, features, tuple([ms for _, _, ms in made]))


Mix = Callable[[int, float], Sequence[float]]  # of the corruptions, for a segment and a moment in 0..1


@dataclass(frozen=True, slots=True)
class Stream:
    """Which held-out row comes as request number `i`, and how it is corrupted."""

    known: Models
    mix: Mix
    rows: Sequence[int]
    drawn: Sequence[float]

    def request(self, segment: int, step: int, n: int) -> tuple[int, int]:
        """Numbers of the corruption and of the row."""
        weights = self.mix(segment, step / n)
        sums = list(accumulate(weights))
        return bisect(sums, self.drawn[step] * sums[-1]), self.rows[step]

    def outcome(self, arm: int, segment: int, step: int, n: int, rng: random.Random) -> tuple[bool, float, float]:
        """Whether it failed, how many ms it took, and whether it was right."""
        kind, row = self.request(segment, step, n)
        return False, rng.choice(self.known.times_ms[arm]), float(self.known.right[kind, arm, row])

    def truth(self, arm: int, segment: int, step: int, n: int) -> Truth:
        """Over all held-out digits, corrupted as they are at that moment."""
        weights, accuracy = self.mix(segment, step / n), self.known.accuracy[arm]
        share = sum([w * a for w, a in zip(weights, accuracy, strict=True)]) / sum(weights)
        return Truth(share, self.known.arms[arm].p50_ms, self.known.arms[arm].cost)

    def features(self, kind: int, row: int) -> tuple[float, ...]:
        """As `Context.features` has them."""
        mean, deviation = self.known.features[kind, row]
        seen = {"log_rows": math.log(2.0), "log_kilo": math.log(1.064), "mean": mean, "deviation": deviation}
        return tuple([float(seen.get(name, 0.0)) for name in FEATURES])


def stream(mix: Mix, seed: int, n: int) -> Stream:
    """Requests in an order of their own for each seed."""
    rng, known = np.random.default_rng(seed), models()
    return Stream(known, mix, rng.integers(0, known.n_rows, n).tolist(), rng.random(n).tolist())


def only(kind: int) -> tuple[float, ...]:
    return tuple([float(i == kind) for i in range(len(CORRUPTIONS))])


def _world(
    name: str, mix: Mix, seed: int, n: int, *, n_segments: int = 1, late: bool = False, fixed: bool = True
) -> World:
    made = stream(mix, seed, n)
    delay, missing = (200, 0.05) if late else (0, 0.0)
    name = f"{name}, late" if late else name
    return World(
        name, made.known.arms, n_segments, made.truth, delay, missing, fixed, outcome=made.outcome, counted=True
    )


def _order(seed: int) -> list[int]:
    return random.Random(seed).sample(range(len(CORRUPTIONS)), len(CORRUPTIONS))


def mix_of_users(seed: int) -> Mix:
    """Each of up to five users has a corruption of the own."""
    order = _order(seed)
    return lambda segment, t: only(order[segment])


def one(seed: int, n: int, late: bool = False) -> World:
    """All digits are corrupted in the same way; in which differs from seed to seed, and is never none."""
    kind = 1 + seed % (len(CORRUPTIONS) - 1)
    return _world("one corruption", lambda s, t: only(kind), seed, n, late=late)


def mixed(seed: int, n: int, late: bool = False) -> World:
    """Each request has a corruption of its own, and nothing tells which."""
    return _world("all mixed", lambda s, t: (1.0,) * len(CORRUPTIONS), seed, n, late=late)


def turning(seed: int, n: int, late: bool = False) -> World:
    """The corruption changes at once, three times."""
    order = _order(seed)
    return _world("in turns", lambda s, t: only(order[int(4 * t)]), seed, n, late=late, fixed=False)


def growing(seed: int, n: int, late: bool = False) -> World:
    """Digits are clean at first, and corrupted ones become more from moment to moment."""
    kind = 1 + seed % (len(CORRUPTIONS) - 1)

    def mix(segment: int, t: float) -> Sequence[float]:
        return tuple([(1.0 - t) * a + t * b for a, b in zip(only(0), only(kind), strict=True)])

    return _world("growing", mix, seed, n, late=late, fixed=False)


def by_user(seed: int, n: int, late: bool = False) -> World:
    """Four users, each with a corruption of the own."""
    return _world("per user", mix_of_users(seed), seed, n, n_segments=4, late=late)


def by_user_turning(seed: int, n: int, late: bool = False) -> World:
    """Four users; halfway, two of them change to other corruptions."""
    order = _order(seed)

    def mix(segment: int, t: float) -> Sequence[float]:
        return only(order[segment] if t < 0.5 or segment > 1 else order[4 - segment * 4])

    return _world("per user, in turns", mix, seed, n, n_segments=4, late=late, fixed=False)


WORLDS: tuple[Callable[..., World], ...] = (one, mixed, turning, growing, by_user, by_user_turning)
