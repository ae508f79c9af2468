"""The life of a rollout: pure transitions, each with an entry in the history.

    shadow -> canary (step by step) -> champion
       |        |                         |
       +--------+--> rolled_back <--------+      aborted: taken back without a judgement

`decide` says what the evidence asks for and `follow` does it; `promote`, `roll_back`, `pause`, `resume` and `abort` are
what people do. What is over stays over: a challenger that was rolled back needs a new rollout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from planner.errors import BadRequest, Conflict, NotFound, near
from planner.rollout.evidence import findings, no_evidence, restarted, with_pairs, with_served
from planner.rollout.records import Action, Decision, Event, Finding, Observation, Pairs, Rollout, RolloutPlan, Stage

CONTROLLER = "controller"
_NOTHING = Decision("keep", "")


def start(
    extension: str,
    champion: str,
    challenger: str,
    plan: RolloutPlan,
    now_s: float,
    *,
    former: tuple[str, ...] = (),
    others: Iterable[Rollout] = (),
    by: str = CONTROLLER,
) -> Rollout:
    """A rollout in its first step. `former` are versions that may be gone back to beside the champion, the latest last;
    `others` the rollouts that there are.

    Raises BadRequest where champion and challenger are the same, and Conflict where another rollout of the extension
    is running.
    """
    if champion == challenger:
        raise BadRequest(f"Version {champion} of {extension} is the champion already.", hint="Name another version.")
    for other in others:
        if other.running and other.extension == extension:
            raise Conflict(
                f"{extension} has a rollout already: version {other.challenger}, in its stage {other.stage}.",
                hint="Promote it, roll it back or abort it first.",
            )
    rollout = Rollout(
        extension,
        champion,
        challenger,
        plan,
        stage="canary" if plan.steps[0].share else "shadow",
        step=0,
        started_s=now_s,
        since_s=now_s,
        evidence=no_evidence(plan),
        former=tuple(version for version in former if version != champion),
    )
    return _noted(rollout, "start", f"{challenger} against {champion}", by, now_s)


def settled(extension: str, champion: str, now_s: float, former: tuple[str, ...] = (), *, by: str) -> Rollout:
    """The record of an extension whose champion got there without a rollout (deployed first, or an alias was moved by
    hand), so that it can be rolled back like any other."""
    before = tuple(version for version in former if version != champion)
    plan = RolloutPlan()
    rollout = Rollout(
        extension, champion, champion, plan, "champion", len(plan.steps) - 1, now_s, now_s, no_evidence(plan), before
    )
    return _noted(rollout, "promote", f"{champion} was made champion without a rollout", by, now_s)


def observe(rollout: Rollout, seen: Iterable[Observation | Pairs]) -> Rollout:
    """The rollout with more evidence. Batches may be of any size and late; after the end nothing counts any more.

    A request belongs in one observation or in one record of pairs, never in two. Raises BadRequest for a version that
    is neither champion nor challenger.
    """
    if not rollout.running:
        return rollout
    served: dict[str, Observation | None] = {rollout.champion: None, rollout.challenger: None}
    pairs = {True: Pairs(served=True), False: Pairs()}
    for one in seen:
        if isinstance(one, Pairs):
            pairs[one.served] = pairs[one.served].plus(one)
        elif one.version in served:
            before = served[one.version]
            served[one.version] = before.plus(one) if before else one
        else:
            raise BadRequest(
                f"Version {one.version} has no part in the rollout of {rollout.extension}.",
                hint=near(one.version, served),
            )
    champion, challenger = (one or Observation(version) for version, one in served.items())
    evidence = with_pairs(with_pairs(rollout.evidence, pairs[False]), pairs[True])
    evidence = with_served(evidence, champion, challenger)
    counted = challenger.n + pairs[True].n if rollout.stage == "canary" else pairs[False].n
    return replace(rollout, evidence=evidence, n_in_step=rollout.n_in_step + counted)


def decide(rollout: Rollout, now_s: float) -> Decision:
    """What the evidence asks for now. Asking often does no harm: the tests bear it.

    Worse by more than a margin: roll back. Enough outcomes and time in this step: the next one; beyond the plan's
    `careful_share`, and to be promoted, only what is shown not to be worse. Else keep, and the reason says for what
    and for how long. A paused rollout is rolled back all the same.
    """
    if not rollout.running:
        return _NOTHING
    plan = rollout.plan
    found = findings(rollout.evidence, plan)
    worse = [one for one in found if one.verdict == "worse"]
    if worse:
        return Decision("roll_back", "; ".join(_told(one, rollout) for one in worse), found)
    age_s = now_s - rollout.started_s
    if plan.give_up_s is not None and age_s > plan.give_up_s:
        return Decision("roll_back", f"not proven within {_span(plan.give_up_s)}", found)
    if rollout.paused:
        return Decision("keep", "paused", found)
    step = plan.steps[rollout.step]
    is_last = rollout.step + 1 == len(plan.steps)
    waits: list[tuple[str, float | None]] = []
    in_step_s = now_s - rollout.since_s
    if rollout.n_in_step < step.min_outcomes:
        missing = step.min_outcomes - rollout.n_in_step
        left_s = missing * in_step_s / rollout.n_in_step if rollout.n_in_step else None
        waits.append((f"{missing} outcomes are missing in this step, {rollout.n_in_step} came", left_s))
    if in_step_s < step.min_s:
        waits.append((f"this step lasts {_span(step.min_s)}", step.min_s - in_step_s))
    if is_last or plan.steps[rollout.step + 1].share > plan.careful_share:
        for one in _needed(found, plan):
            if one.verdict == "open":
                waits.append((f"{one.test} is not shown to hold", _until_shown_s(one, age_s)))
    if waits:
        return _keep(waits, found, plan, in_step_s)
    if is_last:
        return Decision(
            "promote", "shown not to be worse: " + ", ".join(one.test for one in _needed(found, plan)), found
        )
    return Decision("step", f"{rollout.n_in_step} outcomes in {_span(in_step_s)} show no harm", found)


def follow(rollout: Rollout, decision: Decision, now_s: float) -> Rollout:
    """The rollout after a decision was carried out. Raises Conflict if it is over and the decision wants more of it."""
    if decision.action == "keep":
        return rollout
    _demand_running(rollout, decision.action.replace("_", " "))
    if decision.action == "promote":
        return _promoted(rollout, decision.reason, CONTROLLER, now_s, decision.findings)
    if decision.action == "roll_back":
        return _ended(rollout, "rolled_back", "roll_back", decision.reason, CONTROLLER, now_s, decision.findings)
    if rollout.step + 1 >= len(rollout.plan.steps):
        raise Conflict(f"The rollout of {rollout.extension} is in its last step.", hint="Promote it.")
    further = replace(
        rollout,
        stage="canary",
        step=rollout.step + 1,
        since_s=now_s,
        n_in_step=0,
        evidence=restarted(rollout.evidence),
    )
    return _noted(further, "step", decision.reason, CONTROLLER, now_s, decision.findings)


def promote(rollout: Rollout, now_s: float, *, by: str, reason: str = "by hand") -> Rollout:
    """Makes the challenger champion at once, whatever the evidence. Raises Conflict unless the rollout is running."""
    _demand_running(rollout, "promote")
    return _promoted(rollout, reason, by, now_s, findings(rollout.evidence, rollout.plan))


def roll_back(rollout: Rollout, now_s: float, *, by: str, to: str | None = None, reason: str = "by hand") -> Rollout:
    """Back to a version that served before, at once. `to` is the champion of a running rollout, or one of `former`;
    without it, the champion of a running rollout, or the version that served before this one.

    Raises NotFound where `to` never served, Conflict where it serves all requests already, and where there is nothing
    to go back to.
    """
    if to is None:
        if not rollout.running and (rollout.stage != "champion" or not rollout.former):
            raise Conflict(
                f"Nothing of {rollout.extension} is there to be rolled back: version {rollout.champion} serves.",
                hint="Name the version to go back to." if rollout.former else "",
            )
        to = rollout.champion if rollout.running else rollout.former[-1]
    if to == rollout.champion and not rollout.running:
        raise Conflict(f"Version {to} of {rollout.extension} serves all requests already.")
    if to != rollout.champion and to not in rollout.former:
        if to == rollout.challenger:
            raise Conflict(f"Version {to} of {rollout.extension} was never champion.", hint="Promote it instead.")
        known = {rollout.champion, *rollout.former}
        raise NotFound(f"{rollout.extension} had no champion {to!r}.", hint=near(to, known))
    if to != rollout.champion:
        former = tuple(version for version in (*rollout.former, rollout.champion) if version != to)
        rollout = replace(rollout, champion=to, former=former)
    return _ended(rollout, "rolled_back", "roll_back", reason, by, now_s, findings(rollout.evidence, rollout.plan))


def pause(rollout: Rollout, now_s: float, *, by: str, reason: str = "by hand") -> Rollout:
    """Keeps the share where it is; harm still rolls back. Raises Conflict unless it is running and not paused."""
    _demand_running(rollout, "pause")
    if rollout.paused:
        raise Conflict(f"The rollout of {rollout.extension} is paused already.")
    return _noted(replace(rollout, paused=True), "pause", reason, by, now_s)


def resume(rollout: Rollout, now_s: float, *, by: str, reason: str = "by hand") -> Rollout:
    """Lets a paused rollout go on. Raises Conflict unless it is paused."""
    _demand_running(rollout, "resume")
    if not rollout.paused:
        raise Conflict(f"The rollout of {rollout.extension} is not paused.")
    return _noted(replace(rollout, paused=False), "resume", reason, by, now_s)


def abort(rollout: Rollout, now_s: float, *, by: str, reason: str) -> Rollout:
    """Takes the challenger back without a judgement: it was deleted, say. Raises Conflict unless it is running."""
    _demand_running(rollout, "abort")
    return _ended(rollout, "aborted", "abort", reason, by, now_s, findings(rollout.evidence, rollout.plan))


def _demand_running(rollout: Rollout, verb: str) -> None:
    if not rollout.running:
        over = rollout.stage.replace("_", " ")
        raise Conflict(
            f"There is no rollout of {rollout.extension} to {verb}: the last one, of {rollout.challenger}, is over "
            f"({over}).",
            hint="Start one.",
        )


def _promoted(rollout: Rollout, reason: str, by: str, now_s: float, found: tuple[Finding, ...]) -> Rollout:
    new = rollout.challenger
    former = (*(version for version in rollout.former if version != new), rollout.champion)
    over = replace(rollout, stage="champion", champion=new, former=former, since_s=now_s, paused=False)
    return _noted(over, "promote", reason, by, now_s, found)


def _ended(
    rollout: Rollout, stage: Stage, action: str, reason: str, by: str, now_s: float, found: tuple[Finding, ...]
) -> Rollout:
    over = replace(rollout, stage=stage, since_s=now_s, paused=False)
    return _noted(over, action, reason, by, now_s, found)


def _noted(
    rollout: Rollout, action: Action | str, reason: str, by: str, now_s: float, found: tuple[Finding, ...] = ()
) -> Rollout:
    event = Event(now_s, action, reason, by, rollout.stage, rollout.step, rollout.share, found)
    return replace(rollout, history=(*rollout.history, event))


def _needed(found: tuple[Finding, ...], plan: RolloutPlan) -> list[Finding]:
    """The tests that a promotion waits for."""
    spared = ("agreement",) if plan.require_truth else ("accuracy", "accuracy served")
    return [one for one in found if one.test not in spared]


def _until_shown_s(one: Finding, age_s: float) -> float | None:
    """How long a test needs if its evidence goes on growing as it did."""
    if one.log_e_not_worse <= 0.0:
        return None
    return age_s * (one.log_enough / one.log_e_not_worse - 1.0)


def _keep(
    waits: list[tuple[str, float | None]], found: tuple[Finding, ...], plan: RolloutPlan, in_step_s: float
) -> Decision:
    spans = [left_s for _, left_s in waits]
    remaining_s = None if None in spans else max(left_s for left_s in spans if left_s is not None)
    stalled = in_step_s > plan.patience_s if remaining_s is None else remaining_s > plan.patience_s
    reasons = [
        f"{what} (nothing yet says how long it will take)"
        if left_s is None
        else f"{what} (about {_span(left_s)} at this rate)"
        for what, left_s in waits
    ]
    return Decision("keep", ("stalled: " if stalled else "") + "; ".join(reasons), found, remaining_s, stalled)


def _told(one: Finding, rollout: Rollout) -> str:
    """Why a challenger is rolled back, in words."""
    e_value = f"e = {math.exp(min(one.log_e_worse, 700.0)):.3g}, {math.exp(one.log_needed):.0f} are enough"
    plan = rollout.plan
    if one.test == "agreement":
        least = plan.min_agreement or 0.0
        return f"agrees with the champion on {1.0 - one.challenger:.1%} of the answers, not {least:.1%} ({e_value})"
    if one.test.startswith("latency"):
        return (
            f"{one.test} of {one.challenger:.1f} ms against {one.champion:.1f}: more than {plan.latency_ratio:g} times "
            f"({e_value})"
        )
    what, margin = ("fails", plan.error_margin) if one.test == "errors" else ("is wrong on", plan.accuracy_margin)
    return (
        f"{what} {one.challenger:.2%} of {one.n_challenger} outcomes, the champion {one.champion:.2%} of "
        f"{one.n_champion}: worse by more than {100 * margin:g} points ({e_value})"
    )


def _span(seconds: float) -> str:
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
