from __future__ import annotations

import pytest

from planner.cards import Accuracy, LatencyProfile
from planner.direct import direct
from planner.errors import TermsUnmet
from planner.goals import Terms
from tests.planner.doubles import card

CARD = card("a", ("x", "z")).but(
    profile=LatencyProfile(2.0, 0.5, p99_ratio=3.0), cost=4.0, accuracy=Accuracy(0.9, 100), may_see=frozenset({"ok"})
)


def test_the_plan_runs_the_extension_on_inputs_of_its_own_names() -> None:
    best = direct(CARD, Terms(), n_rows=4, kilo=0.0, epoch=7).best
    assert best.extensions() == (CARD.id,)
    assert [binding.port for binding in best.steps[0].inputs] == ["x", "z"]
    assert (best.prediction.p50_ms, best.prediction.p99_ms, best.prediction.cost) == (4.0, 12.0, 4.0)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (Terms(deadline_ms=11.0), "deadline_ms 11: 12 is predicted"),
        (Terms(max_cost=3.0), "max_cost 3: 4 is predicted"),
        (Terms(min_accuracy=0.95), r"min_accuracy 0\.95: 0\.9 is predicted"),
        (Terms(tags=frozenset({"ok", "pii"})), "may not see data tagged pii"),
    ],
)
def test_terms_bind_here_too(terms: Terms, why: str) -> None:
    with pytest.raises(TermsUnmet, match=why):
        direct(CARD, terms, n_rows=4, kilo=0.0, epoch=1)


def test_terms_that_are_just_met_are_met() -> None:
    terms = Terms(deadline_ms=12.0, max_cost=4.0, min_accuracy=0.9, tags=frozenset({"ok"}))
    assert direct(CARD, terms, n_rows=4, kilo=0.0, epoch=1).best.reason
