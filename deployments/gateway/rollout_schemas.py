"""The JSON of `/v1/rollouts`, as closed pydantic models with examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from deployments.gateway.schemas import Closed, Name
from deployments.rollouts import Event, Shown, shares_of
from planner.rollout.codec import plan_to_dict
from planner.rollout.records import Event as HistoryEvent
from planner.rollout.records import Finding, Rollout

_Text = Field(default="", max_length=512)


class StartBody(Closed):
    """A version to be tried."""

    extension: Name = Field(examples=["digits"])
    version: Name = Field(examples=["2"])
    champion: str = Field(default="", max_length=256, description="What it is tried against, where that is not clear.")
    plan: dict[str, Any] | None = Field(
        default=None,
        description="How it is tried; what is not given is as by default.",
        examples=[{"accuracy_margin": 0.01, "steps": [{"share": 0.05, "mirrored": 0.5}]}],
    )
    by: str = _Text


class PromoteBody(Closed):
    """Who wants it; and which version, where none is being tried."""

    version: str = Field(default="", max_length=256)
    reason: str = _Text
    by: str = _Text


class RollbackBody(Closed):
    """Where to; empty is the champion of a running rollout, or who served before."""

    to: str = Field(default="", max_length=256, examples=["1"])
    reason: str = _Text
    by: str = _Text


class ByBody(Closed):
    """Who wants it."""

    by: str = _Text


class FindingInfo(Closed):
    """How one test stands. Rates of harms, or quantiles in ms; e-values as logarithms: at `log_needed` the challenger
    is rolled back, at `log_enough` the test lets it pass."""

    test: str
    verdict: Literal["worse", "not worse", "open"]
    champion: float
    challenger: float
    n_champion: int
    n_challenger: int
    log_e_worse: float
    log_needed: float
    log_e_not_worse: float
    log_enough: float

    @classmethod
    def of(cls, finding: Finding) -> FindingInfo:
        return cls(
            test=finding.test,
            verdict=finding.verdict,
            champion=finding.champion,
            challenger=finding.challenger,
            n_champion=finding.n_champion,
            n_challenger=finding.n_challenger,
            log_e_worse=finding.log_e_worse,
            log_needed=finding.log_needed,
            log_e_not_worse=finding.log_e_not_worse,
            log_enough=finding.log_enough,
        )


class HistoryInfo(Closed):
    """What was done when, by whom, why and on which findings; and how the rollout stood since."""

    at_s: float
    action: str
    by: str
    reason: str
    stage: str
    step: int
    share: float
    findings: list[FindingInfo]

    @classmethod
    def of(cls, event: HistoryEvent) -> HistoryInfo:
        return cls(
            at_s=event.at_s,
            action=event.action,
            by=event.by,
            reason=event.reason,
            stage=event.stage,
            step=event.step,
            share=event.share,
            findings=[FindingInfo.of(one) for one in event.findings],
        )


class RolloutInfo(Closed):
    """The last rollout of an extension. `shares` are the shares of requests that versions serve; `warm` the former
    champions that can be gone back to at once; `waits_for` is why nothing moves just now."""

    id: str
    extension: str
    stage: str = Field(description="shadow, canary, champion, rolled_back or aborted.")
    running: bool
    paused: bool
    champion: str
    challenger: str
    shares: dict[str, float]
    mirrored: float = Field(description="The share of the champion's requests that the challenger answers unseen.")
    checked: float = Field(description="The share of the challenger's requests that the champion answers unseen.")
    step: int
    n_steps: int
    n_in_step: int
    started_s: float
    since_s: float
    former: list[str]
    warm: list[str]
    waits_for: str
    remaining_s: float | None
    stalled: bool
    followed: bool = Field(description="Whether every gateway shares requests out so already.")
    findings: list[FindingInfo]
    history: list[HistoryInfo]

    @classmethod
    def of(cls, shown: Shown) -> RolloutInfo:
        rollout, decision = shown.rollout, shown.decision
        remaining_s = decision.remaining_s
        return cls(
            id=rollout.id,
            extension=rollout.extension,
            stage=rollout.stage,
            running=rollout.running,
            paused=rollout.paused,
            champion=rollout.champion,
            challenger=rollout.challenger,
            shares=dict(shares_of(shown)),
            mirrored=rollout.mirrored,
            checked=rollout.checked,
            step=rollout.step,
            n_steps=len(rollout.plan.steps),
            n_in_step=rollout.n_in_step,
            started_s=rollout.started_s,
            since_s=rollout.since_s,
            former=list(rollout.former),
            warm=list(shown.warm),
            waits_for=decision.reason if rollout.running else "",
            remaining_s=remaining_s if remaining_s is None or math.isfinite(remaining_s) else None,
            stalled=decision.stalled,
            followed=shown.followed,
            findings=[FindingInfo.of(one) for one in decision.findings],
            history=[HistoryInfo.of(event) for event in rollout.history],
        )


class PastInfo(Closed):
    """A rollout that is over, with how it came to be."""

    id: str
    stage: str
    champion: str
    challenger: str
    started_s: float
    history: list[HistoryInfo]

    @classmethod
    def of(cls, rollout: Rollout) -> PastInfo:
        return cls(
            id=rollout.id,
            stage=rollout.stage,
            champion=rollout.champion,
            challenger=rollout.challenger,
            started_s=rollout.started_s,
            history=[HistoryInfo.of(event) for event in rollout.history],
        )


class RemarkInfo(Closed):
    """What else happened, for example to aliases in MLflow."""

    at_s: float
    said: str


class RolloutDetails(RolloutInfo):
    """With its plan, those before it, the latest first, and what else happened."""

    plan: dict[str, Any]
    past: list[PastInfo]
    remarks: list[RemarkInfo]

    @classmethod
    def with_past(cls, shown: Shown, past: Sequence[Rollout], events: Sequence[Event]) -> RolloutDetails:
        return cls(
            **dict(RolloutInfo.of(shown)),
            plan=plan_to_dict(shown.rollout.plan),
            past=[PastInfo.of(rollout) for rollout in past],
            remarks=[RemarkInfo(at_s=event.at_s, said=event.said) for event in events],
        )


class RolloutList(Closed):
    """The last rollout of each extension that had one."""

    rollouts: list[RolloutInfo]
