"""The nouns of a rollout: its plan, what became of requests, the evidence, the rollout itself, a decision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from planner.errors import BadCard, BadRequest
from planner.rollout.latencies import Latencies
from planner.rollout.sequential import Comparison, Level, Verdict

Stage = Literal["shadow", "canary", "champion", "rolled_back", "aborted"]
Action = Literal["keep", "step", "promote", "roll_back"]


def _number(name: str, value: object, least: float, most: float, hint: str = "") -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator]
        span = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise BadCard(f"{name} is a number {span}, not {value!r}.", hint=hint)


def _count(name: str, value: object, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(
            f"{name} is a count of at least {least}{f' and at most {most}' * (most < math.inf)}: {value!r}."
        )


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """The challenger serves the share `share` of the requests (0: none, it runs in the shadow), and answers the share
    `mirrored` of the champion's as well, unseen. The next step waits for `min_outcomes` requests that the challenger
    served, or, in the shadow, answered; and for `min_s`.

    Of what the challenger serves, the champion answers the share `checked` as well, unseen. With all of it, the
    champion does what it did before the rollout, and both are compared request by request, so that it does not matter
    whose requests they are. What is not checked is compared with what the champion alone answered: right where who is
    served by whom is drawn for each request, or users are many and alike."""

    share: float
    mirrored: float = 0.0
    checked: float = 1.0
    min_outcomes: int = 100
    min_s: float = 60.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        _number("A step's share", self.share, 0.0, 0.99, "The last step is followed by the promotion.")
        _number("A step's mirrored", self.mirrored, 0.0, 1.0)
        if self.share == 0.0 == self.mirrored:
            raise BadCard("A step in the shadow mirrors some requests.", hint="Set mirrored, for example to 1.")
        _number("A step's checked", self.checked, 0.0, 1.0)
        if self.share and self.checked < 1.0 and self.mirrored > 0.9:
            raise BadCard(
                f"What is not checked is compared with what the champion alone answers; {self.mirrored:g} is mirrored.",
                hint="Check all, or mirror at most 0.9.",
            )
        if not isinstance(self.min_outcomes, int) or isinstance(self.min_outcomes, bool) or self.min_outcomes < 1:
            raise BadCard(f"A step's min_outcomes is a count of at least 1, not {self.min_outcomes!r}.")
        _number("A step's min_s", self.min_s, 0.0, math.inf)


STEPS = (
    RolloutStep(0.0, 1.0, min_outcomes=1000),
    RolloutStep(0.01, 0.5),
    RolloutStep(0.05, 0.25, min_outcomes=200),
    RolloutStep(0.25, min_outcomes=250),
    RolloutStep(0.5, min_outcomes=500),
)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How a challenger is tried. Margins are what is borne: a challenger that is worse by more is rolled back, one
    that is shown not to be is promoted.

    `accuracy_margin` and `error_margin` are differences of rates, `latency_ratio` a factor (rounded to bins of 2.3 %)
    at each of the `latency_quantiles` of the champion. `min_agreement` is the least share of mirrored answers that
    are the champion's (None: any). `alpha` bounds the probability that a challenger within all margins is ever rolled
    back; `promote_alpha` that one beyond a margin ever gets more than `careful_share` of the requests, or all.

    With `require_truth` nothing gets beyond `careful_share` whose accuracy is not shown. Without, agreement stands in
    for it; truth that comes all the same may still roll back. A rollout that has to wait for longer than `patience_s`
    is called stalled; one that is older than `give_up_s` is rolled back.
    """

    steps: tuple[RolloutStep, ...] = STEPS
    accuracy_margin: float = 0.01
    error_margin: float = 0.002
    latency_ratio: float = 1.25
    latency_quantiles: tuple[float, ...] = (0.5, 0.95)
    min_agreement: float | None = 0.5
    alpha: float = 0.05
    promote_alpha: float = 0.01
    careful_share: float = 0.05
    served_factor: float = 4.0
    require_truth: bool = True
    patience_s: float = 86_400.0
    give_up_s: float | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.steps:
            raise BadCard("A rollout has at least one step.")
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if after.share <= before.share:
                raise BadCard(
                    f"Shares of the steps grow, and {after.share:g} follows {before.share:g}.",
                    hint="At most one step, the first, is in the shadow.",
                )
        for name in ("accuracy_margin", "error_margin"):
            _number(name, getattr(self, name), 1e-6, 0.5, "It is a difference of rates: 0.01 is one point.")
        _number("latency_ratio", self.latency_ratio, 1.02, 100.0, "1.25 bears a quarter more.")
        for quantile in self.latency_quantiles:
            _number("A latency quantile", quantile, 0.01, 0.999)
        for name in ("alpha", "promote_alpha"):
            _number(name, getattr(self, name), 1e-9, 0.5)
        _number("careful_share", self.careful_share, 0.0, 1.0)
        _number("served_factor", self.served_factor, 1.0, 100.0)
        if self.min_agreement is not None:
            _number("min_agreement", self.min_agreement, 0.01, 0.999)
        _number("patience_s", self.patience_s, 0.0, math.inf)
        if self.give_up_s is not None:
            _number("give_up_s", self.give_up_s, 0.0, math.inf)
        if not self.require_truth:
            if self.min_agreement is None:
                raise BadCard(
                    "Without truth, agreement stands in for accuracy, and min_agreement is None.",
                    hint="Set min_agreement, for example to 0.95, or require_truth.",
                )
            if self.steps[0].mirrored == 0.0:
                raise BadCard(
                    "Without truth, agreement stands in for accuracy, and the first step mirrors nothing.",
                    hint="Begin in the shadow, or set require_truth.",
                )

    @property
    def n_tests(self) -> int:
        """How many tests may roll back: errors, accuracy, latency at each quantile, agreement."""
        return 2 + len(self.latency_quantiles) + (self.min_agreement is not None)


