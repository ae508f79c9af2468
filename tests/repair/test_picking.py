from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.errors import RepairRefused
from repair.picking import PickPlan, disagreement, pick, uncertainty


def probabilities(n: int, seed: int = 0, n_classes: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(n_classes), n)


@given(
    st.integers(1, 80),
    st.integers(0, 100),
    st.sets(st.integers(0, 79)),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.booleans(),
)
def test_no_row_is_picked_twice_the_budget_holds_and_some_are_random(
    n_rows: int, n: int, taken: set[int], share: float, with_members: bool, with_embeddings: bool
) -> None:
    taken = {row for row in taken if row < n_rows}
    given_ = probabilities(n_rows)
    found = pick(
        given_,
        n,
        np.random.default_rng(1),
        members=np.stack([given_, probabilities(n_rows, 2)]) if with_members else None,
        embeddings=np.random.default_rng(3).normal(size=(n_rows, 4)) if with_embeddings else None,
        taken=taken,
        plan=PickPlan(random_share=share),
    )
    rows = [one.row for one in found]
    assert len(set(rows)) == len(rows) == min(n, n_rows - len(taken))
    assert not set(rows) & taken
    n_random = sum(one.reason == "random" for one in found)
    assert n_random >= min(len(rows), max(1, math.floor(share * len(rows))))
    assert n_random <= max(1, math.ceil(share * len(rows)))


def test_the_same_seed_picks_the_same_rows_and_another_one_others() -> None:
    given_ = probabilities(200)
    one, same, other = (pick(given_, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_unsure_rows_are_preferred() -> None:
    given_ = np.tile([0.98, 0.01, 0.01], (100, 1))
    given_[40:50] = [0.4, 0.35, 0.25]
    found = pick(given_, 10, np.random.default_rng(0), plan=PickPlan(random_share=0.1, keep=1.0))
    assert {one.row for one in found if one.reason == "uncertain"} <= set(range(40, 50))


def test_rows_that_the_lineage_disagrees_on_are_preferred() -> None:
    sure = np.tile([0.9, 0.05, 0.05], (100, 1))
    other = sure.copy()
    other[70:80] = [0.05, 0.9, 0.05]
    plan = PickPlan(random_share=0.1, disagreement_share=1.0, keep=1.0)
    found = pick(sure, 10, np.random.default_rng(0), members=np.stack([sure, other]), plan=plan)
    assert {one.row for one in found if one.reason == "disagreement"} <= set(range(70, 80))


def test_equally_informative_rows_are_spread_out() -> None:
    given_ = np.tile([0.4, 0.3, 0.3], (90, 1))
    embeddings = np.repeat([[0.0], [10.0], [20.0]], 30, axis=0) + np.linspace(0.0, 0.1, 90)[:, None]
    found = pick(
        given_, 3, np.random.default_rng(0), embeddings=embeddings, plan=PickPlan(random_share=0.1, keep=100.0)
    )
    assert {one.row // 30 for one in found} == {0, 1, 2}


def test_scores_are_those_of_the_library() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its imports have deprecated
        from skactiveml.pool import average_kl_divergence, uncertainty_scores
    given_ = probabilities(50)
    np.testing.assert_allclose(uncertainty(given_), uncertainty_scores(given_, method="margin_sampling"), atol=1e-9)
    entropy = uncertainty_scores(given_, method="entropy") / math.log(3)
    np.testing.assert_allclose(uncertainty(given_, "entropy"), entropy, atol=1e-9)
    members = np.stack([given_, probabilities(50, 1), probabilities(50, 2)])
    np.testing.assert_allclose(disagreement(members), average_kl_divergence(members), atol=1e-6)


def test_rows_that_the_model_cannot_answer_are_the_most_unsure() -> None:
    given_ = probabilities(10)
    given_[4] = np.nan
    assert uncertainty(given_)[4] == 1.0 == uncertainty(given_, "entropy")[4]
    assert np.isfinite(disagreement(np.stack([given_, given_]))).all()


def test_a_wrong_budget_or_length_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RepairRefused, match="budget"):
        pick(probabilities(5), -1, rng)
    with pytest.raises(RepairRefused, match="embeddings are of 4 rows"):
        pick(probabilities(5), 1, rng, embeddings=np.zeros((4, 2)))
    with pytest.raises(RepairRefused, match="random"):
        PickPlan(random_share=0.0)
    with pytest.raises(RepairRefused, match="two classes"):
        uncertainty(np.ones((3, 1)))
    assert pick(probabilities(5), 3, rng, taken=range(5)) == ()
