from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployments.measure import ends, load_validation, measure_accuracy, measure_latency, right_rows, risk_coverage
from planner.batching import Batchers
from planner.calls import LocalCalls
from planner.cards import Accuracy, Card
from planner.catalogue import Catalogue
from planner.dispatch import Dispatcher
from planner.errors import BadCard
from planner.features import Array, Feature, Port, Rows
from planner.goals import Goal

NUMBER, LABEL, ODD = Feature("number", "FP32"), Feature("label/sign", "INT64"), Feature("label/odd", "INT64")
SIGN = Goal("sign", (Port("x", NUMBER),), (Port("sign", LABEL),))
CARD = Card("signer", "1", (Port("x", NUMBER),), (Port("sign", LABEL),))
NEXT = Card("next", "1", (Port("sign", LABEL),), (Port("odd", ODD),))


def signer(rows: dict[str, Array]) -> dict[str, Rows]:
    """Right for rows of size 1 and more, and sure of them."""
    x = rows["x"]
    sure = np.clip(np.abs(x) / 2, 0, 1).astype(np.float32)
    return {"sign": Rows(np.where(np.abs(x) < 1, 0, np.sign(x)).astype(np.int64), sure)}


@pytest.fixture
def goal(tmp_path: Path) -> Goal:
    x = np.array([-3, -2, -0.5, 0.5, 2, 3, 4, 5], np.float32)
    path = tmp_path / "sign.npz"
    np.savez(path, x=x, sign=np.sign(x).astype(np.int64))
    return replace(SIGN, validation=str(path))


def test_accuracy_confidence_and_evidence_come_from_the_validation_set(goal: Goal) -> None:
    async def scenario() -> Card | None:
        dispatcher = Dispatcher(Batchers(LocalCalls({CARD.id: signer})), {CARD.id: CARD}.get)
        return await measure_accuracy(CARD, goal, load_validation(goal), Catalogue.of([CARD], [goal]), dispatcher)

    measured = asyncio.run(scenario())
    assert measured is not None
    assert measured.accuracy == Accuracy(0.75, 8)
    assert measured.evidence is not None
    assert measured.evidence.correct_rows().tolist() == [True, True, False, False, True, True, True, True]
    assert measured.evidence.n_rows == 8
    assert [t.accuracy for t in measured.thresholds if t.coverage <= 0.75] == pytest.approx([1.0] * 4, abs=1e-9)


def test_a_later_step_is_not_blamed_for_what_the_step_before_got_wrong(goal: Goal, tmp_path: Path) -> None:
    x = np.array([-3, -2, -0.5, 0.5, 2, 3, 4, 5], np.float32)
    path = tmp_path / "odd.npz"
    np.savez(path, x=x, odd=(np.sign(x) != 0).astype(np.int64))
    odd = Goal("odd", (Port("x", NUMBER),), (Port("odd", ODD),), validation=str(path))
    known = CARD.but(accuracy=Accuracy(0.75, 8))

    def after(rows: dict[str, Array]) -> dict[str, Rows]:
        return {"odd": Rows((rows["sign"] != 0).astype(np.int64))}

    async def scenario() -> Card | None:
        cards = {known.id: known, NEXT.id: NEXT}
        dispatcher = Dispatcher(Batchers(LocalCalls({known.id: signer, NEXT.id: after})), cards.get)
        return await measure_accuracy(NEXT, odd, load_validation(odd), Catalogue.of(cards.values(), [odd]), dispatcher)

    measured = asyncio.run(scenario())
    assert measured is not None
    assert measured.accuracy.mean == pytest.approx(1.0)


def test_an_extension_no_plan_uses_is_not_measured(goal: Goal) -> None:
    other = Card("other", "1", (Port("text", Feature("text", "BYTES")),), (Port("sign", LABEL),))

    async def scenario() -> Card | None:
        dispatcher = Dispatcher(Batchers(LocalCalls({})), {other.id: other}.get)
        return await measure_accuracy(other, goal, load_validation(goal), Catalogue.of([other], [goal]), dispatcher)

    assert asyncio.run(scenario()) is None


def test_a_combiner_is_worth_what_it_combines_and_not_measured_itself() -> None:
    combiner = Card("vote", "1", (Port("votes", LABEL, many=3),), (Port("sign", LABEL),))
    assert ends(CARD, SIGN)
    assert not ends(combiner, SIGN)
    assert not ends(NEXT, SIGN)


def test_the_profile_separates_the_fixed_part_from_the_part_per_row() -> None:
    samples = {n: {"x": np.ones(n, np.float32)} for n in (1, 16, 64)}
    profile = asyncio.run(measure_latency(CARD, samples, LocalCalls({CARD.id: signer})))
    assert profile.n_calls == 21
    assert 0.0 <= profile.fixed_ms < 1000.0
    assert profile.p99_ratio >= 1.0


def test_right_means_equal_for_labels_and_near_for_numbers() -> None:
    truth = {"n": np.array([1, 2, 3]), "f": np.array([0.0, 10.0, 20.0])}
    outputs = {"n": Rows(np.array([1, 2, 4])), "f": Rows(np.array([0.5, 13.0, 20.0]))}
    assert right_rows(outputs, truth).tolist() == [True, False, False]


def test_risk_coverage_keeps_the_surest_rows_first() -> None:
    confidence = np.linspace(0, 1, 100).astype(np.float32)
    points = risk_coverage(confidence > 0.5, confidence)
    assert [p.coverage for p in points] == sorted(p.coverage for p in points)
    assert points[0].accuracy == 1.0
    assert points[-1].accuracy == pytest.approx(0.5 / 0.95, abs=0.02)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": np.ones(3, np.float32)}, "no array sign"),
        ({"x": np.ones(3, np.float32), "sign": np.ones(2, np.int64)}, "same number of rows"),
        ({"x": np.ones(0, np.float32), "sign": np.ones(0, np.int64)}, "at least one"),
        ({"x": np.array([{}], dtype=object), "sign": np.ones(1, np.int64)}, "cannot be read"),
    ],
)
def test_a_validation_set_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Array], why: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadCard, match=why):
        load_validation(replace(SIGN, validation=str(path)))


def test_a_validation_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCard, match="cannot be read"):
        load_validation(replace(SIGN, validation=str(tmp_path / "none.npz")))
