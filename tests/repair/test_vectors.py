from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.errors import NoParameterSpace, ParametersDiffer, RepairRefused, WeightsBroken
from repair.vectors import Array, apply, layer_of, repair_vector


def tensors(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "body.0.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "body.0.bias": rng.normal(size=3).astype(np.float32),
        "body.1.running_var": rng.uniform(0.5, 2.0, size=3).astype(np.float32),
        "body.1.num_batches_tracked": np.array(seed + 7),
        "head.weight": rng.normal(size=(2, 3)).astype(np.float32),
    }


def test_a_whole_step_leads_to_the_ancestor_and_none_stays_with_the_drifted_version() -> None:
    ancestor, drifted = tensors(1), tensors(2)
    vector = repair_vector(ancestor, drifted)
    for scale, reached in ((1.0, ancestor), (0.0, drifted)):
        for name, tensor in apply(drifted, vector, scale).items():
            wanted = drifted[name] if tensor.dtype.kind == "i" else reached[name]
            np.testing.assert_allclose(tensor, wanted, rtol=1e-5)
            assert tensor.dtype == drifted[name].dtype


@given(st.floats(0.0, 1.0))
def test_a_step_for_every_layer_is_the_step_for_the_whole_model(scale: float) -> None:
    drifted = tensors(2)
    vector = repair_vector(tensors(1), drifted)
    whole = apply(drifted, vector, scale)
    by_layer = apply(drifted, vector, dict.fromkeys(vector.layers, scale))
    for name in drifted:
        np.testing.assert_array_equal(whole[name], by_layer[name])


def test_a_layer_that_is_not_named_stays_and_nothing_given_is_changed() -> None:
    drifted, before = tensors(2), tensors(2)
    moved = apply(drifted, repair_vector(tensors(1), drifted), {"head": 0.5})
    np.testing.assert_array_equal(moved["body.0.weight"], before["body.0.weight"])
    assert not np.array_equal(moved["head.weight"], before["head.weight"])
    moved["body.0.weight"][:] = 0.0
    np.testing.assert_array_equal(drifted["body.0.weight"], before["body.0.weight"])


def test_layers_that_do_not_differ_are_not_listed() -> None:
    drifted = tensors(2)
    vector = repair_vector({**drifted, "head.weight": drifted["head.weight"] + 1.0}, drifted)
    assert vector.layers == ("head",)
    assert vector.norm == pytest.approx(np.sqrt(6.0))
    assert vector.norms() == {"head": pytest.approx(np.sqrt(6.0))}
    assert [layer_of(name) for name in ("a.b.weight", "weight")] == ["a.b", ""]


def test_a_variance_stays_positive_beyond_the_ends() -> None:
    drifted, ancestor = tensors(2), tensors(1)
    ancestor["body.1.running_var"] = drifted["body.1.running_var"] / 10.0
    assert np.all(apply(drifted, repair_vector(ancestor, drifted), 3.0)["body.1.running_var"] > 0.0)


def test_half_precision_keeps_its_dtype() -> None:
    half = {"weight": np.array([1.0, 2.0], dtype=np.float16)}
    moved = apply(half, repair_vector({"weight": np.array([3.0, 2.0], dtype=np.float16)}, half), 0.5)
    assert moved["weight"].dtype == np.float16
    assert moved["weight"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"head.weight": None}, ParametersDiffer, r"the ancestor lacks head.weight"),
        ({"new.weight": np.zeros(2)}, ParametersDiffer, r"the drifted version lacks new.weight"),
        ({"head.weight": np.zeros((1, 3), np.float32)}, ParametersDiffer, r"float32\[1, 3\] in the ancestor"),
        ({"head.weight": np.zeros((2, 3))}, ParametersDiffer, r"float64\[2, 3\] in the ancestor"),
        ({"head.weight": np.full((2, 3), np.nan, np.float32)}, WeightsBroken, r"head.weight of the ancestor"),
    ],
)
def test_what_is_not_of_the_same_space_is_refused(
    change: dict[str, Array | None], error: type[RepairRefused], said: str
) -> None:
    ancestor = {name: tensor for name, tensor in {**tensors(1), **change}.items() if tensor is not None}
    with pytest.raises(error, match=said):
        repair_vector(ancestor, tensors(2))


def test_models_without_numbers_to_move_are_refused() -> None:
    with pytest.raises(NoParameterSpace, match="ancestor"):
        repair_vector({}, tensors())
    with pytest.raises(NoParameterSpace, match="drifted"):
        repair_vector(tensors(), {"trees": np.arange(5)})


def test_quantised_weights_that_differ_have_nothing_between() -> None:
    drifted = {"scale": np.ones(2), "codes": np.array([1, 2])}
    with pytest.raises(ParametersDiffer, match="codes"):
        repair_vector({**drifted, "codes": np.array([1, 3])}, drifted)


@pytest.mark.parametrize("scale", [np.nan, {"head": np.inf}, {"nowhere": 1.0}])
def test_a_scale_that_is_none_is_refused(scale: float | dict[str, float]) -> None:
    with pytest.raises(RepairRefused):
        apply(tensors(2), repair_vector(tensors(1), tensors(2)), scale)


def test_a_vector_of_another_model_is_refused() -> None:
    vector = repair_vector(tensors(1), tensors(2))
    with pytest.raises(ParametersDiffer):
        apply({**tensors(2), "head.weight": np.zeros((5, 3), np.float32)}, vector, 1.0)
