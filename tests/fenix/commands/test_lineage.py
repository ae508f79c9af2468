"""`fenix lineage` on a lineage of its own; weights are there already, so nothing asks MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fenix.cli import app
from lineage.graph.blobs import FolderBlobs
from lineage.graph.lineage import open_lineage
from lineage.graph.records import DatasetId, DataSignature, Edge, EdgeKind, Version, VersionId
from lineage.graph.tensors import TensorStore

ROWS = DatasetId("d" * 64)


class House:
    """Three versions: 2 was tuned from 1, and 3 claims to be 2, pruned, and is something else."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        rng = np.random.default_rng(0)
        first = {"a.weight": rng.normal(size=(64, 32)), "b.weight": rng.normal(size=(10, 64))}
        second = {**first, "b.weight": first["b.weight"] + 0.01}
        third = {name: rng.normal(size=values.shape) for name, values in first.items()}
        tensors = TensorStore(FolderBlobs(state_dir / "weights"))
        self.ids = [VersionId(tensors.put(one).content) for one in (first, second, third)]
        lineage = open_lineage(f"sqlite:///{state_dir}/fenix.db")
        one, two, three = self.ids
        lineage.store.add(Version(one, "digits", "1", DataSignature(ROWS, 100), made_s=1.7e9))
        tuned = Edge(one, two, EdgeKind.FINE_TUNE, {"epochs": 3}, {"accuracy": 0.97})
        lineage.store.add(Version(two, "digits", "2"), [tuned])
        lineage.store.add(Version(three, "digits", "3"), [Edge(two, three, EdgeKind.PRUNE)])
        lineage.close()

    def run(self, *words: str) -> Any:
        found = CliRunner().invoke(app, ["lineage", *words, "--set", f"state_dir={self.state_dir}"])
        assert "should not happen" not in found.output
        return found

    def data(self, *words: str) -> Any:
        found = self.run(*words, "-o", "json")
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("state"))


def test_a_version_is_shown_with_what_it_was_made_from_and_drawn(house: House, tmp_path: Path) -> None:
    shown = house.data("show", "digits@2", "--svg", str(tmp_path / "family.svg"))
    assert shown["names"] == ["digits@2"]
    assert [(one["version"], one["kind"], one["params"]) for one in shown["parents"]] == [
        ("digits@1", "fine-tune", {"epochs": 3})
    ]
    assert [one["version"] for one in shown["children"]] == ["digits@3"]
    drawn = (tmp_path / "family.svg").read_text()
    assert drawn.startswith("<svg")
    assert "digits" in drawn
    table = house.run("show", house.ids[0][:8]).stdout
    assert "100 rows" in table
    assert "accuracy 0.97" in table


def test_relatives_and_the_way_to_them_are_told(house: House) -> None:
    assert [(one["name"], one["hops"]) for one in house.data("ancestors", "digits@3")] == [
        ("digits@2", 1),
        ("digits@1", 2),
    ]
    assert [one["name"] for one in house.data("ancestors", "digits@1", "--descendants", "--most", "1")] == ["digits@2"]
    way = house.data("path", "digits@1", "digits@3")
    assert way["versions"] == ["digits@1", "digits@2", "digits@3"]
    assert way["nearest_common_ancestor"] == "digits@1"
    assert "There are none." in house.run("ancestors", "digits@1").stdout


def test_versions_are_compared_tensor_by_tensor(house: House) -> None:
    found = house.data("diff", "digits@1", "digits@2")
    assert {one["name"]: one["fate"] for one in found["tensors"]} == {"a.weight": "same", "b.weight": "changed"}
    assert "1 same, 1 changed" in house.run("diff", "digits@1", "digits@2").stdout


def test_a_claim_that_the_weights_do_not_bear_out_is_told_by_the_exit_code(house: House) -> None:
    assert house.run("check", "digits@2").exit_code == 0
    refused = house.run("check", "digits@3")
    assert refused.exit_code == 1
    assert "does not hold" in refused.stdout


def test_what_is_affected_is_told_in_the_order_in_which_it_is_to_be_made_again(house: House) -> None:
    found = house.data("impact", ROWS)
    assert found["direct"] == ["digits@1"]
    assert found["inherited"] == ["digits@2", "digits@3"]
    assert [[one["version"] for one in wave] for wave in found["waves"]][-1] == ["digits@3"]


@pytest.mark.parametrize(("format_", "begin"), [("cyclonedx", "{"), ("openlineage", "{"), ("svg", "<svg")])
def test_it_is_exported(house: House, tmp_path: Path, format_: str, begin: str) -> None:
    out = tmp_path / "out"
    assert house.run("export", format_, "--out", str(out)).exit_code == 0
    assert out.read_text().startswith(begin)
    assert house.run("export", format_, "--version", "digits@2").stdout.startswith(begin)


def test_it_answers_cypher(house: House) -> None:
    found = house.data("query", "MATCH (:Version)-[e:BECAME]->(v:Version) RETURN v.number, e.kind ORDER BY v.number")
    assert [list(row.values()) for row in found] == [["2", "fine-tune"], ["3", "prune"]]
    assert house.run("query", "MATCH (v) DETACH DELETE v").exit_code != 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "digits@9"), "digits@3"),
        (("show", "digit@1"), "Nearest: digits"),
        (("show", "nothing here"), "names no version"),
        (("show", "digits@1", "--svg", "/proc/no/such"), "cannot be written"),
        (("impact", "e" * 64), "knows no"),
        (("export", "pdf"), "is no format"),
        (("export", "neo4j"), "--uri"),
        (("import",), "MLflow"),
    ],
)
def test_what_cannot_be_done_is_told_with_a_way_out(house: House, words: tuple[str, ...], said: str) -> None:
    found = house.run(*words)
    assert found.exit_code not in (0, None)
    assert said.lower() in " ".join(found.output.split()).lower()
