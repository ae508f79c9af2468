from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repair.errors import RepairRefused, TruthLacking
from repair.gate import Candidate, Slice, best_of, check_truth, judge, paired_difference

LABELS = np.arange(100) % 3


def right(n_right: int, n: int = 100, first: int = 0) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[first : first + n_right] = True
    return found


def candidates(repaired: int, fine_tuned: int = 60) -> dict[str, Candidate]:
    return {
        "drifted": Candidate(right(40)),
        "rollback": Candidate(right(55)),
        "repaired": Candidate(right(repaired)),
        "fine_tuned": Candidate(right(fine_tuned)),
    }


def test_the_interval_is_that_of_the_literature() -> None:
    # Newcombe 1998, table II, example (b): 43 of both, 0 and 5 of one alone, 2 of neither... here by its own formula.
    a, b = np.zeros(50, dtype=bool), np.zeros(50, dtype=bool)
    a[:48], b[:43] = True, True
    found = paired_difference(a, b)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.0, abs=0.06), pytest.approx(0.21, abs=0.03))


@given(hnp.arrays(bool, st.integers(1, 60)), st.randoms())
def test_the_difference_lies_in_its_interval_and_turns_its_sign(a: np.ndarray, random: object) -> None:
    b = np.roll(a, 1)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert -1.0 <= one.low <= one.value <= one.high <= 1.0
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        both = rng.random(60)
        found = paired_difference(both < 0.8, (both < 0.65) | (both > 0.95))
        held += found.low <= 0.1 <= found.high
    assert 0.93 <= held / 1000 <= 0.99


def test_what_beats_all_others_passes() -> None:
    verdict = judge(LABELS, candidates(90))
    assert (verdict.winner, verdict.passed) == ("repaired", True)
    assert [c.than for c in verdict.comparisons] == ["drifted", "rollback", "fine_tuned"]


def test_what_beats_them_by_chance_alone_does_not_and_the_best_is_named() -> None:
    verdict = judge(LABELS, candidates(62))
    assert (verdict.winner, verdict.passed) == ("repaired", False)
    assert "fine_tuned" in verdict.reason
    verdict = judge(LABELS, candidates(50, 80))
    assert (verdict.winner, verdict.passed) == ("fine_tuned", False)


def test_a_repair_that_loses_elsewhere_is_not_used() -> None:
    slices = {"older": Slice(right(20), right(80)), "small": Slice(right(0, 0), right(0, 0))}
    verdict = judge(LABELS, candidates(90), slices)
    assert (verdict.winner, verdict.passed, verdict.lost_slices) == ("fine_tuned", False, ("older",))
    assert judge(LABELS, candidates(90), {"older": Slice(right(79), right(80))}).passed


def test_the_loss_decides_between_what_cannot_be_told_apart() -> None:
    close = {
        "drifted": Candidate(right(10), np.full(100, 0.01)),
        "rollback": Candidate(right(80), np.full(100, 0.9)),
        "repaired": Candidate(right(79), np.full(100, 0.5)),
    }
    assert best_of(close) == "repaired"
    assert best_of({name: Candidate(one.right) for name, one in close.items()}) == "rollback"


@pytest.mark.parametrize(
    ("labels", "said"), [(np.zeros(50, dtype=int), "of class 0"), (np.arange(5), "5 labelled rows"), ([], "0 labelled")]
)
def test_a_validation_set_that_cannot_tell_is_refused(labels: np.ndarray, said: str) -> None:
    with pytest.raises(TruthLacking, match=said):
        check_truth(labels)


def test_answers_to_other_rows_are_refused() -> None:
    with pytest.raises(RepairRefused, match="drifted has answered 3 of 100"):
        judge(LABELS, {"drifted": Candidate(right(1, 3))})
    with pytest.raises(RepairRefused):
        paired_difference(right(1, 3), right(1, 4))


def test_without_a_repair_the_best_of_the_others_wins() -> None:
    others = {name: one for name, one in candidates(0).items() if name != "repaired"}
    verdict = judge(LABELS, others)
    assert (verdict.winner, verdict.passed) == ("fine_tuned", False)
