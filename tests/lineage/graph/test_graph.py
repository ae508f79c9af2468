from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from unittest import mock

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lineage.graph.graph as in_memory
from lineage.errors import UnknownVersion
from lineage.graph.graph import CommonAncestor, HealthyAncestor, Impact, LineageGraph, Path
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import DatasetId, Edge, EdgeKind, SignatureId, Version, VersionId
from tests.lineage.graph.making import data, dataset_id, edge, families, version, version_id

Family = tuple[list[Version], list[Edge]]
KINDS = st.one_of(st.none(), st.sets(st.sampled_from(EdgeKind)))


def graph_of(versions: Iterable[Version], edges: Iterable[Edge] = (), page: int = 1_000) -> LineageGraph:
    store = MemoryLineageStore()
    store.add_all(list(versions), list(edges))
    graph = LineageGraph()
    while graph.counter < store.counter():
        graph.follow(store.changes(graph.counter, page))
    return graph


def named(*names: object) -> tuple[VersionId, ...]:
    return tuple(version_id(name) for name in names)


class Naive:
    """The same answers by trying everything, from the definitions."""

    def __init__(self, family: Family, through: set[EdgeKind] | None) -> None:
        versions, edges = family
        self.made_s = {one.id: one.made_s for one in versions}
        self.data = {one.id: one.data for one in versions}
        self.ids = sorted(self.made_s)
        self.all_edges = edges
        self.edges = [one for one in edges if through is None or one.kind in through]

    def hops(self, start: VersionId, *, up: bool, down: bool) -> dict[VersionId, int]:
        """By the number of steps: whatever one more edge leads to."""
        found = {start: 0}
        for step in range(1, len(self.ids) + 1):
            for one in self.edges:
                for near, far, open_ in ((one.child, one.parent, up), (one.parent, one.child, down)):
                    if open_ and found.get(near) == step - 1:
                        found.setdefault(far, step)
        return found

    def above(self, version: VersionId) -> dict[VersionId, int]:
        return {id_: n for id_, n in self.hops(version, up=True, down=False).items() if n}

    def below(self, version: VersionId) -> dict[VersionId, int]:
        return {id_: n for id_, n in self.hops(version, up=False, down=True).items() if n}

    def trained_on(self, dataset: DatasetId) -> set[VersionId]:
        by_data = {id_ for id_, data in self.data.items() if data and data.dataset == dataset}
        return by_data | {one.child for one in self.all_edges if one.data and one.data.dataset == dataset}

    def chain_length(self, version: VersionId, members: set[VersionId]) -> int:
        """The most members that come one after the other before it, by all kinds of edges."""
        before = [one.parent for one in self.all_edges if one.child == version and one.parent in members]
        return max((1 + self.chain_length(id_, members) for id_ in before), default=0)

    def waves(self, members: set[VersionId]) -> tuple[tuple[VersionId, ...], ...]:
        lengths = {id_: self.chain_length(id_, members) for id_ in members}
        return tuple(
            tuple(sorted((id_ for id_ in members if lengths[id_] == n), key=lambda id_: (self.made_s[id_], id_)))
            for n in range(max(lengths.values(), default=-1) + 1)
        )


@given(families(), KINDS, st.data())
def test_relatives_are_those_that_edges_lead_to(
    family: Family, through: set[EdgeKind] | None, draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family, page=3)
    id_ = draw.draw(st.sampled_from(naive.ids))
    either = {other: n for other, n in naive.hops(id_, up=True, down=True).items() if n}
    for found, expected in (
        (graph.ancestors(id_, through), naive.above(id_)),
        (graph.descendants(id_, through), naive.below(id_)),
        (graph.family(id_, through), either),
    ):
        assert list(found.items()) == sorted(expected.items(), key=lambda one: (one[1], one[0]))
    siblings = {
        b.child for a in naive.edges for b in naive.edges if a.child == id_ and a.parent == b.parent and b.child != id_
    }
    assert graph.siblings(id_, through) == tuple(sorted(siblings))
    into = [one for one in naive.all_edges if one.child == id_]
    assert [(link.parent, link.kind) for link in graph.links_into(id_)] == sorted((e.parent, e.kind) for e in into)
    out_of = [one for one in naive.all_edges if one.parent == id_]
    assert [(link.child, link.kind) for link in graph.links_out_of(id_)] == sorted((e.child, e.kind) for e in out_of)


