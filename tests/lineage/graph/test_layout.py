"""Versions stand layer by layer, apart from each other, with few crossings."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from lineage.graph.layout import lay_out


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    """Nodes, of which none is made from a later one."""
    n = draw(st.integers(0, 12))
    pairs = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
    return [str(i) for i in range(n)], [(str(a), str(b)) for a, b in pairs if a < b < n]


@given(graphs())
def test_parents_stand_before_their_children_and_no_two_on_one_place(
    graph: tuple[list[str], list[tuple[str, str]]],
) -> None:
    nodes, edges = graph
    found = lay_out(nodes, edges)
    assert set(found.places) == set(nodes)
    for parent, child in edges:
        bends = found.bends[parent, child]
        assert (bends[0], bends[-1]) == (found.places[parent], found.places[child])
        assert [layer for layer, _ in bends] == list(range(bends[0][0], bends[-1][0] + 1))
        assert len(bends) > 1
    for (layer, place), (other_layer, other_place) in combinations(found.places.values(), 2):
        assert layer != other_layer or abs(place - other_place) > 1 - 1e-9
    assert all(
        0 <= layer < found.n_layers and -1e-9 <= place <= found.breadth for layer, place in found.places.values()
    )


def test_a_parent_stands_in_the_middle_of_its_children() -> None:
    places = lay_out(["a", "b", "c", "d"], [("a", "b"), ("a", "c"), ("a", "d")]).places
    assert places == {"a": (0, 1.0), "b": (1, 0.0), "c": (1, 1.0), "d": (1, 2.0)}


def test_crossings_are_taken_away_where_an_order_without_them_is_found() -> None:
    places = lay_out(["a", "b", "c", "d", "r"], [("r", "a"), ("r", "b"), ("b", "c"), ("a", "d")]).places
    assert (places["a"][1] < places["b"][1]) == (places["d"][1] < places["c"][1])


def test_a_parent_from_outside_stands_next_to_its_child() -> None:
    places = lay_out(["a", "b", "c", "late"], [("a", "b"), ("b", "c"), ("late", "c")]).places
    assert places["late"][0] == 1


def test_a_line_of_versions_is_a_straight_line() -> None:
    names = [str(i) for i in range(30)]
    found = lay_out(names, list(pairwise(names)))
    assert (found.n_layers, found.breadth) == (30, 0.0)
