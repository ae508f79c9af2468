"""Whether weights bear out what an edge claims: that one version was made from another.

What must hold depends on the kind of edge. Every check gives a statistic, what chance would give, and a sentence. That
two versions are related can be told from weights; which of them came first cannot.

    kind                     what must hold
    fine-tune, specialise    the same names and shapes, and weights that correlate far above chance
    quantise                 the child is the parent rounded to a grid, each entry by no more than one step of it
    prune                    more zeros, and entries that are left equal the parent's, or correlate far above chance
    merge                    near the affine span of the parents, tensor by tensor (normalisation statistics apart)
    repair                   near the line between the two parents, and between them (likewise)
    fuse                     each tensor is one of a parent's, and each parent gave some
    distil, retrain          nothing can be said: the child begins with weights of its own
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.errors import ArtifactRefused
from lineage.graph.records import EdgeKind, VersionId
from lineage.graph.rounding import rounded_share
from lineage.graph.store import LineageStore
from lineage.graph.tensors import TensorStore

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

FAR_ABOVE = 6.0  # standard deviations of chance; and at least this much correlation:
LEAST_CORRELATION = 0.1
ALL_BUT_A_FEW = 0.99  # of entries: rounding may clip, pruning may be followed by a step of training
NEAR, FAR = 0.4, 0.9  # of the distance that chance gives
_RE_ESTIMATED = ("running_mean", "running_var", "num_batches_tracked")  # on data, once the weights are there
_MOST_ROWS = 512  # of a matrix that are looked at
_N_SHUFFLED = 199
_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Parentage:
    """What weights say of a claimed edge: `holds` is None where they say nothing.

    `statistic` is named in the sentence; `chance` is its value for networks that have nothing to do with each other
    (for a merge or repair: another descendant of the same origin). Both are None where nothing was computed.
    """

    kind: EdgeKind
    holds: bool | None
    statistic: float | None
    chance: float | None
    sentence: str


def check_parentage(kind: EdgeKind, child: Tensors, parents: Sequence[Tensors], rng: np.random.Generator) -> Parentage:
    """Holds the claim that `child` was made from `parents` by an edge of this kind against their tensors.

    A merge, a fusion and a repair (the drifted version and the healthy ancestor) want all their parents; a repair of
    which one is known is checked as a fine-tune. Raises ArtifactRefused, naming the tensor, for weights that are not
    finite, and ValueError without parents.
    """
    if not parents:
        raise ValueError("no parents are given")
    for tensors in (child, *parents):
        _check_finite(tensors)
    if kind in (EdgeKind.DISTIL, EdgeKind.RETRAIN):
        return _silent(kind, f"Weights cannot show a {kind}: the child begins with weights of its own.")
    if kind is EdgeKind.FUSE:
        return _check_fuse(child, parents)
    if kind is EdgeKind.MERGE and len(parents) == 1:
        return _silent(kind, "A merge can only be checked with all its parents.")
    unlike = _unlike(child, parents, kind)
    if unlike:
        return unlike
    if kind is EdgeKind.QUANTISE:
        return _check_quantise(child, parents[0], rng)
    if kind is EdgeKind.PRUNE:
        return _check_prune(child, parents[0], rng)
    if kind in (EdgeKind.MERGE, EdgeKind.REPAIR) and len(parents) > 1:
        return _check_span(kind, child, parents)
    return _check_related(kind, child, parents[0], rng)


def check_stored(
    lineage: LineageStore, tensors: TensorStore, child: VersionId, rng: np.random.Generator
) -> tuple[Parentage, ...]:
    """Holds every edge into a version against the weights that are kept, one result per kind of edge.

    Where weights are not kept, nothing can be said. Raises UnknownVersion, ArtifactRefused for damaged weights, and
    what the stores raise.
    """
    lineage.version(child)
    parents: dict[EdgeKind, list[VersionId]] = {}
    for edge in lineage.edges_into([child]):
        parents.setdefault(edge.kind, []).append(edge.parent)
    found = []
    for kind, ids in parents.items():
        missing = [id for id in (child, *ids) if not tensors.has(id)]
        if missing:
            found.append(_silent(kind, f"The weights of {_some([id[:12] for id in missing])} are not kept."))
        else:
            found.append(check_parentage(kind, tensors.load(child), [tensors.load(id) for id in ids], rng))
    return tuple(found)


def correlation(one: Tensors, other: Tensors, rng: np.random.Generator) -> tuple[float, float] | None:
    """How weights correlate unit by unit, and the standard deviation of that by chance; None where it means nothing.

    Taken over the matrices (first axis: units; all other axes: their inputs) that both have in the same shape, after
    row and column means are taken away, so that what all networks for this input have in common does not count.
    Chance is what units give that are put together at random. Networks that were trained apart have theirs in an order
    of their own, so this is chance for them too. With a single matrix there is no such order: then None.
    """
    shared = [name for name in sorted(one) if name in other and one[name].shape == other[name].shape]
    names = [name for name in shared if one[name].ndim >= 2 and min(len(one[name]), one[name][0].size) >= 2]
    if len(names) < 2:
        return None
    together, of_one, of_other = 0.0, 0.0, 0.0
    by_chance = np.zeros(_N_SHUFFLED)
    for name in names:
        some = rng.permutation(len(one[name]))[:_MOST_ROWS]
        a, b = _centred(one[name][some]), _centred(other[name][some])
        products = a @ b.T
        together += float(np.trace(products))
        of_one, of_other = of_one + float(np.sum(a * a)), of_other + float(np.sum(b * b))
        rows = np.arange(len(some))
        by_chance += [float(products[rows, rng.permutation(rows)].sum()) for _ in range(_N_SHUFFLED)]
    scale = math.sqrt(of_one * of_other)
    if scale == 0.0:
        return None
    return together / scale, float(by_chance.std(ddof=1)) / scale


def _check_related(kind: EdgeKind, child: Tensors, parent: Tensors, rng: np.random.Generator) -> Parentage:
    found = correlation(child, parent, rng)
    if found is None:
        return _silent(kind, "Too few layers: even networks that were trained apart could have these weights.")
    r, deviation = found
    holds = _far_above(r, deviation)
    said = f"the weights correlate by {r:.3f}, by chance 0 ± {deviation:.3f}"
    if holds:
        return Parentage(kind, True, r, deviation, f"The two are related: {said}.")
    return Parentage(kind, False, r, deviation, f"Nothing shows that the two are related: {said}.")


def _check_quantise(child: Tensors, parent: Tensors, rng: np.random.Generator) -> Parentage:
    n_within = n_by_chance = 0.0
    n = 0
    for name, of_parent in parent.items():
        if of_parent.size:
            within, by_chance = rounded_share(child[name], of_parent, rng)
            n_within += within * of_parent.size
            n_by_chance += by_chance * of_parent.size
            n += of_parent.size
    if n == 0:
        return _silent(EdgeKind.QUANTISE, "There are no entries to compare.")
    share, chance = n_within / n, n_by_chance / n
    deviation = math.sqrt(max(chance * (1.0 - chance), 1.0 / n) / n)
    holds = share >= ALL_BUT_A_FEW and share - chance >= FAR_ABOVE * deviation
    said = f"{share:.2%} of the entries are the parent's rounded to the child's grid, by chance {chance:.2%}"
    begin = "The child is a rounding of the parent" if holds else "The child is no rounding of this parent"
    return Parentage(EdgeKind.QUANTISE, holds, share, chance, f"{begin}: {said}.")


def _check_prune(child: Tensors, parent: Tensors, rng: np.random.Generator) -> Parentage:
    kind = EdgeKind.PRUNE
    zeros = [sum(int(np.count_nonzero(of[name] == 0)) for name in parent) for of in (child, parent)]
    if zeros[0] <= zeros[1]:
        said = f"The child has {zeros[0]:,} zeros, the parent {zeros[1]:,}: nothing was pruned."
        return Parentage(kind, False, 0.0, 0.0, said)
    n_left = n_equal = n_by_chance = 0
    kept = {}
    for name, of_parent in parent.items():
        left = child[name] != 0
        shuffled = rng.permutation(of_parent.reshape(-1)).reshape(of_parent.shape)
        n_left += int(np.count_nonzero(left))
        n_equal += int(np.count_nonzero(left & np.isclose(child[name], of_parent, rtol=1e-5, atol=0.0)))
        n_by_chance += int(np.count_nonzero(left & np.isclose(child[name], shuffled, rtol=1e-5, atol=0.0)))
        kept[name] = np.where(left, of_parent, 0)
    if n_left == 0:
        return _silent(kind, "No entry is left that could be compared.")
    share, chance = n_equal / n_left, n_by_chance / n_left
    said = f"{share:.2%} of the {n_left:,} entries that are left equal the parent's, by chance {chance:.2%}"
    if share >= ALL_BUT_A_FEW and chance < 0.5:
        return Parentage(kind, True, share, chance, f"The child is the parent with zeros: {said}.")
    found = correlation(child, kept, rng)
    if found is None:
        return Parentage(kind, None, share, chance, f"Few layers, and {said}: that shows nothing.")
    r, deviation = found
    holds = _far_above(r, deviation)
    begin = (
        "The child was pruned from the parent and trained on" if holds else "The child was not pruned from this parent"
    )
    also = f"those that are left correlate with the parent's by {r:.3f}, by chance 0 ± {deviation:.3f}"
    return Parentage(kind, holds, r, deviation, f"{begin}: {also}.")


def _check_span(kind: EdgeKind, child: Tensors, parents: Sequence[Tensors]) -> Parentage:
    """How far the child is from the parents' span, over how far those are from each other."""
    off = apart = 0.0
    for name, first in parents[0].items():
        if name.rpartition(".")[2] in _RE_ESTIMATED:
            continue
        residue, distance = _off_the_span(child[name], first, [parent[name] for parent in parents[1:]], kind)
        off, apart = off + residue, apart + distance
    chance = math.sqrt((1.0 + 1.0 / len(parents)) / 2.0)  # a further one, as far from each as they from each other
    what = "the line between its parents" if kind is EdgeKind.REPAIR else "a weighted mean of its parents"
    if apart == 0.0:
        return _silent(kind, "The parents have the same weights.")
    statistic = math.sqrt(off / apart)
    said = (
        f"its distance from {what} is {statistic:.3f} of theirs from each other, that of a further descendant"
        f" of their origin about {chance:.2f}"
    )
    if statistic <= NEAR * chance:
        return Parentage(kind, True, statistic, chance, f"The child lies near {what}: {said}.")
    if statistic >= FAR * chance:
        return Parentage(kind, False, statistic, chance, f"The child is far from {what}: {said}.")
    return Parentage(kind, None, statistic, chance, f"The child is neither near nor far: {said}.")