@given(families(), KINDS, st.data())
def test_the_nearest_common_ancestor_is_the_one_with_the_fewest_edges_in_all(
    family: Family, through: set[EdgeKind] | None, draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family)
    ids = draw.draw(st.lists(st.sampled_from(naive.ids), min_size=1, max_size=3))
    hops = [naive.hops(id_, up=True, down=False) for id_ in ids]
    common = [id_ for id_ in naive.ids if all(id_ in one for one in hops)]

    def order(id_: VersionId) -> tuple[float, ...]:
        away = [one[id_] for one in hops]
        return sum(away), max(away), -naive.made_s[id_], int(id_, 16)

    best = min(common, key=order, default=None)
    expected = None if best is None else CommonAncestor(best, tuple(one[best] for one in hops))
    assert graph.nearest_common_ancestor(*ids, through=through) == expected


DRIFTS = st.sampled_from([0.0, 0.1, 0.2, 0.5, math.nan, None])


@given(families(), KINDS, st.lists(DRIFTS, min_size=12, max_size=12), st.data())
def test_the_nearest_healthy_ancestor_is_found_and_the_fewest_are_asked(
    family: Family, through: set[EdgeKind] | None, values: list[float | None], draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family)
    id_ = draw.draw(st.sampled_from(naive.ids))
    drift = dict(zip(naive.ids, values, strict=False))
    above = naive.above(id_)
    healthy = [a for a in above if (d := drift[a]) is not None and d <= 0.2]
    best = min(healthy, key=lambda a: (above[a], drift[a], -naive.made_s[a], a), default=None)
    expected = None if best is None else HealthyAncestor(best, above[best], drift[best] or 0.0)
    asked: list[VersionId] = []

    def ask(ancestor: VersionId) -> float | None:
        asked.append(ancestor)
        return drift[ancestor]

    assert graph.nearest_healthy_ancestor(id_, ask, 0.2, through) == expected
    assert len(asked) == len(set(asked))
    assert set(asked) == {a for a in above if best is None or above[a] <= above[best]}
    known = {a: d for a, d in drift.items() if d is not None}
    assert graph.nearest_healthy_ancestor(id_, known, 0.2, through) == expected
    asked.clear()
    with mock.patch.object(in_memory, "_FEW", 1), mock.patch.object(in_memory, "_ENOUGH", 2):
        assert graph.nearest_healthy_ancestor(id_, known, 0.2, through) == expected
        assert graph.nearest_healthy_ancestor(id_, ask, 0.2, through) == expected
    assert len(asked) == len(set(asked))
    assert set(asked) == {a for a in above if best is None or above[a] <= above[best]}
    array = np.array([known.get(a, math.nan) for a in graph.versions()])
    assert graph.nearest_healthy_ancestor(id_, array, 0.2, through) == expected


@given(families(), KINDS, st.lists(DRIFTS, min_size=3, max_size=3), st.data())
def test_the_nearest_ancestor_trained_on_healthy_data_is_found_and_each_signature_asked_once(
    family: Family, through: set[EdgeKind] | None, values: list[float | None], draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family)
    id_ = draw.draw(st.sampled_from(naive.ids))
    drift = {data(name).id: value for name, value in zip("ab", values, strict=False)}
    above = naive.above(id_)
    signatures = {a: known.id for a in above if (known := naive.data[a]) is not None}
    healthy = [a for a, signature in signatures.items() if (d := drift[signature]) is not None and d <= 0.2]
    best = min(healthy, key=lambda a: (above[a], drift[signatures[a]], -naive.made_s[a], a), default=None)
    expected = None if best is None else HealthyAncestor(best, above[best], drift[signatures[best]] or 0.0)
    asked: list[str] = []

    def ask(signature: SignatureId) -> float | None:
        asked.append(signature)
        return drift[signature]

    assert graph.nearest_ancestor_trained_on(id_, ask, 0.2, through) == expected
    assert len(asked) == len(set(asked))
    assert set(asked) == {s for a, s in signatures.items() if best is None or above[a] <= above[best]}
    assert [min(above[a] for a, s in signatures.items() if s == one) for one in asked] == sorted(
        min(above[a] for a, s in signatures.items() if s == one) for one in asked
    )


