"""Semantic types that come near another: for telling a client what it may have meant, in a catalogue of any size."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np

from planner.features import Array

_LETTERS = 48  # of a type that count
_CLOSE_LOOK = 64  # types that are compared letter by letter: about 20 microseconds each


class Types:
    """The semantic types of a catalogue, prepared so that a look-up among 100,000 takes a few milliseconds."""

    def __init__(self, types: Iterable[str]) -> None:
        self._types = sorted(set(types))
        self._pairs = _pairs(self._types)
        self._by_last_word: dict[str, list[str]] = {}
        for type_ in self._types:
            self._by_last_word.setdefault(_last_word(type_), []).append(type_)

    def near(self, type_: str, others: Iterable[str] = (), n: int = 3) -> list[str]:
        """Up to `n` types: first those spelt alike, then those that `type_` is-a, then those that end alike.

        `others` are looked at besides the catalogue's own.
        """
        others = list(others)
        apart = np.bitwise_count(self._pairs ^ _pairs([type_]))
        at = np.argpartition(apart, _CLOSE_LOOK)[:_CLOSE_LOOK] if len(apart) > _CLOSE_LOOK else np.arange(len(apart))
        close = get_close_matches(type_, sorted({*[self._types[i] for i in at], *others}), n=n, cutoff=0.5)
        words = type_.split("/")
        above = ["/".join(words[:i]) for i in range(len(words), 0, -1)]
        known = [t for t in above if t in self._by_last_word.get(_last_word(t), others)]
        ends_alike = [t for t in (*self._by_last_word.get(words[-1], [])[:n], *others) if _last_word(t) == words[-1]]
        return list(dict.fromkeys([*close, *known, *ends_alike]))[:n]


def _last_word(type_: str) -> str:
    return type_.rsplit("/", 1)[-1]


def _pairs(types: list[str]) -> Array:
    """Which pairs of neighbouring letters each type has, hashed to the bits of a number, shape (n_types,)."""
    letters = np.array(types, f"<U{_LETTERS}").view(np.uint32).reshape(len(types), _LETTERS).astype(np.uint64)
    bits = np.uint64(1) << ((letters[:, :-1] * np.uint64(31) + letters[:, 1:]) % np.uint64(64))
    found: Array = np.bitwise_or.reduce(np.where(letters[:, 1:] > 0, bits, np.uint64(0)), axis=1)
    return found
