"""Plans of one step: a client asked for an extension itself, so there is nothing to search."""

from __future__ import annotations

from planner.cards import Card
from planner.errors import TermsUnmet
from planner.goals import Objective, Terms
from planner.plans import REQUEST, Binding, Plan, PlanSet, Prediction, Source, Step, StepId

_ONLY = StepId(0)


def direct(card: Card, terms: Terms, n_rows: int, kilo: float, epoch: int) -> PlanSet:
    """The plan that runs `card` on the request's inputs of the same names. Raises TermsUnmet."""
    prediction = Prediction(
        card.profile.p50_ms(n_rows, kilo), card.profile.p99_ms(n_rows, kilo), card.cost, card.accuracy.mean
    )
    _check(card, terms, prediction)
    step = Step(
        id=_ONLY,
        extension=card.id,
        inputs=tuple(Binding(port.name, (Source(REQUEST, port.name),)) for port in card.inputs),
        p50_ms=prediction.p50_ms,
    )
    plan = Plan(
        id=f"direct-{card.id}",
        steps=(step,),
        outputs=tuple(Binding(port.name, (Source(_ONLY, port.name),)) for port in card.outputs),
        prediction=prediction,
        score=Objective().score(prediction.accuracy, prediction.p50_ms, prediction.cost),
        reason=f"{card.id} was asked for by name.",
    )
    return PlanSet((plan,), (), epoch, complete=True, expanded=0, elapsed_ms=0.0)


def _check(card: Card, terms: Terms, prediction: Prediction) -> None:
    if not card.sees(terms.tags):
        hidden = ", ".join(sorted(terms.tags - (card.may_see or frozenset())))
        raise TermsUnmet(f"{card.id} may not see data tagged {hidden}.", hint="Use another extension, or a goal.")
    limits = (
        ("deadline_ms", terms.deadline_ms, prediction.p99_ms),
        ("max_cost", terms.max_cost, prediction.cost),
        ("min_accuracy", None if terms.min_accuracy is None else -terms.min_accuracy, -prediction.accuracy),
    )
    for name, limit, value in limits:
        if limit is not None and value > limit:
            raise TermsUnmet(f"{card.id} does not meet {name} {abs(limit):g}: {abs(value):.4g} is predicted.")