@dataclass(frozen=True, slots=True)
class Observation:
    """What became of requests that one version alone answered, neither mirrored nor checked, in some span of time.

    `n` requests, of which `n_failed` got no answer; latencies of the others; and the truths that came, for these or
    earlier ones: of `n_judged` answers `n_right` were right. Observations add up.
    """

    version: str
    n: int = 0
    n_failed: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    n_judged: int = 0
    n_right: int = 0

    def __post_init__(self) -> None:
        _count("n", self.n, 0)
        _count("n_failed", self.n_failed, 0, self.n)
        _count("n_judged", self.n_judged, 0)
        _count("n_right", self.n_right, 0, self.n_judged)

    def plus(self, other: Observation) -> Observation:
        """Both together; they must be of one version."""
        if other.version != self.version:
            raise BadRequest(f"Outcomes of version {other.version} do not add to those of {self.version}.")
        return Observation(
            self.version,
            self.n + other.n,
            self.n_failed + other.n_failed,
            self.latencies.plus(other.latencies),
            self.n_judged + other.n_judged,
            self.n_right + other.n_right,
        )


@dataclass(frozen=True, slots=True)
class Pairs:
    """What became of requests that both versions answered, in some span of time. `served` says whose answers counted:
    the challenger's (they were checked), or the champion's (they were mirrored).

    `n` requests; of those `n_failed` failed in the challenger alone, `n_champion_failed` in the champion alone,
    `n_both_failed` in both. Of the `n_compared` answers that both gave and that could be compared, `n_agreed` were
    the same. Of the `n_judged` for which a truth came, `n_right` were right in the challenger alone,
    `n_champion_right` in the champion alone, `n_both_right` in both.
    """

    n: int = 0
    n_failed: int = 0
    n_champion_failed: int = 0
    n_both_failed: int = 0
    n_compared: int = 0
    n_agreed: int = 0
    n_judged: int = 0
    n_right: int = 0
    n_champion_right: int = 0
    n_both_right: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    champion_latencies: Latencies = field(default_factory=Latencies)
    served: bool = False

    def __post_init__(self) -> None:
        for name in _PAIR_COUNTS:
            _count(name, getattr(self, name), 0)
        _count("n_failed and those alike", self.n_failed + self.n_champion_failed + self.n_both_failed, 0, self.n)
        _count("n_agreed", self.n_agreed, 0, self.n_compared)
        _count("n_right and those alike", self.n_right + self.n_champion_right + self.n_both_right, 0, self.n_judged)

    def plus(self, other: Pairs) -> Pairs:
        """Both together; the same version's answers must have counted."""
        if other.served != self.served:
            raise BadRequest("Pairs that the challenger served do not add to those that the champion did.")
        counts = {name: getattr(self, name) + getattr(other, name) for name in _PAIR_COUNTS}
        return Pairs(
            **counts,
            latencies=self.latencies.plus(other.latencies),
            champion_latencies=self.champion_latencies.plus(other.champion_latencies),
            served=self.served,
        )