def _check_fuse(child: Tensors, parents: Sequence[Tensors]) -> Parentage:
    kind = EdgeKind.FUSE
    if not child:
        return _silent(kind, "The fusion has no tensors of its own.")
    parts = [{_fingerprint(array) for array in parent.values()} for parent in parents]
    whole = {name: _fingerprint(array) for name, array in child.items()}
    strange = sorted(name for name, found in whole.items() if not any(found in part for part in parts))
    n_idle = sum(1 for part in parts if part and part.isdisjoint(whole.values()))
    share = 1.0 - len(strange) / len(whole)
    if strange:
        said = f"{len(strange)} of the {len(whole)} tensors are none of a part's: {_some(strange)}."
        return Parentage(kind, False, share, 0.0, said)
    if n_idle:
        said = f"{n_idle} of the {len(parents)} parts gave no tensor."
        return Parentage(kind, False, share, 0.0, said)
    return Parentage(kind, True, share, 0.0, f"All {len(whole)} tensors are those of the parts.")


def _unlike(child: Tensors, parents: Sequence[Tensors], kind: EdgeKind) -> Parentage | None:
    """The answer where names or shapes decide."""
    for parent in parents:
        missing = sorted(parent.keys() - child.keys())
        new = sorted(child.keys() - parent.keys()) if kind is not EdgeKind.QUANTISE else []  # scales come with it
        reshaped = sorted(n for n in parent.keys() & child.keys() if parent[n].shape != child[n].shape)
        if missing and kind is EdgeKind.QUANTISE and parent.keys() & child.keys():
            return _silent(kind, f"The child keeps {_some(missing)} under names that are not known.")
        if missing or new:
            which = f"the child lacks {_some(missing)}" if missing else f"no parent has {_some(new)}"
            return Parentage(kind, False, None, None, f"The names of the tensors differ: {which}.")
        if reshaped and kind is EdgeKind.PRUNE and all(_is_smaller(child[n], parent[n]) for n in reshaped):
            return _silent(
                kind, f"Units were cut out of {_some(reshaped)}: which of the parent's are left is not known."
            )
        if reshaped and kind is EdgeKind.QUANTISE:
            return _silent(kind, f"Entries are packed in {_some(reshaped)}, in a way that is not known.")
        if reshaped:
            return Parentage(kind, False, None, None, f"The shapes differ of {_some(reshaped)}.")
    return None


