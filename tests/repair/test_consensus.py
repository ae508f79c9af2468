from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.consensus import LEAST_FOR_QUALITY, settle
from repair.errors import LabelRefused
from repair.labels import Item, Label, Labelled


def labelled(id_: str, *said: str) -> Labelled:
    return Labelled(Item(id_, "r", {}), tuple([Label(id_, f"a{k}", label) for k, label in enumerate(said)]))


def test_what_all_say_is_settled_and_contradictions_are_asked_again() -> None:
    found = settle([labelled("x", "3"), labelled("y", "3", "3", "5"), labelled("z", "3", "5"), labelled("none")])
    assert {name: one.label for name, one in found.settled.items()} == {"x": "3", "y": "3"}
    assert (found.again, found.given_up) == (("z",), ())
    assert (found.settled["y"].n_for, found.settled["y"].n_labels) == (2, 3)


def test_what_stays_contradictory_is_given_up() -> None:
    found = settle([labelled("x", "1", "2", "3", "1", "2")])
    assert (found.settled, found.again, found.given_up) == ({}, (), ("x",))


def test_annotators_are_judged_by_what_others_labelled_too() -> None:
    found = settle([labelled("x", "1", "1", "2"), labelled("y", "1", "1", "1"), labelled("z", "9")])
    assert found.annotators == {"a0": 1.0, "a1": 1.0, "a2": 0.5}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=7), max_size=8))
def test_every_item_with_a_label_is_settled_asked_again_or_given_up(said: list[list[str]]) -> None:
    items = [labelled(str(k), *labels) for k, labels in enumerate(said)]
    found = settle(items)
    parts = [*found.settled, *found.again, *found.given_up]
    assert sorted(parts) == sorted(one.item.id for one in items if one.labels)
    assert all(one.n_for * 2 > one.n_labels for one in found.settled.values())


def test_a_bad_annotator_and_the_model_decide_between_equals() -> None:
    """Two annotators, of whom one is nearly always wrong: by counting alone every item is a draw."""
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 3, 3 * LEAST_FOR_QUALITY)
    classes = ["a", "b", "c"]
    items, chances = [], {}
    for k, truth in enumerate(truths.tolist()):
        wrong = classes[(truth + 1) % 3]
        items.append(labelled(f"i{k}", classes[truth], wrong if k % 10 else classes[truth]))
        chances[f"i{k}"] = np.where(np.arange(3) == truth, 0.8, 0.1)
    plain = settle(items, most_annotators=2)
    crowd = settle(items, classes, chances, most_annotators=2)
    right = [
        crowd.settled[f"i{k}"].label == classes[truth] for k, truth in enumerate(truths) if f"i{k}" in crowd.settled
    ]
    assert len(plain.given_up) > 20 > len(crowd.given_up)
    assert np.mean(right) > 0.9


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(LabelRefused, match="'7'"):
        settle([labelled("x", "7")], classes=["1", "2"])