@given(families(), st.lists(DRIFTS, min_size=12, max_size=12), st.integers(0, 4), st.data())
def test_the_healthiest_ancestor_has_the_lowest_drift(
    family: Family, values: list[float | None], most_hops: int, draw: st.DataObject
) -> None:
    naive, graph = Naive(family, None), graph_of(*family)
    id_ = draw.draw(st.sampled_from(naive.ids))
    drift = dict(zip(naive.ids, values, strict=False))
    above = {a: n for a, n in naive.above(id_).items() if n <= most_hops}
    known = {a: d for a in above if (d := drift[a]) is not None and d == d}
    best = min(known, key=lambda a: (known[a], above[a], -naive.made_s[a], a), default=None)
    expected = None if best is None else HealthyAncestor(best, above[best], known[best])
    assert graph.healthiest_ancestor(id_, drift.__getitem__, most_hops) == expected
    array = np.array([np.nan if drift[a] is None else drift[a] for a in graph.versions()], float)
    assert graph.healthiest_ancestor(id_, array, most_hops) == expected


@given(families(), KINDS, st.data())
def test_impact_and_cascade_hold_all_that_hails_from_what_is_bad(
    family: Family, through: set[EdgeKind] | None, draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family)
    bad = draw.draw(st.sets(st.sampled_from(naive.ids), max_size=3))
    datasets = draw.draw(st.sets(st.sampled_from([dataset_id(name) for name in "abcd"]), max_size=2))
    trained = {id_ for dataset in datasets for id_ in naive.trained_on(dataset)}
    below = {id_ for one in bad | trained for id_ in naive.below(one)}
    in_order = [id_ for wave in naive.waves(bad | trained | below) for id_ in wave]
    assert graph.impact(bad, datasets, through) == Impact(
        tuple(id_ for id_ in in_order if id_ in bad | trained),
        tuple(id_ for id_ in in_order if id_ not in bad | trained),
    )
    assert graph.cascade(bad, datasets, through) == naive.waves(trained | below)


@given(families(), KINDS, st.data())
def test_a_path_is_as_short_as_can_be_and_goes_one_way_where_it_can(
    family: Family, through: set[EdgeKind] | None, draw: st.DataObject
) -> None:
    naive, graph = Naive(family, through), graph_of(*family)
    start, end = draw.draw(st.sampled_from(naive.ids)), draw.draw(st.sampled_from(naive.ids))
    path = graph.path(start, end, through)
    downwards, upwards = naive.hops(start, up=False, down=True), naive.hops(start, up=True, down=False)
    either = naive.hops(start, up=True, down=True)
    if end not in either:
        assert path is None
        return
    assert path is not None
    assert (path.versions[0], path.versions[-1]) == (start, end)
    assert len(path.links) == len(path.versions) - 1 == downwards.get(end, upwards.get(end, either[end]))
    edges = {(one.parent, one.child, one.kind) for one in naive.edges}
    for (a, b), link in zip(pairwise(path.versions), path.links, strict=True):
        assert (link.parent, link.child, link.kind) in edges
        assert {link.parent, link.child} == {a, b}
        if end in downwards:
            assert link.parent == a
        elif end in upwards:
            assert link.parent == b


@given(families(), st.data())
def test_answers_do_not_depend_on_the_order_of_adding(family: Family, draw: st.DataObject) -> None:
    versions, edges = family
    other = graph_of(draw.draw(st.permutations(versions)), draw.draw(st.permutations(edges)), page=2)
    graph = graph_of(versions, edges)
    ids = sorted(one.id for one in versions)
    a, b = draw.draw(st.sampled_from(ids)), draw.draw(st.sampled_from(ids))
    for ask in (
        lambda g: list(g.ancestors(a).items()),
        lambda g: list(g.family(a).items()),
        lambda g: g.nearest_common_ancestor(a, b),
        lambda g: g.nearest_healthy_ancestor(a, lambda id_: int(id_[0], 16) % 3, 1),
        lambda g: g.impact([a, b], [dataset_id("a")]),
        lambda g: g.cascade([a, b], [dataset_id("c")]),
        lambda g: g.path(a, b),
        lambda g: (g.links_into(a), g.links_out_of(a), g.siblings(a)),
    ):
        assert ask(graph) == ask(other)


