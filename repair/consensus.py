"""What several annotators say together: settled, or contradictory and to be asked again.

The label of an item is the majority's; where there are several annotators with enough in common and a model's
probabilities, quality is that of CROWDLAB (Goh, Tkachenko and Mueller 2022, NeurIPS workshop), by cleanlab.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repair.errors import LabelRefused
from repair.labels import Labelled

LEAST_FOR_QUALITY = 10  # items with two annotators, below which their quality cannot be told


@dataclass(frozen=True, slots=True)
class Settled:
    """The label of an item that counts: with how many for it of how many, and a quality in 0..1."""

    item: str
    label: str
    n_for: int
    n_labels: int
    quality: float


@dataclass(frozen=True, slots=True)
class Consensus:
    """`settled` by item; `again`: items whose labels contradict each other too much, to be asked of one annotator more;
    `given_up`: those that have been asked of enough; `annotators`: how often each agrees with what is settled, of the
    items that others labelled too."""

    settled: Mapping[str, Settled]
    again: tuple[str, ...]
    given_up: tuple[str, ...]
    annotators: Mapping[str, float]


def settle(
    items: Sequence[Labelled],
    classes: Sequence[str] | None = None,
    probabilities: Mapping[str, npt.NDArray[np.float64]] | None = None,
    *,
    most_annotators: int = 5,
    least_share: float = 0.6,
) -> Consensus:
    """Puts the labels of each item together; items without any are in neither list.

    Settled is what more than half, and at least `least_share`, of the labels say; an item that is not is asked again
    until it has `most_annotators`, and then given up. With `classes` and a model's `probabilities` by item, shape
    (n_classes,), in that order, cleanlab judges annotators and labels, and decides between as many for one as for the
    other. Raises LabelRefused for a label that is not among `classes`.
    """
    counts = {one.item.id: Counter(label.label for label in one.labels) for one in items if one.labels}
    if classes is not None:
        for item, count in counts.items():
            unknown = sorted(set(count) - set(classes))
            if unknown:
                raise LabelRefused(f"item {item!r} is labelled {unknown[0]!r}, which is no class.")
    crowd = _crowd(items, classes, probabilities) if classes is not None and probabilities else {}
    settled: dict[str, Settled] = {}
    again, given_up = [], []
    for item, count in counts.items():
        n_labels = sum(count.values())
        label, n_for = min(count.items(), key=lambda one: (-one[1], one[0]))
        quality = n_for / n_labels
        if item in crowd:
            label, quality = crowd[item]
            n_for = count[label]
        tied = n_for * 2 <= n_labels and item not in crowd
        if not tied and n_for / n_labels >= least_share:
            settled[item] = Settled(item, label, n_for, n_labels, quality)
        elif n_labels >= most_annotators:
            if item in crowd and n_for * 2 >= n_labels:
                settled[item] = Settled(item, label, n_for, n_labels, quality)
            else:
                given_up.append(item)
        else:
            again.append(item)
    return Consensus(settled, tuple(again), tuple(given_up), _agreement(items, settled))


def _agreement(items: Sequence[Labelled], settled: Mapping[str, Settled]) -> dict[str, float]:
    right: Counter[str] = Counter()
    n: Counter[str] = Counter()
    for one in items:
        found = settled.get(one.item.id)
        if found is None or len(one.labels) < 2:
            continue
        for label in one.labels:
            n[label.annotator] += 1
            right[label.annotator] += label.label == found.label
    return {annotator: right[annotator] / n[annotator] for annotator in sorted(n)}


def _crowd(
    items: Sequence[Labelled], classes: Sequence[str], probabilities: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, tuple[str, float]]:
    """The label and its quality of each item by CROWDLAB; nothing where too few items have two annotators."""
    known = [one for one in items if one.labels and one.item.id in probabilities]
    annotators = sorted({label.annotator for one in known for label in one.labels})
    if sum(len(one.labels) > 1 for one in known) < LEAST_FOR_QUALITY or len(annotators) < 2:
        return {}
    # Imported here: it takes a second, and few ever need it.
    import pandas
    from cleanlab.multiannotator import get_label_quality_multiannotator  # type: ignore[import-untyped]

    number = {label: i for i, label in enumerate(classes)}
    said = np.full((len(known), len(annotators)), np.nan)
    for row, one in enumerate(known):
        for label in one.labels:
            said[row, annotators.index(label.annotator)] = number[label.label]
    given = np.stack([np.asarray(probabilities[one.item.id], dtype=np.float64) for one in known])
    found = get_label_quality_multiannotator(pandas.DataFrame(said), given, verbose=False)["label_quality"]
    labels, qualities = found["consensus_label"].tolist(), found["consensus_quality_score"].tolist()
    return {
        one.item.id: (classes[int(label)], float(quality))
        for one, label, quality in zip(known, labels, qualities, strict=True)
    }
