"""How surprising it is that so many rows show what training hardly or never showed.

After `n_before` rows of which some showed it, the share of later rows that do is open to a beta distribution, so their
number among `n` is beta-binomial. Source: Rubin 1981, The Bayesian Bootstrap; for categories never seen, the share is
put at that of categories seen once: Good 1953, Biometrika 40.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaln, gammaln

_MOST_TERMS = 8192


def chance_of_at_least(k: int, n: int, hits: float, misses: float) -> float:
    """That `k` or more of `n` rows show it, the share being Beta(hits, misses), both positive.

    1 where `k` is not above what is expected: nobody is surprised then, and only the tail is summed."""
    if k <= 0 or n <= 0 or k <= n * hits / (hits + misses):
        return 1.0
    at = np.arange(k, min(n, k + _MOST_TERMS - 1) + 1, dtype=np.float64)
    choose = gammaln(n + 1.0) - gammaln(at + 1.0) - gammaln(n - at + 1.0)
    terms = choose + betaln(at + hits, n - at + misses) - betaln(hits, misses)
    return float(min(1.0, np.exp(terms).sum()))


def chance_out_of_range(k: int, n: int, n_before: int) -> float:
    """That `k` or more of `n` rows are below the least or above the greatest of `n_before`, exactly, whatever the
    distribution, as long as values do not tie."""
    return chance_of_at_least(k, n, 2.0, max(n_before - 1.0, 1.0))


def chance_again(k: int, n: int, k_before: int, n_before: int) -> float:
    """That `k` or more of `n` rows show what `k_before` of `n_before` showed."""
    return chance_of_at_least(k, n, k_before + 1.0, n_before - k_before + 1.0)
