"""The catalogue compiled for searching: features as numbers, who gives and who takes them as arrays.

Built once per snapshot and kept in `Catalogue.derived`. Two kinds of nodes: a *need* is what an input port asks for
(a feature and the chain rule of the extension that asks), an *out* is what output ports give (a feature and what the
chain rules of the catalogue say about the extensions that give it). Ragged relations are in CSR form: the neighbours
of node i are `values[ptr[i]:ptr[i + 1]]`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.cards import Card, ChainRule, ExtensionId
from planner.catalogue import Catalogue
from planner.features import Feature, Port, shapes_unify
from planner.nearest import Types

Ints = npt.NDArray[np.int64]
Narrow = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ragged = tuple[Narrow, Narrow]  # ptr and values of a relation

# -ln(accuracy) of an extension that is never right. Finite, so that sums of it can still be compared.
NEVER_RIGHT = 1e6
MOST_THRESHOLDS = 12
_NO_RULE = ChainRule()
_NONE: tuple[str, str, tuple[int, ...]] = ("", "", ())
_Key = tuple[str, str, int]  # semantic type, datatype, rank


def loss_of(accuracy: float) -> float:
    """-ln(accuracy), which adds up along a plan; NEVER_RIGHT for 0."""
    return -math.log(accuracy) if accuracy > 0.0 else NEVER_RIGHT


def thresholds_of(card: Card) -> tuple[float, ...]:
    """The confidences below which a row may be handed on to a dearer extension: the author's choice, if any, else
    the points of the risk-coverage curve (at most MOST_THRESHOLDS, evenly). Empty where nothing is known of them."""
    if card.confidence_threshold is not None:
        known = card.thresholds or (card.evidence is not None and card.evidence.confidence)
        return (card.confidence_threshold,) if known else ()
    points = sorted({point.confidence for point in card.thresholds})
    if len(points) > MOST_THRESHOLDS:
        points = [points[round(i * (len(points) - 1) / (MOST_THRESHOLDS - 1))] for i in range(MOST_THRESHOLDS)]
    return tuple(points)


@dataclass(frozen=True, slots=True)
class Csr:
    """A ragged relation from nodes to numbers."""

    ptr: Ints
    values: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Csr:
        ptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=ptr[1:])
        return cls(ptr, np.fromiter(chain.from_iterable(rows), np.int64, int(ptr[-1])))

    def reversed(self, n: int) -> Csr:
        """The relation from numbers (below `n`) back to nodes."""
        order = np.argsort(self.values, kind="stable")
        nodes = np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))
        ptr = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(self.values, minlength=n), out=ptr[1:])
        return Csr(ptr, nodes[order])

    def narrow(self) -> Ragged:
        return self.ptr.astype(np.int32), self.values.astype(np.int32)

    def of_node(self, node: int) -> Ints:
        return self.values[self.ptr[node] : self.ptr[node + 1]]

    def gather(self, nodes: Ints) -> tuple[Ints, Ints, Ints]:
        """The neighbours of many nodes, one after the other; how many each has; where each begins."""
        starts = self.ptr[nodes]
        lengths = self.ptr[nodes + 1] - starts
        ends = np.cumsum(lengths)
        begins = ends - lengths
        total = int(ends[-1]) if len(ends) else 0
        return self.values[np.repeat(starts - begins, lengths) + np.arange(total)], lengths, begins


def _prefixes(type_: str) -> Iterable[str]:
    words = type_.split("/")
    return ("/".join(words[: i + 1]) for i in range(len(words)))


def _kind(feature: Feature) -> tuple[str, str, tuple[int, ...]]:
    return feature.type, feature.datatype, feature.shape


def _by_kind(features: Sequence[Feature]) -> tuple[list[int], list[int]]:
    """The order in which features of the same type stand together, and the rank of each in it."""
    order = sorted(range(len(features)), key=lambda i: _kind(features[i]))
    rank = [0] * len(order)
    for place, i in enumerate(order):
        rank[i] = place
    return order, rank


class Links(NamedTuple):
    """The relations once more in half the width, for `bounds.py`: it waits for the memory most of its time."""

    cards_of_need: Ragged
    needs_of_card: Ragged
    outs_of_card: Ragged
    needs_of_out: Ragged
    outs_of_need: Ragged
    cards_of_out: Ragged


class Index:
    """The compiled catalogue. Cards, needs and outs are numbered from 0; everything here is read-only once built."""

    def __init__(self, cards: Iterable[Card]) -> None:
        # What is asked for together gets neighbouring numbers, and so shares lines of the memory: cards that take the
        # same feature, and below needs and outs of the same type. The bounds then take a quarter less time.
        self.cards: list[Card] = sorted(cards, key=lambda card: _kind(card.inputs[0].feature) if card.inputs else _NONE)
        self.position: dict[ExtensionId, int] = {card.id: i for i, card in enumerate(self.cards)}
        self.names = [card.id for card in self.cards]
        n = len(self.cards)

        def column(values: Iterable[float]) -> Floats:
            return np.fromiter(values, np.float64, n)

        profiles = [card.profile for card in self.cards]
        # Elements count only where a row's size is not already fixed by the shape.
        free = column(any(-1 in port.feature.shape for port in card.inputs) for card in self.cards)
        times = np.stack(
            [
                column(p.fixed_ms for p in profiles),
                column(p.per_row_ms for p in profiles),
                column(p.per_kilo_ms for p in profiles) * free,
            ]
        )
        # What every criterion is made of, one row each: latency at p50 (a call, a row, a thousand elements), the same
        # at p99, cost, loss.
        self.parts = np.concatenate(
            [
                times,
                times * column(p.p99_ratio for p in profiles),
                column(card.cost for card in self.cards)[None],
                column(loss_of(card.accuracy.mean) for card in self.cards)[None],
            ]
        )
        self._usual = np.median(self.parts, axis=1) if n else np.ones(len(self.parts))
        self.combiners: dict[int, tuple[Port, ...]] = {}  # with its input ports, stacking ones twice

        self.judges = {i for i, card in enumerate(self.cards) if thresholds_of(card)}

        sights = {card.may_see: 0 for card in self.cards}
        self._sights = list(sights)
        for i, sight in enumerate(self._sights):
            sights[sight] = i
        self._sight_of = np.fromiter((sights[card.may_see] for card in self.cards), np.int64, n)

        self._intern()

    def _intern(self) -> None:
        mentions = self._mentions()
        nothing: frozenset[tuple[int, bool]] = frozenset()
        needs: dict[tuple[Feature, ChainRule], int] = {}
        outs: dict[tuple[Feature, frozenset[tuple[int, bool]]], int] = {}
        self.card_needs: list[tuple[int, ...]] = []
        self.card_outs: list[tuple[int, ...]] = []
        giver: list[Card] = []  # one extension per out: the chain rules treat the others alike
        for i, card in enumerate(self.cards):
            rule = card.after
            # A combiner needs at least two sources at its stacking port, so it asks for that feature twice.
            ports = tuple([p for p in card.inputs for _ in range(min(p.many, 2))])
            if len(ports) > len(card.inputs):
                self.combiners[i] = ports
            self.card_needs.append(tuple([needs.setdefault((p.feature, rule), len(needs)) for p in ports]))
            mention = mentions.get(i, nothing)
            mine = tuple([outs.setdefault((p.feature, mention), len(outs)) for p in card.outputs])
            self.card_outs.append(mine)
            if len(giver) < len(outs):
                giver.extend([card] * (len(outs) - len(giver)))
        order, rank = _by_kind([feature for feature, _ in needs])
        known = list(needs)
        self.needs = [known[i] for i in order]
        self.card_needs = [tuple([rank[i] for i in mine]) for mine in self.card_needs]
        self.outs = [feature for feature, _ in outs]
        order, rank = _by_kind(self.outs)
        self.outs = [self.outs[i] for i in order]
        self.card_outs = [tuple([rank[i] for i in mine]) for mine in self.card_outs]
        self._giver = [giver[i] for i in order]
        self._outs_by: dict[_Key, list[int]] = {}
        for i, out in enumerate(self.outs):
            for prefix in _prefixes(out.type):
                self._outs_by.setdefault((prefix, out.datatype, len(out.shape)), []).append(i)
        self._kinds = {(out.datatype, len(out.shape)) for out in self.outs}
        self.types = Types(out.type for out in self.outs)  # that extensions give
        self._needs_by: dict[_Key, list[int]] = {}
        for i, (feature, _) in enumerate(self.needs):
            self._needs_by.setdefault((feature.type, feature.datatype, len(feature.shape)), []).append(i)

        self.needs_of_card = Csr.of(self.card_needs)
        self.cards_of_need = self.needs_of_card.reversed(len(self.needs))
        self.outs_of_card = Csr.of(self.card_outs)
        self.cards_of_out = self.outs_of_card.reversed(len(self.outs))
        self.outs_of_need = Csr.of([self.outs_for(feature, rule) for feature, rule in self.needs])
        self.needs_of_out = self.outs_of_need.reversed(len(self.outs))
        self.links = Links(
            self.cards_of_need.narrow(),
            self.needs_of_card.narrow(),
            self.outs_of_card.narrow(),
            self.needs_of_out.narrow(),
            self.outs_of_need.narrow(),
            self.cards_of_out.narrow(),
        )
        # How often needs can become cheaper at most: whenever a card that gives them is priced. And once are given.
        self.most_waiting = len(self.needs) + int(np.diff(self.needs_of_out.ptr)[self.outs_of_card.values].sum())

    def _mentions(self) -> dict[int, frozenset[tuple[int, bool]]]:
        """Per extension, the chain rules whose patterns match it, and what they say of it."""
        rules = list({card.after: None for card in self.cards if card.after != _NO_RULE})
        if not rules:
            return {}
        known = sorted([(text, i) for i, card in enumerate(self.cards) for text in (card.name, str(card.id))])
        texts = [text for text, _ in known]
        found: dict[int, set[tuple[int, bool]]] = {}
        for r, rule in enumerate(rules):
            matched: set[int] = set()
            for pattern in {*rule.allow, *rule.deny}:
                # A pattern matches only texts that begin with what stands before its first wildcard.
                literal = pattern[: min((pattern.index(c) for c in "*?[" if c in pattern), default=len(pattern))]
                at = bisect_left(texts, literal)
                while at < len(texts) and texts[at].startswith(literal):
                    if fnmatchcase(texts[at], pattern):
                        matched.add(known[at][1])
                    at += 1
            for i in matched:
                card = self.cards[i]
                found.setdefault(i, set()).add((r, rule.permits(card.name, card.version)))
        return {i: frozenset(said) for i, said in found.items()}

    def outs_for(self, feature: Feature, rule: ChainRule = _NO_RULE) -> list[int]:
        """The outs that may go where `feature` is asked for by an extension with that chain rule."""
        shape = feature.shape
        found = [
            i
            for i in self._outs_by.get((feature.type, feature.datatype, len(shape)), ())
            if (given := self.outs[i].shape) == shape or shapes_unify(shape, given)
        ]
        if rule != _NO_RULE:
            found = [i for i in found if rule.permits(self._giver[i].name, self._giver[i].version)]
        return found

    def needs_met_by(self, feature: Feature) -> list[int]:
        """The needs that a feature of the request meets. Chain rules do not apply to the request's own inputs."""
        return [
            i
            for prefix in _prefixes(feature.type)
            for i in self._needs_by.get((prefix, feature.datatype, len(feature.shape)), ())
            if shapes_unify(self.needs[i][0].shape, feature.shape)
        ]

    def ports(self, card: int) -> tuple[Port, ...]:
        """The input ports of a card in the order of its needs."""
        return self.combiners.get(card) or self.cards[card].inputs

    def outs_of_type(self, type_: str) -> list[Feature]:
        """What is given of a semantic type, whatever its datatype and rank."""
        return [self.outs[i] for kind in self._kinds for i in self._outs_by.get((type_, *kind), ())]

    def weights(self, rates: Floats) -> Floats:
        """What each card weighs by a criterion: its parts times the rates, shape (n_cards,)."""
        weights = np.zeros(len(self.cards))
        for rate, part in zip(rates.tolist(), self.parts, strict=True):
            if rate:  # a matrix product would wait for threads that are busy with other work
                weights += rate * part
        return weights

    def usual_weight(self, rates: Floats) -> float:
        return float(self._usual @ rates)

    def seen(self, tags: frozenset[str]) -> Bools | None:
        """Which cards may see data with these tags; None when all may."""
        allowed = np.array([sight is None or tags <= sight for sight in self._sights], np.bool_)
        return None if allowed.all() else allowed[self._sight_of]


def index_of(catalogue: Catalogue) -> Index:
    """The index of a snapshot, built on first use (about 20 microseconds per extension)."""
    index = catalogue.derived.get("index")
    if not isinstance(index, Index):
        index = catalogue.derived["index"] = Index(catalogue.cards.values())
    return index
