"""Envelopes: windows, distributions, what replicas are together, and temperatures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards import Evidence, ExtensionId
from planner.envelopes import (
    Confidences,
    Envelope,
    Moments,
    Window,
    fit_temperature,
    merged,
    scaled,
    temperature_of,
)
from tests.planner.doubles import card

A, B = ExtensionId("a@1"), ExtensionId("b@1")
TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30)


def moments(values: list[float]) -> Moments:
    made = Moments()
    for value in values:
        made.add(value)
    return made


def envelope(took_ms: list[float], replica: str = "r", **more: object) -> Envelope:
    found = moments(took_ms)
    made = Envelope(A, replica, 0.0, n_calls=found.n, latency_mean_ms=found.mean, latency_var_ms2=found.variance)
    return replace(made, **more)  # type: ignore[arg-type]


@given(TIMES, TIMES)
def test_moments_of_two_parts_are_those_of_the_whole(some: list[float], more: list[float]) -> None:
    both = moments(some)
    both.take(moments(more))
    assert both.n == len(some) + len(more)
    assert both.mean == pytest.approx(np.mean(some + more))
    assert both.variance == pytest.approx(np.var(some + more), rel=1e-6, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0.0, 4.0), st.booleans()), max_size=60))
def test_a_window_holds_every_call_of_its_length_and_none_that_is_a_slot_older(calls: list[tuple[float, bool]]) -> None:
    window = Window(length_s=10.0, n_slots=10)
    now_s, made = 0.0, []
    for pause_s, good in calls:
        now_s += pause_s
        made.append((now_s, good))
        if good:
            window.succeeded(now_s, 5.0)
        else:
            window.failed(now_s)
    total = window.total(now_s)
    for found, good in ((total.took_ms.n, True), (total.n_failed, False)):
        assert found >= sum(g is good for at, g in made if now_s - at < 10.0)
        assert found <= sum(g is good for at, g in made if now_s - at <= 11.0)
    assert window.total(now_s + 11.1).n_calls == 0


def test_a_window_takes_a_clock_that_goes_back_a_little() -> None:
    window = Window()
    window.succeeded(100.0, 1.0)
    window.succeeded(98.0, 3.0)
    assert window.total(100.0).took_ms.mean == 2.0


@given(TIMES, TIMES)
def test_replicas_together_have_the_latency_of_all_their_calls(some: list[float], more: list[float]) -> None:
    found = merged([envelope(some, "r1"), envelope(more, "r2")])[A]
    assert found.latency_mean_ms == pytest.approx(np.mean(some + more))
    assert found.latency_var_ms2 == pytest.approx(np.var(some + more), rel=1e-6, abs=1e-6)


def test_replicas_together_add_up_and_idle_ones_do_not_blur_the_latency() -> None:
    busy = envelope([10.0, 20.0], "r1", queue_rows=7, in_flight=2, cpu_share=0.5, memory_mib=100.0, gpu_share=0.25)
    failing = Envelope(A, "r2", 9.0, queue_rows=1, n_calls=2, n_failed=2, cpu_share=0.25, memory_mib=50.0)
    other = Envelope(B, "r3", 1.0, n_calls=4)
    found = merged([busy, failing, other])
    assert set(found) == {A, B}
    both = found[A]
    assert (both.n_replicas, both.queue_rows, both.in_flight, both.at_s) == (2, 8, 2, 9.0)
    assert (both.cpu_share, both.memory_mib, both.gpu_share) == (0.75, 150.0, 0.25)
    assert (both.success_rate, both.latency_mean_ms, both.latency_sd_ms) == (0.5, 15.0, 5.0)
    assert found[B] == other
    assert math.isnan(failing.latency_sd_ms)
    assert merged([]) == {}


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=200), st.floats(0.05, 0.95), st.floats(0.2, 5.0))
def test_a_quantile_of_counted_confidences_lies_in_the_bin_of_the_true_one(
    sure: list[float], share: float, temperature: float
) -> None:
    counted = Confidences.of(np.array(sure))
    assert counted.n_rows == len(sure)
    true = np.quantile(sure, share, method="inverted_cdf")
    found = counted.quantile(share)
    assert abs(found - true) <= 0.1 + 1e-9
    assert counted.quantile(share, temperature) == pytest.approx(scaled(found, temperature))


def test_confidences_add_up_and_none_have_no_quantile() -> None:
    both = Confidences.of(np.array([0.05, 0.97])).plus(Confidences.of(np.array([0.97, 1.0])))
    assert both == Confidences.of(np.array([0.05, 0.97, 0.97, 1.0]))
    assert math.isnan(Confidences().quantile(0.5))


def drawn(temperature: float, n_rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that claim `temperature` times the log odds they should."""
    rng = np.random.default_rng(5)
    logits = rng.normal(1.0, 1.0, n_rows)
    right = rng.random(n_rows) < 1.0 / (1.0 + np.exp(-logits))
    return 1.0 / (1.0 + np.exp(-logits * temperature)), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_behind_the_confidences_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.06)


def test_scaling_by_the_fitted_temperature_brings_confidence_to_accuracy() -> None:
    confidence, right = drawn(2.0)
    temperature = fit_temperature(confidence, right)
    assert confidence.mean() - right.mean() > 0.05
    assert np.mean([scaled(c, temperature) for c in confidence.tolist()]) == pytest.approx(right.mean(), abs=0.01)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=50))
@settings(deadline=None)
def test_a_temperature_is_always_within_its_bounds(rows: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows], dtype=bool)
    assert 0.05 <= fit_temperature(confidence, right) <= 20.0


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    temperature = fit_temperature(np.full(10, 0.7), np.ones(10, dtype=bool))
    assert scaled(0.7, temperature) == pytest.approx(11 / 12, abs=0.01)


def test_a_card_without_evidence_or_confidence_keeps_its_confidences() -> None:
    confidence, right = drawn(3.0)
    assert temperature_of(card("a")) == 1.0
    assert temperature_of(card("a").but(evidence=Evidence.of("d", right, None))) == 1.0
    assert temperature_of(card("a").but(evidence=Evidence.of("d", right, confidence))) == pytest.approx(3.0, rel=0.1)
    assert scaled(0.7, 1.0) == 0.7
    assert scaled(0.0, 3.0) == 0.0
    assert scaled(1.0, 3.0) == 1.0
