"""How sure a figure is: intervals in closed form, for independent outcomes. Nothing is resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import bdtrik, gammaincinv, ndtri, stdtrit

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, the interval that holds the true one in `LEVEL` of all cases, and the number of outcomes behind it.

    `high` is infinite where `n` outcomes are too few to give a limit.
    """

    value: float
    low: float
    high: float
    n: int

    def plain(self) -> dict[str, float | int | None]:
        """As JSON has it: what is not finite is None."""
        finite = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {**{name: value if math.isfinite(value) else None for name, value in finite.items()}, "n": self.n}


def _z(level: float) -> float:
    return float(ndtri(0.5 + level / 2))


def share(n_hits: float, n: int, level: float = LEVEL) -> Estimate | None:
    """A share, with the Wilson score interval; None without outcomes. Source: Wilson 1927, JASA 22."""
    if n <= 0:
        return None
    z, p = _z(level), n_hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def f1(n_right: int, n_predicted: int, support: int, level: float = LEVEL) -> Estimate | None:
    """F1 of one class: 2 * right / (predicted + support); None where the class was neither there nor predicted.

    Of the outcomes that concern the class (right, missed or wrongly predicted) the right ones are a share J, and
    F1 = 2J / (1 + J) grows with it: the limits are those of the Wilson interval of J, carried over.
    """
    n = n_predicted + support - n_right
    hits = share(n_right, n, level)
    if hits is None:
        return None
    value, low, high = (2 * j / (1 + j) for j in (hits.value, hits.low, hits.high))
    return Estimate(value, low, high, n)


def mean(n: int, total: float, squares: float, level: float = LEVEL) -> Estimate | None:
    """A mean from the number, the sum and the sum of squares, with Student's interval; None without outcomes.

    With a single outcome the limits are infinite. Source: Student 1908, Biometrika 6.
    """
    if n <= 0:
        return None
    value = total / n
    if n == 1:
        return Estimate(value, -math.inf, math.inf, 1)
    variance = max(0.0, squares - total * value) / (n - 1)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * math.sqrt(variance / n)
    return Estimate(value, value - half, value + half, n)


def rate(n: int, over_s: float, level: float = LEVEL) -> Estimate | None:
    """Events per second, with the exact interval of a Poisson count; None where no time has passed.

    Arrivals in bursts vary more than that. Source: Garwood 1936, Biometrika 28.
    """
    if over_s <= 0.0:
        return None
    low = float(gammaincinv(n, 0.5 - level / 2)) if n else 0.0
    high = float(gammaincinv(n + 1, 0.5 + level / 2))
    return Estimate(n / over_s, low / over_s, high / over_s, n)


def quantile_ranks(n: int, q: float, level: float = LEVEL) -> tuple[int, int]:
    """Between which ranks (1 to n) of `n` ordered values the quantile `q` lies: 0 and n + 1 where there is no limit.

    Distribution-free: the number of values below the quantile is binomial. Source: Thompson 1936, Annals of
    Mathematical Statistics 7.
    """
    low = math.ceil(float(bdtrik(0.5 - level / 2, n, q)) - 1e-9)
    high = math.ceil(float(bdtrik(0.5 + level / 2, n, q)) - 1e-9) + 1
    return max(0, low), min(high, n + 1)


def ratio_of_means(n: int, value: float, variance_of_log: float, level: float = LEVEL) -> tuple[float, float]:
    """The limits of a positive ratio whose logarithm has this variance (delta method, Student's quantile)."""
    if n < 2:
        return 0.0, math.inf
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * math.sqrt(variance_of_log)
    return value * math.exp(-half), value * math.exp(half) if half < 700.0 else math.inf


def average(parts: Sequence[Estimate], correlations: Mapping[tuple[int, int], float], n: int) -> Estimate | None:
    """The plain average of estimates from one sample, by the method of variance estimates recovery.

    Each part's own limits say how far it may be off on either side; the distances are added as standard errors are,
    with the `correlations` of pairs of parts (0 where not given). So the limits stay within those of the parts, also
    where a part is 0 or 1. Source: Zou and Donner 2008, Statistics in Medicine 27.
    """
    if not parts:
        return None
    value = sum(part.value for part in parts) / len(parts)

    def off(distances: Sequence[float]) -> float:
        square = sum(d * d for d in distances)
        square += 2.0 * sum(r * distances[i] * distances[j] for (i, j), r in correlations.items())
        return math.sqrt(max(0.0, square)) / len(parts)

    below, above = [part.value - part.low for part in parts], [part.high - part.value for part in parts]
    return Estimate(value, value - off(below), value + off(above), n)