@given(families())
def test_networkx_sees_the_same_graph(family: Family) -> None:
    versions, edges = family
    made = graph_of(versions, edges).to_networkx()
    assert nx.is_directed_acyclic_graph(made)
    assert dict(made.nodes(data="names")) == {one.id: ((one.name, one.number),) for one in versions}
    assert set(made.edges(keys=True)) == {(one.parent, one.child, str(one.kind)) for one in edges}


def test_a_repair_hails_from_both_and_is_nearest_to_what_it_repairs() -> None:
    repair = [edge("drifted", "repaired", EdgeKind.REPAIR), edge("base", "repaired", EdgeKind.REPAIR)]
    graph = graph_of([version(name) for name in ("base", "drifted", "repaired")], [edge("base", "drifted"), *repair])
    base, drifted, repaired = named("base", "drifted", "repaired")
    assert graph.ancestors(repaired) == {base: 1, drifted: 1}
    assert graph.nearest_common_ancestor(drifted, repaired) == CommonAncestor(drifted, (0, 1))
    assert graph.path(drifted, repaired) == Path((drifted, repaired), (graph.links_out_of(drifted)))
    assert graph.nearest_common_ancestor(base) == CommonAncestor(base, (0,))


def test_of_ancestors_as_near_the_least_drift_then_the_latest_then_the_id_counts() -> None:
    names = ("old", "new", "twin", "worse")
    versions = [
        version("old", 1.0),
        version("new", 2.0),
        version("twin", 2.0),
        version("worse", 3.0),
        version("merged"),
    ]
    graph = graph_of(versions, [edge(name, "merged", EdgeKind.MERGE) for name in names])
    old, new, twin, worse, merged = named(*names, "merged")
    drift = {old: 0.05, new: 0.05, twin: 0.05, worse: 0.06}
    latest = HealthyAncestor(min(new, twin), 1, 0.05)
    assert graph.nearest_healthy_ancestor(merged, drift, 0.1) == latest
    assert graph.healthiest_ancestor(merged, drift) == latest
    drift[old] = 0.04
    assert graph.nearest_healthy_ancestor(merged, drift, 0.1) == HealthyAncestor(old, 1, 0.04)


def test_the_nearest_healthy_ancestor_is_not_always_the_healthiest() -> None:
    graph = graph_of([version(name) for name in "abc"], [edge("a", "b"), edge("b", "c")])
    a, b, c = named("a", "b", "c")
    drift = {a: 0.01, b: 0.1}
    assert graph.nearest_healthy_ancestor(c, drift, 0.1) == HealthyAncestor(b, 1, 0.1)
    assert graph.nearest_healthy_ancestor(c, drift, 0.09) == HealthyAncestor(a, 2, 0.01)
    assert graph.healthiest_ancestor(c, drift) == HealthyAncestor(a, 2, 0.01)
    assert graph.healthiest_ancestor(c, drift, most_hops=1) == HealthyAncestor(b, 1, 0.1)


def test_of_common_ancestors_as_near_in_all_the_one_between_counts_then_the_latest() -> None:
    lopsided = [edge("near-x", "x"), edge("near-x", "1"), edge("1", "2"), edge("2", "y")]
    between = [edge("middle", "3"), edge("3", "x"), edge("middle", "4"), edge("4", "y")]
    versions = [version(name) for name in ("x", "y", "near-x", "middle", *"1234")]
    graph = graph_of(versions, lopsided + between)
    x, y = named("x", "y")
    assert graph.nearest_common_ancestor(x, y) == CommonAncestor(version_id("middle"), (2, 2))
    for late in ("p", "q"):
        made = [version(name, float(name == late)) for name in ("p", "q", "x", "y")]
        graph = graph_of(made, [edge(parent, child) for parent in "pq" for child in "xy"])
        assert graph.nearest_common_ancestor(x, y) == CommonAncestor(version_id(late), (1, 1))


