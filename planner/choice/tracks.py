"""What is known of one number that may change: sums whose past can fade, and a test that says when it is past.

Both tracks run a two-sided cumulative sum of log-likelihood ratios (Page 1954, Biometrika 41) of "has shifted" against
"as before". It starts anew whenever it falls to 0, and what came since then is kept apart: when it passes the alarm,
the number is what it was since then, and what was before is forgotten. A false alarm comes on average after e**alarm
observations at the earliest (Lorden 1971, Annals of Mathematical Statistics 42).
"""

from __future__ import annotations

import math

_KNOWN = 50.0  # observations behind a number before a shift from it can be told
_LEAST_SHIFT, _SHIFT = 0.02, 0.35  # what is looked for: this, and so many standard deviations of one outcome


class Share:
    """A share of successes: `total` of `n`, both weighted with what has faded."""

    __slots__ = ("_down", "_n_down", "_n_up", "_total_down", "_total_up", "_up", "n", "total")

    def __init__(self, n: float = 0.0, total: float = 0.0) -> None:
        self._begin(n, total)

    def _begin(self, n: float, total: float) -> None:
        self.n, self.total = n, total
        self._down = self._n_down = self._total_down = 0.0
        self._up = self._n_up = self._total_up = 0.0

    def fade(self, factor: float) -> None:
        """Lets what is known count less."""
        self.n *= factor
        self.total *= factor

    def add(self, n: float, total: float, alarm: float) -> bool:
        """`total` successes of `n`, 0 <= total <= n. Returns whether the share has shifted."""
        known, before = self.n, self.total
        self.n, self.total = known + n, before + total
        if known < _KNOWN:
            return False
        p = (before + 0.5) / (known + 1.0)
        shift = _LEAST_SHIFT + _SHIFT * math.sqrt(p * (1.0 - p))
        missed = n - total
        low = max(p - shift, 0.5 * p)
        self._down += total * math.log(low / p) + missed * math.log((1.0 - low) / (1.0 - p))
        if self._down <= 0.0:
            self._down = self._n_down = self._total_down = 0.0
        else:
            self._n_down += n
            self._total_down += total
            if self._down > alarm:
                self._begin(self._n_down, self._total_down)
                return True
        high = min(p + shift, 0.5 + 0.5 * p)
        self._up += total * math.log(high / p) + missed * math.log((1.0 - high) / (1.0 - p))
        if self._up <= 0.0:
            self._up = self._n_up = self._total_up = 0.0
        else:
            self._n_up += n
            self._total_up += total
            if self._up > alarm:
                self._begin(self._n_up, self._total_up)
                return True
        return False


class Level:
    """The mean and variance of a number that is about normal; `total` and `square` are sums over `n`."""

    __slots__ = ("_down", "_since_down", "_since_up", "_up", "n", "square", "total")

    def __init__(self, n: float = 0.0, total: float = 0.0, square: float = 0.0) -> None:
        self._begin(n, total, square)

    def _begin(self, n: float, total: float, square: float) -> None:
        self.n, self.total, self.square = n, total, square
        self._down = self._up = 0.0
        self._since_down = self._since_up = (0.0, 0.0, 0.0)

    def fade(self, factor: float) -> None:
        """Lets what is known count less."""
        self.n *= factor
        self.total *= factor
        self.square *= factor

    def add(self, n: float, mean: float, variance: float, alarm: float) -> bool:
        """`n` > 0 numbers with this mean and variance. Returns whether the level has shifted, by one standard
        deviation or so. Numbers that come together are one observation to the test, because they are alike."""
        known, before = self.n, self.total
        total, square = n * mean, n * (variance + mean * mean)
        was_square = self.square
        self.n, self.total, self.square = known + n, before + total, was_square + square
        if known < _KNOWN:
            return False
        usual = before / known
        deviation = math.sqrt(max(was_square / known - usual * usual, 0.0025))
        z = max(-4.0, min(4.0, (mean - usual) / deviation))
        self._down += -z - 0.5
        if self._down <= 0.0:
            self._down, self._since_down = 0.0, (0.0, 0.0, 0.0)
        else:
            a, b, c = self._since_down
            self._since_down = (a + n, b + total, c + square)
            if self._down > alarm:
                self._begin(*self._since_down)
                return True
        self._up += z - 0.5
        if self._up <= 0.0:
            self._up, self._since_up = 0.0, (0.0, 0.0, 0.0)
        else:
            a, b, c = self._since_up
            self._since_up = (a + n, b + total, c + square)
            if self._up > alarm:
                self._begin(*self._since_up)
                return True
        return False
