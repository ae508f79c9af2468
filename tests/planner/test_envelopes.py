"""Envelopes: windows, distributions, and what replicas are together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibration import scaled
from planner.cards import ExtensionId
from planner.envelopes import (
    Confidences,
    Envelope,
    Moments,
    Window,
    merged,
)

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
