from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.measure import (
    ends,
    load_validation,
    measure_all,
    measure_latency,
    right_rows,
    risk_coverage,
    stretched,
)
from planner.batching import Batchers
from planner.calls import LocalCalls
from planner.cards import Accuracy, Card, Threshold
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


def measured(work: Mapping[str, Any], cards: Sequence[Card], goals: Sequence[Goal]) -> Mapping[str, Card]:
    """The cards by name after measuring all of them, and in which order the reports came."""

    async def scenario() -> Catalogue:
        catalogue = Catalogue.of(cards, goals)
        functions = {card.id: work[card.name] for card in cards if card.name in work}
        dispatcher = Dispatcher(Batchers(LocalCalls(functions)), catalogue.cards.get)
        validation = {goal.name: load_validation(goal) for goal in goals}
        return await measure_all(catalogue, list(catalogue.cards), validation, dispatcher)

    return {card.name: card for card in asyncio.run(scenario()).cards.values()}


def test_accuracy_confidence_and_evidence_come_from_the_validation_set(goal: Goal) -> None:
    card = measured({"signer": signer}, [CARD], [goal])["signer"]
    assert card.accuracy == Accuracy(0.75, 8)
    assert card.evidence is not None
    assert card.evidence.correct_rows().tolist() == [True, True, False, False, True, True, True, True]
    assert [t.accuracy for t in card.thresholds if t.coverage <= 0.75] == pytest.approx([1.0] * 4, abs=1e-9)


def test_a_later_step_is_measured_after_the_ones_before_and_not_blamed_for_them(goal: Goal, tmp_path: Path) -> None:
    x = np.load(goal.validation)["x"]
    path = tmp_path / "odd.npz"
    np.savez(path, x=x, odd=(np.sign(x) != 0).astype(np.int64))
    odd = Goal("odd", goal.inputs, (Port("odd", ODD),), validation=str(path))

    def after(rows: dict[str, Array]) -> dict[str, Rows]:
        return {"odd": Rows((rows["sign"] != 0).astype(np.int64))}

    cards = measured({"signer": signer, "next": after}, [NEXT, CARD], [odd, goal])
    assert cards["signer"].accuracy.mean == pytest.approx(0.75)
    assert cards["next"].accuracy.mean == pytest.approx(1.0)


def test_every_way_to_a_goal_is_measured_though_a_cascade_would_be_the_better_plan(goal: Goal) -> None:
    cheap = CARD.but(name="cheap", cost=0.1, thresholds=(Threshold(0.5, 0.9, 1.0),), accuracy=Accuracy(0.9, 10))
    others = [CARD.but(name=f"other-{i}", cost=float(i)) for i in range(5)]
    work = dict.fromkeys(["cheap", *(card.name for card in others)], signer)
    assert all(card.accuracy.n_rows == 8 for card in measured(work, [cheap, *others], [goal]).values())


def test_an_extension_no_plan_uses_is_not_measured(goal: Goal) -> None:
    other = Card("other", "1", (Port("text", Feature("text", "BYTES")),), (Port("sign", LABEL),))
    assert measured({}, [other], [goal])["other"] == other


def test_a_combiner_is_worth_what_it_combines_and_not_measured_itself() -> None:
    combiner = Card("vote", "1", (Port("votes", LABEL, many=3),), (Port("sign", LABEL),))
    assert ends(CARD, SIGN)
    assert not ends(combiner, SIGN)
    assert not ends(NEXT, SIGN)


def test_one_size_is_enough_to_know_what_a_call_takes() -> None:
    """As for an extension that takes one row at a time."""

    def slow(rows: dict[str, Array]) -> Mapping[str, Rows]:
        time.sleep(0.005)
        return signer(rows)

    samples = [{"x": np.ones(1, np.float32)}]
    profile = asyncio.run(measure_latency(CARD, samples, LocalCalls({CARD.id: slow})))
    assert profile.fixed_ms > 4.0


def test_the_profile_separates_the_fixed_part_from_the_part_per_row() -> None:
    samples = [{"x": np.ones(n, np.float32)} for n in (1, 16, 64)]
    profile = asyncio.run(measure_latency(CARD, samples, LocalCalls({CARD.id: signer})))
    assert profile.n_calls == 24
    assert 0.0 <= profile.fixed_ms < 1000.0
    assert profile.per_kilo_ms == 0.0
    assert profile.p99_ratio >= 1.0


def test_rows_of_free_size_are_measured_at_several_sizes() -> None:
    free = Card("sum", "1", (Port("x", Feature("numbers", "FP32", (-1,))),), (Port("y", NUMBER),))

    def work(rows: dict[str, Array]) -> dict[str, Rows]:
        time.sleep(rows["x"].size * 1e-6)  # 1 ms per 1,000 elements: the work itself, not a wait for something
        return {"y": Rows(rows["x"].sum(axis=1))}

    small = {"x": np.ones((1, 4), np.float32)}
    samples = [small, stretched(free, small, 2_000), stretched(free, small, 20_000)]
    assert [s["x"].shape for s in samples] == [(1, 4), (1, 2_000), (1, 20_000)]
    profile = asyncio.run(measure_latency(free, samples, LocalCalls({free.id: work})))
    assert profile.per_kilo_ms == pytest.approx(1.0, rel=0.5)


def test_only_what_has_a_free_size_is_stretched() -> None:
    assert stretched(CARD, {"x": np.ones(1, np.float32)}, 2_000) == {}


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
