from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from repair.errors import LabelItemNotFound, LabelRefused
from repair.label_store import SqlLabelQueue
from repair.labels import Figures, Item, Label, LabelQueue, MemoryLabelQueue, Taken

ITEMS = [Item(f"r1-{k}", "r1", {"row": [k, 0.5]}, "random") for k in range(3)]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LabelQueue]:
    if request.param == "memory":
        yield MemoryLabelQueue()
        return
    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/fenix.db" if on_sqlite else request.getfixturevalue("postgres").database()
    sql = SqlLabelQueue(url)
    yield sql
    sql.shut()


def ids(items: tuple[Item, ...]) -> list[str]:
    return [item.id for item in items]


def test_an_empty_queue_has_nothing_to_lease(queue: LabelQueue) -> None:
    assert queue.lease("ann", 5, 0.0) == ()
    assert queue.labelled("r1") == ()
    assert queue.figures() == Figures(0, 0, 0)
    assert queue.close("r1") == 0


def test_items_that_were_asked_for_before_are_not_asked_for_again(queue: LabelQueue) -> None:
    assert queue.ask(ITEMS[:2], 0.0) == 2
    assert queue.ask([*ITEMS, ITEMS[2]], 1.0) == 1
    assert [one.item for one in queue.labelled("r1")] == ITEMS
    assert queue.figures("r1") == Figures(3, 3, 0)


def test_each_item_is_leased_to_one_labeller_at_a_time(queue: LabelQueue) -> None:
    queue.ask(ITEMS, 0.0)
    assert ids(queue.lease("ann", 2, 0.0, lease_s=60.0)) == ["r1-0", "r1-1"]
    assert ids(queue.lease("bob", 5, 1.0, lease_s=60.0)) == ["r1-2"]
    assert queue.lease("cid", 5, 1.0) == ()
    assert ids(queue.lease("ann", 5, 2.0, lease_s=60.0)) == ["r1-0", "r1-1"]
    assert ids(queue.lease("cid", 5, 62.5)) == ["r1-0", "r1-1", "r1-2"]


def test_of_an_item_for_two_both_get_a_lease_and_a_third_does_not(queue: LabelQueue) -> None:
    queue.ask([Item("x", "r1", {}, n_wanted=2)], 0.0)
    assert [ids(queue.lease(who, 1, 0.0)) for who in ("ann", "bob", "cid")] == [["x"], ["x"], []]
    queue.give([Label("x", "ann", "3")])
    assert [ids(queue.lease(who, 1, 1.0)) for who in ("ann", "bob", "cid")] == [[], ["x"], []]


def test_labels_close_an_item_once_there_are_enough(queue: LabelQueue) -> None:
    queue.ask([Item("x", "r1", {}, n_wanted=2), Item("y", "r2", {})], 0.0)
    assert queue.give([Label("x", "ann", "3", 1.0), Label("y", "ann", "5", 1.0)]) == Taken(new=2)
    assert [one.open for one in queue.labelled("r1")] == [True]
    assert queue.figures() == Figures(2, 1, 2)
    queue.give([Label("x", "bob", "4", 2.0)])
    (one,) = queue.labelled("r1")
    assert (one.open, one.labels) == (False, (Label("x", "ann", "3", 1.0), Label("x", "bob", "4", 2.0)))


def test_repeated_labels_count_once_and_the_last_word_counts(queue: LabelQueue) -> None:
    queue.ask(ITEMS, 0.0)
    given = [Label("r1-0", "ann", "3"), Label("r1-0", "ann", "3"), Label("r1-0", "ann", "4")]
    assert queue.give(given) == Taken(new=1, repeated=1, changed=1)
    assert queue.give(given[2:]) == Taken(repeated=1)
    assert [label.label for label in queue.labelled("r1")[0].labels] == ["4"]


def test_unknown_items_are_refused_and_the_others_count(queue: LabelQueue) -> None:
    queue.ask(ITEMS, 0.0)
    taken = queue.give([Label("elsewhere", "ann", "1"), Label("r1-1", "ann", "1")])
    assert (taken.new, [one.position for one in taken.refused]) == (1, [0])
    assert isinstance(taken.refused[0].error, LabelItemNotFound)


def test_more_annotators_can_be_asked_and_fewer_cannot(queue: LabelQueue) -> None:
    queue.ask(ITEMS, 0.0)
    queue.give([Label("r1-0", "ann", "1")])
    queue.want(["r1-0"], 2)
    queue.want(["r1-0"], 1)
    assert queue.labelled("r1")[0].open
    assert ids(queue.lease("bob", 1, 0.0)) == ["r1-0"]
    with pytest.raises(LabelItemNotFound):
        queue.want(["r1-1", "elsewhere"], 3)
    assert queue.labelled("r1")[1].item.n_wanted == 1


def test_a_closed_repair_asks_for_nothing_and_keeps_late_labels(queue: LabelQueue) -> None:
    queue.ask(ITEMS, 0.0)
    queue.give([Label("r1-0", "ann", "1")])
    assert queue.close("r1") == 2
    assert queue.lease("bob", 5, 0.0) == ()
    assert queue.give([Label("r1-1", "bob", "2")]).new == 1
    assert queue.figures("r1") == Figures(3, 0, 2)


def test_leases_can_be_of_one_repair(queue: LabelQueue) -> None:
    queue.ask([*ITEMS, Item("r2-0", "r2", {})], 0.0)
    assert ids(queue.lease("ann", 9, 0.0, repair="r2")) == ["r2-0"]
    with pytest.raises(LabelRefused):
        queue.lease("ann", -1, 0.0)
    with pytest.raises(LabelRefused):
        queue.lease("", 1, 0.0)


def test_what_sql_keeps_survives_its_process(database_url: str) -> None:
    first = SqlLabelQueue(database_url)
    first.ask(ITEMS, 0.0)
    first.give([Label("r1-0", "ann", "1")])
    first.shut()
    second = SqlLabelQueue(database_url)
    assert second.figures("r1") == Figures(3, 2, 1)
    second.shut()


@pytest.mark.parametrize(
    "given",
    [
        {"item": "x", "label": "1"},
        {"item": "x", "label": 1.5, "annotator": "ann"},
        {"item": "x", "label": "", "annotator": "ann"},
        {"item": "x", "label": "a\0b", "annotator": "ann"},
        {"item": "x", "label": "1", "annotator": "ann", "when": 3},
        {"item": "x" * 200, "label": "1", "annotator": "ann"},
        [],
    ],
)
def test_labels_that_are_malformed_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(LabelRefused):
        Label.parse(given, 0.0)


def test_numbers_and_truth_values_become_texts() -> None:
    labels = [Label.parse({"item": "x", "label": said, "annotator": 7}, 5.0) for said in (3, 3.0, True, "3")]
    assert [label.label for label in labels] == ["3", "3", "true", "3"]
    assert labels[0] == Label("x", "7", "3", 5.0)


def test_an_item_that_is_none_is_refused() -> None:
    with pytest.raises(LabelRefused):
        Item("", "r1", {})
    with pytest.raises(LabelRefused):
        Item("x", "r1", {"row": float("nan")})
    with pytest.raises(LabelRefused):
        Item("x", "r1", {}, n_wanted=0)
