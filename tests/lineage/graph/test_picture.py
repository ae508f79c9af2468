"""Pictures of families are well-formed, say what they show, and stay readable."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from lineage.graph.family import Family, family_of
from lineage.graph.picture import alias_marks, draw_family
from lineage.graph.records import Edge, EdgeKind, Version
from tests.lineage.graph.families import digits_family, id_of

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of the versions."""
    found = [group.find(f"{SVG}rect") for group in ElementTree.fromstring(svg).iter(f"{SVG}g")]
    sides = [
        [float(rect.get(name, "")) for name in ("x", "y", "width", "height")] for rect in found if rect is not None
    ]
    return [(x, y, x + width, y + height) for x, y, width, height in sides]


def large_family(n: int) -> Family:
    rng = np.random.default_rng(0)
    versions = [Version(id_of(str(i)), "digits", str(i)) for i in range(n)]
    kinds = list(EdgeKind)
    edges = [
        Edge(versions[int(rng.integers(max(0, i - 20), i))].id, versions[i].id, kinds[int(rng.integers(len(kinds)))])
        for i in range(1, n)
    ]
    return family_of(versions, edges)


def test_versions_edges_and_marks_are_named() -> None:
    svg = draw_family(
        digits_family(), id_of("tuned"), {id_of("tuned"): ["champion"], id_of("other"): ["drifted", "<odd>"]}
    )
    found = texts(svg)
    for text in (
        "digits 1",
        "digits-small 1",
        id_of("merged")[:12],
        "champion",
        "drifted",
        "<odd>",
        "fine-tune",
        "fuse",
    ):
        assert text in found, text
    title = ElementTree.fromstring(svg).find(f"{SVG}title")
    assert title is not None
    assert title.text == "The family of digits@2: 7 versions"
    assert len(boxes(svg)) == 7


def test_nothing_that_a_name_holds_becomes_markup() -> None:
    evil = "</text><script>alert(1)</script>\"'&"
    version = Version(id_of("evil"), evil, "1")
    edge = Edge(id_of("base"), id_of("evil"), EdgeKind.MERGE, {"<b>": "]]>\x00<script>"})
    base = Version(id_of("base"), "base", "1")
    svg = draw_family(family_of([base, version], [edge]), None, {id_of("evil"): [evil, "\x07"]})
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    assert "<script" not in svg
    assert evil in "".join(title.text or "" for title in root.iter(f"{SVG}title"))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 200])
def test_versions_do_not_overlap_and_are_inside_the_picture(n: int) -> None:
    svg = draw_family(large_family(n))
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    found = boxes(svg)
    assert len(found) == n
    assert all(left >= 0 and top >= 0 and right <= width and bottom <= height for left, top, right, bottom in found)
    for one, other in combinations(found, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def test_a_line_goes_down_and_a_broad_family_to_the_right() -> None:
    versions = [Version(id_of(str(i)), "digits", str(i)) for i in range(30)]
    line = [Edge(one.id, other.id, EdgeKind.FINE_TUNE) for one, other in pairwise(versions)]
    star = [Edge(versions[0].id, other.id, EdgeKind.FINE_TUNE) for other in versions[1:]]
    for edges in (line, star):
        assert max(right for _, _, right, _ in boxes(draw_family(family_of(versions, edges)))) < 500


def test_aliases_in_mlflow_become_marks() -> None:
    aliases = {"digits": {"champion": "2", "canary": "2", "old": "77"}, "other": {"champion": "1"}}
    assert alias_marks(digits_family(), aliases) == {id_of("tuned"): ["canary", "champion"]}


def test_what_is_left_out_is_counted() -> None:
    family = digits_family()
    shown = Family(family.versions, family.edges, {id_of("base"): 1234})
    assert "+1,234" in texts(draw_family(shown))


def test_two_kinds_of_edge_between_the_same_versions_are_one_line_that_names_both() -> None:
    versions = [Version(id_of(name)) for name in "ab"]
    edges = [Edge(id_of("a"), id_of("b"), kind) for kind in (EdgeKind.PRUNE, EdgeKind.QUANTISE)]
    svg = draw_family(family_of(versions, edges))
    assert "prune, quantise" in texts(svg)
    assert len(re.findall(r"<path d=\"M[^\"]*\" fill=\"none\"", svg)) == 1


def test_long_names_are_shortened_in_the_box_and_whole_in_the_tip() -> None:
    name = "a-model-of-a-shop-with-a-very-long-name"
    svg = draw_family(family_of([Version(id_of("a"), name, "12345")], []))
    (first, _) = texts(svg)
    assert len(first) < 20
    assert first.startswith("a-model")
    assert first.endswith("12345")
    assert f"{name}@12345" in svg
