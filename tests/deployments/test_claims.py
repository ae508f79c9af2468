"""What cards promise, as findings are held against it."""

from __future__ import annotations

import asyncio
from typing import Any

from deployments.claims import claims_of, findings
from lineage.quality.findings import Finding
from lineage.quality.learner import Claim
from planner.cards import Accuracy, ExtensionId, LatencyProfile
from tests.planner.doubles import card

MEASURED = card("a").but(accuracy=Accuracy(0.9, 200), profile=LatencyProfile(1.0, 0.5, 0.0, 2.0, 400))


def test_a_card_claims_what_was_measured_and_nothing_that_is_guessed() -> None:
    guessed = card("b").but(accuracy=Accuracy(1.0, 0), profile=LatencyProfile(1.0, 0.5))
    free = card("c").but(profile=LatencyProfile(1.0, 0.5, 0.1, 2.0, 50))
    cards = {one.id: one for one in (MEASURED, guessed, free)}
    claims = claims_of(cards, ["a@1", "b@1", "c@1", "gone@1"])
    assert set(claims) == {"a@1", "b@1", "c@1"}
    assert claims["a@1"] == Claim(0.9, 200, 1.0, 0.5, 2.0)
    early = claims_of({MEASURED.id: MEASURED.but(profile=LatencyProfile(1.0, 0.5, 0.0, 2.0, 24))}, ["a@1"])["a@1"]
    assert (early.fixed_ms, early.p99_ratio) == (1.0, None)
    assert (claims["b@1"].accuracy, claims["b@1"].fixed_ms, claims["c@1"].fixed_ms) == (None, None, None)


def test_other_versions_of_the_name_and_what_it_replaces_could_stand_in() -> None:
    cards = {one.id: one for one in (MEASURED, MEASURED.but(version="2", replaces=("old", "older@3")), card("b"))}
    claims = claims_of(cards, ["a@1", "a@2", "b@1", "old@1", "older@2", "older@3"])
    assert claims["a@2"].peers == ("a@1", "old@1", "older@3")
    assert (claims["a@1"].peers, claims["b@1"].peers) == (("a@2",), ())


def test_only_versions_that_had_requests_are_looked_at() -> None:
    finding = Finding("a@1", "errors", "card", 0.0, 0.0, "it failed.")
    asked: list[tuple[Any, ...]] = []

    class Ledger:
        async def learned(self, name: str, question: str, *arguments: Any) -> Any:
            asked.append((name, question, *arguments))
            return ("a@1",) if question == "known" else (finding,)

    cards = {ExtensionId(f"v{k}@1"): card(f"v{k}") for k in range(100)} | {MEASURED.id: MEASURED}
    assert asyncio.run(findings(Ledger(), cards, 60.0)) == (finding,)
    assert asked[1] == ("quality", "findings", {"a@1": Claim(0.9, 200, 1.0, 0.5, 2.0)}, 60.0)