def _off_the_span(child: Array, first: Array, others: Sequence[Array], kind: EdgeKind) -> tuple[float, float]:
    """Squared distance of a tensor from the affine span of the parents' (of two for a repair: from between them), and
    the mean squared distance between those."""
    k = len(others)
    gram, target, length = np.zeros((k, k)), np.zeros(k), 0.0
    flat = [np.asarray(array).reshape(-1) for array in (child, first, *others)]
    for at in range(0, flat[0].size, _AT_ONCE):
        mine, base, *rest = (array[at : at + _AT_ONCE].astype(np.float64) for array in flat)
        spans = np.stack([one - base for one in rest])
        way = mine - base
        gram, target, length = gram + spans @ spans.T, target + spans @ way, length + float(way @ way)
    weights = np.linalg.lstsq(gram, target, rcond=1e-10)[0]
    if kind is EdgeKind.REPAIR:
        weights = np.clip(weights, 0.0, 1.0)
    residue = max(0.0, length - 2.0 * float(weights @ target) + float(weights @ gram @ weights))
    from_first = np.diag(gram)
    between = from_first[:, None] + from_first[None, :] - 2.0 * gram
    distances = [*from_first, *between[np.triu_indices(k, 1)]]
    return residue, float(np.mean(distances))


def _far_above(r: float, deviation: float) -> bool:
    return r >= LEAST_CORRELATION and r >= FAR_ABOVE * deviation


def _centred(matrix: Array) -> npt.NDArray[np.float64]:
    flat: npt.NDArray[np.float64] = matrix.reshape(len(matrix), -1).astype(np.float64)
    made: npt.NDArray[np.float64] = flat - flat.mean(axis=0) - flat.mean(axis=1, keepdims=True) + flat.mean()
    return made


def _check_finite(tensors: Tensors) -> None:
    for name, array in tensors.items():
        flat = array.reshape(-1)
        if array.dtype.kind == "f" and not all(
            np.isfinite(flat[at : at + _AT_ONCE]).all() for at in range(0, flat.size, _AT_ONCE)
        ):
            raise ArtifactRefused(
                f"tensor {name!r} holds values that are not finite.", hint="Nothing can be checked against it."
            )


def _is_smaller(one: Array, other: Array) -> bool:
    return one.ndim == other.ndim and all(a <= b for a, b in zip(one.shape, other.shape, strict=True))


def _fingerprint(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _silent(kind: EdgeKind, sentence: str) -> Parentage:
    return Parentage(kind, None, None, None, sentence)