_PAIR_COUNTS = (
    "n",
    "n_failed",
    "n_champion_failed",
    "n_both_failed",
    "n_compared",
    "n_agreed",
    "n_judged",
    "n_right",
    "n_champion_right",
    "n_both_right",
)


@dataclass(frozen=True, slots=True)
class Slowness:
    """Does the challenger take longer than the champion by more than `n_bins` bins, at one quantile?

    Harms are answers of the champion that took at least `edge_ms(threshold)`, and of the challenger that took at least
    `n_bins` more: alike where one is the other, slowed down by exactly that ratio. The threshold is the champion's
    quantile as it was before these answers (None: not known yet), so no tail is heavy enough to upset the test.
    """

    quantile: float
    n_bins: int
    comparison: Comparison
    threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a rollout has seen: a test for each thing that counts. Those that end in `served` have the wider margins
    and know nothing of the shadow."""

    errors: Comparison
    accuracy: Comparison
    errors_served: Comparison
    accuracy_served: Comparison
    slowness: tuple[Slowness, ...]
    agreement: Level | None
    champion_latencies: Latencies = field(default_factory=Latencies)
    latencies: Latencies = field(default_factory=Latencies)


@dataclass(frozen=True, slots=True)
class Finding:
    """How one test stands. `challenger` and `champion` are rates of harms, or quantiles in ms; e-values are given as
    logarithms: at `log_needed` the challenger is rolled back, at `log_enough` the test lets it pass. Tests that end in
    `served` do not roll back."""

    test: str
    champion: float
    challenger: float
    n_champion: int
    n_challenger: int
    log_e_worse: float
    log_needed: float
    log_e_not_worse: float
    log_enough: float

    @property
    def verdict(self) -> Verdict:
        if self.log_e_worse >= self.log_needed:
            return "worse"
        return "not worse" if self.log_e_not_worse >= self.log_enough else "open"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a rollout's history: what was done when, by whom (`controller`, or a user), why and on which
    findings, and the stage, step and share of the challenger since."""

    at_s: float
    action: str
    reason: str
    by: str
    stage: Stage
    step: int
    share: float
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a rollout, and why. `remaining_s` is how long it has to wait at the present rate (None: it cannot
    be told), `stalled` whether that is longer than the plan's patience."""

    action: Action
    reason: str
    findings: tuple[Finding, ...] = ()
    remaining_s: float | None = None
    stalled: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """A challenger on its way. `champion` is the version that serves what the challenger does not: after a promotion
    the former challenger, after a rollback the version that was gone back to. `former` are the versions that can be
    gone back to, the latest last. `n_in_step` counts the outcomes of this step that the next one waits for."""

    extension: str
    champion: str
    challenger: str
    plan: RolloutPlan
    stage: Stage
    step: int
    started_s: float
    since_s: float
    evidence: Evidence
    former: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()
    n_in_step: int = 0
    paused: bool = False

    @property
    def id(self) -> str:
        """The same for as long as the rollout lives: what users are assigned to versions by."""
        return f"{self.extension}:{self.challenger}:{self.started_s!r}"

    @property
    def running(self) -> bool:
        return self.stage in ("shadow", "canary")

    @property
    def share(self) -> float:
        """The share of requests that the challenger serves."""
        return self.plan.steps[self.step].share if self.stage == "canary" else 0.0

    @property
    def mirrored(self) -> float:
        """The share of the champion's requests that the challenger answers as well, unseen."""
        return self.plan.steps[self.step].mirrored if self.running else 0.0

    @property
    def checked(self) -> float:
        """The share of what the challenger serves that the champion answers as well, unseen."""
        return self.plan.steps[self.step].checked if self.stage == "canary" else 0.0
