"""What the board holds becomes one line per extension."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from deployments.board import Snapshot
from deployments.live import Live, summary
from planner.breakers import Standing
from planner.calibration import scaled
from planner.cards import Evidence, ExtensionId
from planner.envelopes import Confidences, Envelope
from planner.wiring import fused_card, groups_of
from tests.planner.doubles import card, plan_of, step

A, B = ExtensionId("a@1"), ExtensionId("b@1")


def test_replicas_are_put_together_and_what_was_not_measured_is_none() -> None:
    busy = Envelope(
        A, "r1", 1.0, 5, 2, n_calls=4, n_failed=1, latency_mean_ms=20.0, latency_var_ms2=4.0, memory_mib=100.0
    )
    found = summary(Snapshot((Envelope(B, "r3", 1.0), busy, Envelope(A, "r2", 1.0, memory_mib=50.0))), {})
    assert found == (
        Live("a@1", 2, 5, 2, 4, 0.25, 20.0, 2.0, None, 0.0, 150.0, None),
        Live("b@1", 1, 0, 0, 0, 0.0, None, None, None, 0.0, 0.0, None),
    )
    json.dumps([asdict(one) for one in found], allow_nan=False)


def test_the_worst_breaker_of_all_gateways_is_shown() -> None:
    standings = {
        "g1": (Standing(A, "closed"), Standing(B, "half-open", "slow")),
        "g2": (Standing(A, "open", "5 failures in a row", 2.0), Standing(B, "closed")),
        "g3": (Standing(A, "half-open", "slow"),),
    }
    first, second = summary(Snapshot((Envelope(A, "r1", 0.0), Envelope(B, "r2", 0.0)), standings), {})
    assert (first.breaker, first.why) == ("open", "5 failures in a row")
    assert (second.breaker, second.why) == ("half-open", "slow")


def test_each_extension_is_shown_where_it_runs() -> None:
    chain = plan_of(step(0, "a"), step(1, "b"))
    (group,) = groups_of(chain, {part.id: part for part in (card("a"), card("b"))})
    fused = fused_card(group)
    envelopes = tuple(Envelope(id_, id_, 0.0) for id_ in (A, B, fused.id, ExtensionId("gone@1")))
    cards = {one.id: one for one in (card("a"), card("b"), fused)}
    inline = {"g1": frozenset({A}), "g2": frozenset({A, ExtensionId("other@1")}), "g3": frozenset[ExtensionId]()}
    found = {one.id: one for one in summary(Snapshot(envelopes, {}, inline), cards)}
    assert {id_: (one.placement, one.n_inline, one.parts) for id_, one in found.items()} == {
        A: ("inline", 2, ()),
        B: ("remote", 0, ()),
        fused.id: ("fused", 0, (A, B)),
        "gone@1": ("remote", 0, ()),
    }
    (taken_in,) = summary(Snapshot((Envelope(fused.id, "r", 0.0),), {}, {"g1": frozenset({fused.id})}), cards)
    assert (taken_in.placement, taken_in.parts) == ("inline", (A, B))


def test_confidences_are_scaled_by_the_temperature_of_the_card() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(1.0, 1.0, 5_000)
    right = rng.random(5_000) < 1.0 / (1.0 + np.exp(-logits))
    evidence = Evidence.of("d", right, 1.0 / (1.0 + np.exp(-2.0 * logits)))
    snapshot = Snapshot((Envelope(A, "r", 0.0, confidences=Confidences.of(np.full(9, 0.93))),))
    (raw,) = summary(snapshot, {})
    (calibrated,) = summary(snapshot, {A: card("a").but(evidence=evidence)})
    assert raw.confidence_p50 == pytest.approx(0.925)
    assert calibrated.confidence_p50 == pytest.approx(scaled(0.925, 2.0), abs=0.01)