def test_a_path_follows_the_arrows_even_where_another_way_is_shorter() -> None:
    edges = [edge("a", "b"), edge("b", "c"), edge("c", "d"), edge("a", "child"), edge("d", "child")]
    graph = graph_of([version(name) for name in ("a", "b", "c", "d", "child")], edges)
    a, b, c, d = named(*"abcd")
    for start, end, way in ((a, d, (a, b, c, d)), (d, a, (d, c, b, a))):
        path = graph.path(start, end)
        assert path is not None
        assert path.versions == way
    sideways = graph.path(version_id("child"), c)
    assert sideways is not None
    assert sideways.versions == (version_id("child"), d, c)


def test_edges_of_a_kind_that_is_not_followed_hide_what_is_behind_them() -> None:
    edges = [edge("a", "b", EdgeKind.RETRAIN), edge("b", "c")]
    graph = graph_of([version(name) for name in "abc"], edges)
    a, b, c = named("a", "b", "c")
    weights = set(EdgeKind) - {EdgeKind.RETRAIN}
    assert graph.ancestors(c, weights) == {b: 1}
    assert graph.nearest_healthy_ancestor(c, {a: 0.0}, 0.1, weights) is None
    assert graph.nearest_healthy_ancestor(c, {a: 0.0}, 0.1) == HealthyAncestor(a, 2, 0.0)
    assert graph.ancestors(c, ()) == {}


def test_unrelated_versions_have_neither_a_path_nor_a_common_ancestor() -> None:
    graph = graph_of([version("a"), version("b")])
    assert graph.path(*named("a", "b")) is None
    assert graph.nearest_common_ancestor(*named("a", "b")) is None
    with pytest.raises(ValueError, match="no versions"):
        graph.nearest_common_ancestor()


def test_an_array_of_drift_may_be_older_than_the_graph() -> None:
    graph = graph_of([version("a"), version("b"), version("c")], [edge("a", "b"), edge("c", "b")])
    assert graph.versions() == named("a", "b", "c")
    assert graph.nearest_healthy_ancestor(version_id("b"), np.array([0.05]), 0.1) == HealthyAncestor(
        version_id("a"), 1, 0.05
    )
    assert graph.healthiest_ancestor(version_id("b"), np.array([])) is None


def test_a_version_that_is_not_there_is_unknown() -> None:
    graph = graph_of([version("a")])
    a, b = named("a", "b")
    for ask in (
        lambda: graph.ancestors(b),
        lambda: graph.path(a, b),
        lambda: graph.impact([b]),
        lambda: graph.cascade([a, b]),
        lambda: graph.nearest_healthy_ancestor(b, {}, 0.1),
        lambda: graph.made_s(b),
    ):
        with pytest.raises(UnknownVersion):
            ask()
    assert graph.impact(datasets=[dataset_id("nobody's")]) == Impact((), ())
    assert b not in graph
    assert len(graph) == 1


def test_what_is_known_of_a_version_is_found() -> None:
    store = MemoryLineageStore()
    graph = LineageGraph()
    store.add(version("a", 12.5, data("x")))
    graph.follow(store.changes())
    store.add(Version(version_id("a"), "digits", "4"))
    store.add(version("b"), [edge("a", "b", data=data("y"))])
    graph.follow(store.changes(graph.counter))
    a, b = named("a", "b")
    assert graph.counter == store.counter()
    assert (graph.made_s(a), graph.dataset(a), graph.dataset(b)) == (12.5, dataset_id("x"), None)
    assert graph.names(a) == (("model-a", "1"), ("digits", "4"))
    assert (graph.find("digits", "4"), graph.find("digits", "5")) == (a, None)
    assert (graph.models(), graph.numbers("digits")) == (("digits", "model-a", "model-b"), ("4",))
    assert [link.dataset for link in graph.links_into(b)] == [dataset_id("y")]
    assert graph.beginning_with(a[:10]) == (a,)
    assert graph.impact(datasets=[dataset_id("y")]) == Impact((b,), ())


def test_a_chain_that_is_longer_than_the_arrays_at_first_is_walked_to_its_end() -> None:
    n = 3_000
    graph = graph_of([version(i) for i in range(n)], [edge(i, i + 1) for i in range(n - 1)], page=2_500)
    assert list(graph.ancestors(version_id(n - 1)).values()) == list(range(1, n))
    assert graph.nearest_healthy_ancestor(version_id(n - 1), {version_id(0): 0.0}, 0.1) == HealthyAncestor(
        version_id(0), n - 1, 0.0
    )
    assert len(graph.cascade([version_id(0)])) == n - 1
