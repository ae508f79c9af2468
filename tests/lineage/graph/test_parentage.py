"""Weights bear out true claims of parentage, and contradict false ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lineage.errors import ArtifactRefused, UnknownVersion
from lineage.graph.blobs import MemoryBlobs
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.parentage import FAR_ABOVE, Parentage, check_parentage, check_stored, correlation
from lineage.graph.records import Edge, EdgeKind, Version, VersionId
from lineage.graph.tensors import TensorStore, content_hash
from tests.lineage.graph.networks import Tensors, accuracy, fresh, trained

FINE_TUNE, PRUNE, QUANTISE = EdgeKind.FINE_TUNE, EdgeKind.PRUNE, EdgeKind.QUANTISE
MERGE, REPAIR, FUSE = EdgeKind.MERGE, EdgeKind.REPAIR, EdgeKind.FUSE


@cache
def network(seed: int) -> Tensors:
    """Trained from an initialisation of its own."""
    return trained(fresh(seed), seed, 300)


@cache
def child(seed: int) -> Tensors:
    """Network 0, trained further on noisy digits."""
    return trained(network(0), seed, 300, noise=0.4)


def check(kind: EdgeKind, of: Tensors, *parents: Tensors) -> Parentage:
    return check_parentage(kind, of, parents, np.random.default_rng(1))


def quantised(tensors: Tensors, n_bits: int, by_row: bool) -> Tensors:
    made = {}
    for name, array in tensors.items():
        if array.ndim > 1:
            axis = 1 if by_row else None
            low, high = array.min(axis=axis, keepdims=True), array.max(axis=axis, keepdims=True)
            step = (high - low) / (2**n_bits - 1)
            array = np.round((array - low) / step) * step + low
        made[name] = array
    return made


def as_integers(tensors: Tensors) -> Tensors:
    made: Tensors = {}
    for name, array in tensors.items():
        if array.ndim > 1:
            scale = np.abs(array).max() / 127
            made[name], made[f"{name}_scale"] = np.round(array / scale).astype(np.int8), np.array(scale)
        else:
            made[name] = array
    return made


def pruned(tensors: Tensors, share: float = 0.5) -> Tensors:
    return {
        name: np.where(np.abs(array) < np.quantile(np.abs(array), share), 0, array) for name, array in tensors.items()
    }


def mixed(one: Tensors, other: Tensors, share: float) -> Tensors:
    return {name: (1 - share) * one[name] + share * other[name] for name in one}


def with_value(tensors: Tensors, name: str, value: float) -> Tensors:
    array: npt.NDArray[Any] = tensors[name].copy()
    array.reshape(-1)[3] = value
    return {**tensors, name: array}


def test_the_networks_of_these_tests_have_learned_something() -> None:
    assert min(accuracy(network(0)), accuracy(network(1)), accuracy(child(7))) > 0.85


@pytest.mark.parametrize("kind", [FINE_TUNE, EdgeKind.SPECIALISE])
def test_a_network_that_was_trained_further_is_a_child(kind: EdgeKind) -> None:
    found = check(kind, child(7), network(0))
    assert found.holds
    assert found.statistic is not None
    assert found.chance is not None
    assert found.statistic > 20 * found.chance
    assert "related" in found.sentence


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_networks_from_other_seeds_are_not_parent_and_child(seed: int) -> None:
    found = check(FINE_TUNE, network(seed), network(0))
    assert found.holds is False
    assert found.statistic is not None
    assert abs(found.statistic) < 0.1
    assert "Nothing shows" in found.sentence


def test_the_same_initialisation_shows_however_it_was_trained() -> None:
    other = trained(fresh(0), 99, 300, noise=0.5)
    assert check(FINE_TUNE, other, network(0)).holds
    assert check(FINE_TUNE, network(0), fresh(0)).holds


def test_the_chance_that_is_told_is_that_of_unrelated_networks() -> None:
    rng = np.random.default_rng(0)
    found = [correlation(fresh(seed), fresh(seed + 1), rng) for seed in range(0, 80, 2)]
    units = [r / deviation for r, deviation in (one for one in found if one)]
    assert len(units) == 40
    assert 0.7 < np.std(units) < 1.3
    assert np.abs(units).max() < FAR_ABOVE


def test_units_in_another_order_are_no_evidence() -> None:
    order = np.random.default_rng(0).permutation(32)
    shuffled = {**network(0), "0.weight": network(0)["0.weight"][order], "0.bias": network(0)["0.bias"][order]}
    shuffled["1.weight"] = network(0)["1.weight"][:, order]
    shuffled["2.weight"] = network(0)["2.weight"] * 0 + fresh(5)["2.weight"]
    assert check(FINE_TUNE, shuffled, network(0)).holds is False


def test_a_single_layer_shows_nothing() -> None:
    one, other = ({name: fresh(seed)[name] for name in ("0.weight", "0.bias")} for seed in (0, 1))
    assert check(FINE_TUNE, one, other).holds is None
    assert check(FINE_TUNE, one, one).holds is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({name: array for name, array in network(0).items() if name != "1.bias"}, "lacks '1.bias'"),
        ({**network(0), "extra": np.zeros(3)}, "no parent has 'extra'"),
        (fresh(0, 32, 16), "shapes differ of '1.bias', '1.weight', '2.weight'"),
    ],
)
@pytest.mark.parametrize("kind", [FINE_TUNE, MERGE, REPAIR])
def test_other_names_or_shapes_contradict_a_claim(kind: EdgeKind, other: Tensors, said: str) -> None:
    found = check(kind, other, network(0), child(7))
    assert found.holds is False
    assert said in found.sentence


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("n_bits", [2, 4, 8])
def test_a_rounding_is_told_from_that_of_another_network(n_bits: int, by_row: bool) -> None:
    found = check(QUANTISE, quantised(network(0), n_bits, by_row), network(0))
    assert found.holds
    assert found.statistic == 1.0
    assert found.chance is not None
    assert found.chance < 0.9
    assert check(QUANTISE, quantised(network(1), n_bits, by_row), network(0)).holds is False
    assert check(QUANTISE, quantised(child(7), n_bits, by_row), network(0)).holds is False


def test_integers_and_halves_are_roundings_too() -> None:
    halves = {name: array.astype(np.float16) for name, array in network(0).items()}
    brains = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in network(0).items()}
    for made in (as_integers(network(0)), halves, brains):
        assert check(QUANTISE, made, network(0)).holds
        assert check(QUANTISE, made, network(1)).holds is False
    assert check(QUANTISE, child(7), network(0)).holds is False


@pytest.mark.parametrize("integers", [False, True])
def test_groups_of_a_row_may_have_grids_of_their_own(integers: bool) -> None:
    def by_group(tensors: Tensors) -> Tensors:
        made = dict(tensors)
        groups = tensors["0.weight"].reshape(-1, 32)
        step = np.abs(groups).max(axis=1, keepdims=True) / 7
        places = np.round(groups / step)
        made["0.weight"] = (places.astype(np.int8) if integers else places * step).reshape(tensors["0.weight"].shape)
        return made

    found = check(QUANTISE, by_group(network(0)), network(0))
    assert (found.holds, found.statistic) == (True, 1.0)
    assert check(QUANTISE, by_group(network(1)), network(0)).holds is False
    assert check(QUANTISE, by_group(child(7)), network(0)).holds is False


def test_values_that_were_clipped_to_the_ends_of_the_grid_are_roundings() -> None:
    clipped = {name: np.clip(array, *np.quantile(array, [0.02, 0.98])) for name, array in network(0).items()}
    assert check(QUANTISE, quantised(clipped, 8, by_row=False), network(0)).holds


def test_packed_entries_show_nothing() -> None:
    renamed = {name.replace("0.weight", "0.packed"): array for name, array in network(0).items()}
    assert check(QUANTISE, renamed, network(0)).holds is None
    assert check(QUANTISE, {"w": np.ones(3)}, network(0)).holds is False
    packed = {**network(0), "0.weight": np.zeros((32, 32), np.uint8)}
    assert check(QUANTISE, packed, network(0)).holds is None


def test_pruning_is_borne_out_by_what_is_left() -> None:
    found = check(PRUNE, pruned(network(0)), network(0))
    assert (found.holds, found.statistic) == (True, 1.0)
    assert check(PRUNE, pruned(child(7)), network(0)).holds
    assert check(PRUNE, pruned(network(1)), network(0)).holds is False


def test_without_more_zeros_nothing_was_pruned() -> None:
    found = check(PRUNE, child(7), network(0))
    assert found.holds is False
    assert "nothing was pruned" in found.sentence


def test_units_that_were_cut_out_show_nothing_and_units_that_grew_contradict() -> None:
    assert check(PRUNE, fresh(0, 16, 32), network(0)).holds is None
    assert check(PRUNE, fresh(0, 64, 32), network(0)).holds is False
    nothing = {name: np.zeros_like(array) for name, array in network(0).items()}
    assert check(PRUNE, nothing, network(0)).holds is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("kind", [MERGE, REPAIR])
def test_what_lies_between_two_parents_is_their_child(kind: EdgeKind, share: float) -> None:
    found = check(kind, mixed(child(7), child(8), share), child(7), child(8))
    assert found.holds
    assert found.statistic == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("kind", [MERGE, REPAIR])
def test_a_sibling_or_a_stranger_is_no_child_of_two(kind: EdgeKind) -> None:
    sibling = check(kind, child(9), child(7), child(8))
    assert sibling.holds is False
    assert sibling.statistic == pytest.approx(sibling.chance, rel=0.15)
    assert check(kind, network(1), child(7), child(8)).holds is False


def test_a_repair_lies_between_and_not_beyond() -> None:
    beyond = mixed(child(7), child(8), 1.9)
    assert check(REPAIR, beyond, child(7), child(8)).holds is False
    assert check(MERGE, beyond, child(7), child(8)).holds


def test_a_repair_layer_by_layer_that_was_refined_with_labels_holds() -> None:
    shares = {"0": 0.2, "1": 0.9, "2": 0.5}
    layers = {name: mixed(child(7), child(8), shares[name[0]])[name] for name in child(7)}
    refined = trained(layers, 3, 40, frozen=("0.weight", "0.bias", "1.weight", "1.bias"))
    assert check(REPAIR, layers, child(7), child(8)).statistic == pytest.approx(0.0, abs=1e-3)
    assert check(REPAIR, refined, child(8), child(7)).holds


def test_normalisation_statistics_of_a_repair_may_be_anything() -> None:
    def with_statistics(tensors: Tensors, value: float) -> Tensors:
        return {**tensors, "norm.running_var": np.full(32, value), "norm.num_batches_tracked": np.array(int(value))}

    made = with_statistics(mixed(child(7), child(8), 0.4), 1e6)
    assert check(REPAIR, made, with_statistics(child(7), 1.0), with_statistics(child(8), 2.0)).holds


def test_a_merge_of_three_lies_in_their_plane() -> None:
    parents = [child(7), child(8), child(9)]
    mean = {name: (0.2 * parents[0][name] + 0.3 * parents[1][name] + 0.5 * parents[2][name]) for name in parents[0]}
    assert check(MERGE, mean, *parents).holds
    assert check(MERGE, mean, *parents[:2]).holds is not True


def test_a_merge_wants_all_parents_and_parents_that_differ() -> None:
    assert check(MERGE, child(7), network(0)).holds is None
    assert check(MERGE, child(7), network(0), network(0)).holds is None
    assert check(REPAIR, child(7), network(0)).holds


def test_a_fusion_has_the_tensors_of_its_parts() -> None:
    whole = {f"{part}.{name}": array for part in (0, 1) for name, array in network(part).items()}
    assert check(FUSE, whole, network(0), network(1)).holds
    assert check(FUSE, with_value(whole, "0.1.weight", 0.5), network(0), network(1)).holds is False
    idle = check(FUSE, whole, network(0), network(1), network(2))
    assert idle.holds is False
    assert "1 of the 3 parts" in idle.sentence
    assert check(FUSE, {}, network(0)).holds is None


@pytest.mark.parametrize("kind", [EdgeKind.DISTIL, EdgeKind.RETRAIN])
def test_of_a_student_or_a_new_beginning_weights_say_nothing(kind: EdgeKind) -> None:
    assert check(kind, network(1), network(0)).holds is None


@pytest.mark.parametrize("kind", list(EdgeKind))
def test_weights_that_are_not_finite_are_named(kind: EdgeKind) -> None:
    with pytest.raises(ArtifactRefused, match=r"'1\.weight' holds values that are not finite"):
        check(kind, with_value(network(0), "1.weight", np.nan), network(0))
    with pytest.raises(ValueError, match="no parents"):
        check(kind, network(0))


def test_every_edge_into_a_stored_version_is_checked() -> None:
    tensors, lineage = TensorStore(MemoryBlobs()), MemoryLineageStore()
    one, other, middle = child(7), child(8), mixed(child(7), child(8), 0.5)
    ids = [VersionId(tensors.put(version).content) for version in (one, other, middle)]
    gone = VersionId(content_hash(network(0)))
    lineage.add_all(
        [Version(id) for id in (*ids, gone)],
        [
            Edge(ids[0], ids[2], EdgeKind.REPAIR),
            Edge(ids[1], ids[2], EdgeKind.REPAIR),
            Edge(ids[1], ids[2], EdgeKind.PRUNE),
            Edge(gone, ids[2], EdgeKind.FINE_TUNE),
        ],
    )
    found = {one.kind: one for one in check_stored(lineage, tensors, ids[2], np.random.default_rng(0))}
    assert {kind: one.holds for kind, one in found.items()} == {REPAIR: True, PRUNE: False, FINE_TUNE: None}
    assert gone[:12] in found[FINE_TUNE].sentence
    assert check_stored(lineage, tensors, ids[0], np.random.default_rng(0)) == ()
    with pytest.raises(UnknownVersion):
        check_stored(lineage, tensors, VersionId("0" * 64), np.random.default_rng(0))
