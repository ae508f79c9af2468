"""The engine: from a decoded request to an answer. Analyse, plan (or find the plan in the cache), dispatch.

Lives in every gateway replica, so planning costs no hop. It knows neither HTTP nor gRPC nor Ray: the wires hand it
`InferRequest`s and its calls go through `planner.calls`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast

import orjson

from deployments.gateway.messages import Explanation, InferAnswer, InferRequest, Route
from planner.batching import Batchers
from planner.calls import Calls
from planner.cards import Card, ExtensionId, LatencyProfile
from planner.catalogue import Catalogue
from planner.choosing import Chooser, FirstPlan, PlansWithout
from planner.convoys import MOST_ROWS, Convoy, Notes, Passenger, Unnoted
from planner.direct import direct
from planner.dispatch import Dispatcher
from planner.errors import BadInput, BadRequest, DeadlineExceeded, FenixError, NoPlan, NotFound, StepFailed, near
from planner.features import Array, Feature, Port, Rows, check_rows, datatype_of, is_a
from planner.fusion import RunCounter, Use
from planner.goals import Goal, Objective, Terms
from planner.index import index_of
from planner.intent import Analyser, Encoder, TfidfEncoder
from planner.placed import Placed
from planner.placement import Placements
from planner.plan_cache import PlanCache
from planner.plans import Answer, Plan, PlanRequest, PlanSet
from planner.profiles import Profiles
from planner.tokens import Token

# Model, version, goal, terms, plans -> what takes down the outcomes of such requests.
NotesFor = Callable[[str, str, str, Terms, PlanSet], Notes]
# Goal (or the extension that was asked for by name), terms, plans, and how to get others -> who chooses among them.
ChooserFor = Callable[[str, Terms, PlanSet, PlansWithout], Chooser]

MOST_CONVOYS = 4_096
_CONFIDENCE = ".confidence"


@dataclass(frozen=True, slots=True)
class _Target:
    """What a request turned out to want."""

    model: str
    version: str
    inputs: tuple[Port, ...]
    wanted: tuple[Port, ...]
    terms: Terms
    objective: Objective
    goal: str = ""
    card: Card | None = None  # asked for by name: nothing to search
    exact: bool = False  # by name and version: nothing to choose
    sureness: float = 1.0


class Engine:
    """Plans and runs requests over one catalogue, which `follow` replaces whenever it changes."""

    def __init__(
        self,
        calls: Calls,
        ready: Callable[[], bool] = lambda: True,
        encoder: Callable[[], Encoder] = TfidfEncoder,
        notes_for: NotesFor = lambda model, version, goal, terms, plans: Unnoted(),
        chooser_for: ChooserFor = lambda goal, terms, plans, without: FirstPlan(plans),
    ) -> None:
        """`encoder` makes what sentences are compared with, on a thread when the first sentence comes. `notes_for`
        gives what takes down the outcomes of requests for a model (name, version, and the goal, if it is one) under
        the same terms and plans, `chooser_for` what chooses among their plans."""
        self._notes_for = notes_for
        self._chooser_for = chooser_for
        self._profiles = Profiles()
        self.placements = Placements()
        batchers = Batchers(calls, self._profiles.observe)
        self.placed = Placed(batchers, self.placements, self._profiles.observe)
        self._dispatcher = Dispatcher(
            self.placed, self._card, self.placed.at_once, batchers.backlog, self.placed.is_healthy
        )
        self._runs = RunCounter()
        self._plans = PlanCache()
        self._catalogue = Catalogue()
        self._convoys: dict[Hashable, Convoy] = {}
        self._make_encoder = encoder
        self._encoder: Encoder | None = None
        self._analyser: asyncio.Task[Analyser] | None = None
        self._ready = ready
        self._withheld: frozenset[ExtensionId] = frozenset()
        self.generation = 0  # grows whenever requests that are alike may have to take another way than before

    @property
    def catalogue(self) -> Catalogue:
        """The snapshot that requests are planned on."""
        return self._catalogue

    async def follow(self, catalogue: Catalogue) -> None:
        """Takes a new snapshot, compiled on a thread first; requests under way keep theirs."""
        await asyncio.to_thread(index_of, catalogue)
        self._catalogue = catalogue
        self._analyser = None
        self._make_anew()
        self.placed.keep_only(frozenset(catalogue.cards))
        self._profiles.keep_only(frozenset(catalogue.cards))
        self._dispatcher.competition.keep_only(frozenset(catalogue.cards))

    @property
    def withheld(self) -> frozenset[ExtensionId]:
        """The extensions that serve only whom a chooser sends to them."""
        return self._withheld

    def withhold(self, extensions: frozenset[ExtensionId]) -> None:
        """These serve only whom a chooser sends to them; takes effect with the next request."""
        if extensions != self._withheld:
            self._withheld = extensions
            self._make_anew()

    def choose_anew(self) -> None:
        """Makes new choosers, because what `chooser_for` goes by has changed; takes effect with the next request."""
        self._make_anew()

    def _make_anew(self) -> None:
        self._convoys = {}
        self.generation += 1

    def alternatives(self) -> set[tuple[ExtensionId, ...]]:
        """Extensions that requests use at present, each with those that could stand in for it."""
        plans = [plan for convoy in self._convoys.values() for plan in convoy.plans.plans]
        return {(step.extension, *step.fallbacks) for plan in plans for step in plan.steps if step.fallbacks}

    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self._ready()

    def inline(self) -> frozenset[ExtensionId]:
        """The extensions that run in this process now."""
        return self.placed.inline()

    def changed_profiles(self) -> dict[ExtensionId, LatencyProfile]:
        """Latency profiles that live traffic shows to differ from the cards'."""
        return self._profiles.changed({id_: card.profile for id_, card in self._catalogue.cards.items()})

    def uses(self) -> list[Use]:
        """What ran since the last call, as far as it concerns the fusing of extensions."""
        fused = frozenset(id_ for id_, card in self._catalogue.cards.items() if card.kind == "fused")
        return self._runs.take(self.placed.inline(), fused, self.placements.run_ms)

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Plans and runs one request. Raises FenixError subclasses only; cancelling the task cancels the work."""
        now_s = asyncio.get_running_loop().time()
        target = await self._target(request)
        route = self._route(target, request)
        token = Token.of(target.terms, now_s)
        if request.detailed or route.n_rows > MOST_ROWS or target.terms.alone:
            answer = await self._alone(route, request.inputs, token)
        else:
            answer = await _taken_along(route.convoy, Passenger(request.inputs, route.n_rows, token))
        if token.hard and asyncio.get_running_loop().time() > token.until_s:
            raise _came_late(target.terms)
        return InferAnswer(
            model=target.model,
            version=target.version,
            id=request.id,
            outputs=_chosen(answer, request.outputs),
            parameters=parameters_of(answer),
            plan=answer.plan,
            steps=answer.steps,
        )

    async def _alone(self, route: Route, inputs: Mapping[str, Array], token: Token) -> Answer:
        """The answer for a request that does not travel with others."""
        notes, passenger = route.convoy.notes, Passenger(inputs, route.n_rows, token)
        chosen = route.convoy.chooser.choose(1)
        loop = asyncio.get_running_loop()
        began_s = perf_counter()
        try:
            answer = await self._dispatch(chosen.plan, inputs, token, chosen.alternatives)
            if token.hard and loop.time() > token.until_s:
                raise _came_late(route.terms)
        except FenixError as error:
            notes.failed([passenger], error, chosen)
            if chosen.then is not None:
                chosen.then((), inputs, error, (perf_counter() - began_s) * 1e3)
            raise
        (trace_id,) = notes.answered([passenger], answer, chosen)
        if chosen.then is not None:
            chosen.then((trace_id,), inputs, answer, (perf_counter() - began_s) * 1e3)
        return replace(answer, trace_id=trace_id)

    def route(self, request: InferRequest) -> Route:
        """The way of a request that names its model, for it and all that are like it. Raises what `infer` raises
        before anything is run."""
        return self._route(self._named_target(request), request)

    def _route(self, target: _Target, request: InferRequest) -> Route:
        inputs = request.inputs
        _check_inputs(inputs, target.inputs)
        if target.card is not None and len(inputs) < len(target.inputs):
            names = [port.name for port in target.inputs]
            missing = next(name for name in names if name not in inputs)
            raise BadInput(f"input {missing!r} is missing.", hint=f"{target.model} takes {', '.join(names)}.")
        planning = self._planning(target, inputs)
        plans = self._plan(target, planning)
        terms = target.terms
        shapes = tuple([(name, inputs[name].shape[1:]) for name in sorted(inputs)])
        # Plans of one step are made anew each time, and their only promise is to run that step.
        which = (plans.best.id, target.exact) if target.card is not None else id(plans)
        key = (which, shapes, terms.priority, terms.user, terms.tags, terms.purpose)
        convoy = self._convoys.get(key)
        if convoy is None:
            if len(self._convoys) >= MOST_CONVOYS:
                del self._convoys[next(iter(self._convoys))]
            notes = self._notes_for(target.model, target.version, target.goal, terms, plans)
            chooser = self._chooser(target, plans, planning)
            convoy = self._convoys[key] = Convoy(plans, self._dispatch, self.placed.at_once, notes, chooser)
        n_rows = len(next(iter(inputs.values())))
        return Route(self.generation, target.model, target.version, terms, n_rows, plans, convoy)

    def _chooser(self, target: _Target, plans: PlanSet, planning: PlanRequest) -> Chooser:
        if target.exact:
            return FirstPlan(plans)
        without = self._plans_without(target, planning)
        return self._chooser_for(target.goal or target.model, target.terms, plans, without)

    def _dispatch(
        self, plan: Plan, inputs: Mapping[str, Array], token: Token, alternatives: Sequence[Plan]
    ) -> Coroutine[Any, Any, Answer]:
        self._runs.ran(plan)
        return self._dispatcher.dispatch(plan, inputs, token, alternatives)

    def aside(self, plan: Plan, inputs: Mapping[str, Array], token: Token) -> Coroutine[Any, Any, Answer]:
        """Runs a plan for nobody's answer; it does not count as use."""
        return self._dispatcher.dispatch(plan, inputs, token)

    async def explain(self, request: InferRequest) -> Explanation:
        """Plans one request without running it; without inputs, one row of each of the goal's inputs is meant."""
        target = await self._target(request)
        if request.inputs:
            _check_inputs(request.inputs, target.inputs)
        return Explanation(target.goal, target.sureness, self._plan(target, self._planning(target, request.inputs)))

    def _planning(self, target: _Target, inputs: Mapping[str, Array]) -> PlanRequest:
        ports = tuple(port for port in target.inputs if port.name in inputs) if inputs else target.inputs
        return PlanRequest(
            inputs=ports,
            wanted=target.wanted,
            terms=target.terms,
            objective=target.objective,
            n_rows=len(next(iter(inputs.values()))) if inputs else 1,
            kilo=_kilo(inputs, ports),
            goal=target.goal,
            avoid=self._withheld,
        )

    def _plan(self, target: _Target, request: PlanRequest) -> PlanSet:
        if target.card is not None:
            return direct(target.card, target.terms, request.n_rows, request.kilo, self._catalogue.epoch)
        return self._plans.get_or_plan(request, self._catalogue)

    def _plans_without(self, target: _Target, request: PlanRequest) -> PlansWithout:
        """What else could be planned for such requests, by the catalogue as it is when that is asked."""

        def without(avoid: frozenset[ExtensionId], must_use: ExtensionId | None = None) -> PlanSet | None:
            wanted = target
            if target.card is not None and must_use is not None and target.card.id != must_use:
                return None
            if target.card is not None and target.card.id in avoid:
                others = [card for card in self._catalogue.versions(target.card.name) if card.id not in avoid]
                if not others:
                    return None
                wanted = replace(target, card=others[-1])
            try:
                return self._plan(wanted, replace(request, avoid=avoid, must_use=must_use))
            except NoPlan:
                return None

        return without

    async def _target(self, request: InferRequest) -> _Target:
        if request.model:
            return self._named_target(request)
        if request.sentence:
            catalogue, analyser = self._catalogue, await self._sentences()
            found = await asyncio.to_thread(analyser.analyse, request.sentence, request.inputs or None)
            return _goal_target(catalogue.goal(found.goal), request, found.sureness)
        if request.wanted:
            return self._wanted_target(request)
        raise BadRequest("the request names no goal.", hint="Give a goal or extension, a sentence, or wanted features.")

    def _named_target(self, request: InferRequest) -> _Target:
        goal = self._catalogue.goals.get(request.model)
        if goal is None:
            return self._extension_target(request)
        if request.version not in ("", goal.version):
            raise NotFound(f"goal {goal.name!r} has version {goal.version}, not {request.version!r}.")
        return _goal_target(goal, request, 1.0)

    async def _sentences(self) -> Analyser:
        """The analyser of the present catalogue, built by the first sentence that needs it; others wait for it."""
        if self._analyser is None or (self._analyser.done() and self._analyser.exception() is not None):
            # A context of its own: the first client may leave, the others still want it.
            building = asyncio.to_thread(self._build_analyser, self._catalogue)
            self._analyser = asyncio.get_running_loop().create_task(building, context=contextvars.Context())
        return await asyncio.shield(self._analyser)

    def _build_analyser(self, catalogue: Catalogue) -> Analyser:
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return Analyser(catalogue, self._encoder)

    def _extension_target(self, request: InferRequest) -> _Target:
        name, _, version = request.model.partition("@")
        if request.version and version not in ("", request.version):
            raise NotFound(f"extension {request.model!r} is asked for in version {request.version!r}.")
        version = version or request.version
        shown = [] if version else [one for one in self._catalogue.versions(name) if one.id not in self._withheld]
        try:
            card = shown[0] if len(shown) == 1 else self._catalogue.card(f"{name}@{version}" if version else name)
        except NotFound as error:
            if self._catalogue.versions(name):
                raise
            known = [*self._catalogue.goals, *{card.name for card in self._catalogue.cards.values()}]
            raise NotFound(f"no goal or extension {request.model!r}.", hint=near(request.model, known)) from error
        return _Target(
            model=card.name,
            version=card.version,
            inputs=card.inputs,
            wanted=card.outputs,
            terms=Terms.parse(request.terms),
            objective=Objective(),
            card=card,
            exact=bool(version),
        )

    def _wanted_target(self, request: InferRequest) -> _Target:
        """A goal made on the spot: the wanted types, from the inputs as the request types them."""
        inputs = tuple(
            Port(name, self._feature_of(name, values, request.types.get(name, "")))
            for name, values in request.inputs.items()
        )
        if not inputs:
            raise BadInput("there are no inputs.", hint="Give at least one tensor, so that its type is known.")
        return _Target(
            model="",
            version="",
            inputs=inputs,
            wanted=self._ports_of_types(tuple(dict.fromkeys(request.wanted))),
            terms=Terms.parse(request.terms),
            objective=Objective(),
        )

    def _feature_of(self, name: str, values: Array, type_: str) -> Feature:
        """The feature of an input that comes without a goal: by the type it states, or by its name."""
        spec = Feature(type_ or "unknown", datatype_of(values), values.shape[1:])
        if type_:
            return spec
        ports = _lookup(self._catalogue).inputs.get(name, ())
        fitting = dict.fromkeys(feature.type for feature in ports if feature.accepts(replace(spec, type=feature.type)))
        if len(fitting) == 1:
            return replace(spec, type=next(iter(fitting)))
        found = f"could be {' or '.join(fitting)}" if fitting else "has the name and shape of no known feature"
        raise BadInput(f"input {name!r} {found}.", hint="State its feature type in the tensor's `type`.")

    def _ports_of_types(self, types: tuple[str, ...]) -> tuple[Port, ...]:
        """A port per wanted type, with the tensor spec that most extensions give it. It is named after the type's
        last word, or the whole type where two have the same last word."""
        outputs = _lookup(self._catalogue).outputs
        last = Counter(type_.rpartition("/")[2] for type_ in types)
        ports = []
        for type_ in types:
            given = Counter[Feature]()
            for feature, n_extensions in outputs.items():
                if is_a(feature.type, type_):
                    given[feature] += n_extensions
            if not given:
                raise NoPlan(f"nothing produces `{type_}`.", hint=near(type_, {f.type for f in outputs}))
            name = type_.rpartition("/")[2]
            ports.append(Port(name if last[name] == 1 else type_, replace(given.most_common(1)[0][0], type=type_)))
        return tuple(ports)

    def _card(self, extension: ExtensionId) -> Card | None:
        return self._catalogue.cards.get(extension)


@dataclass(frozen=True, slots=True)
class _Lookup:
    """What requests without a goal look up: features by input name, and how many extensions give each feature."""

    inputs: Mapping[str, tuple[Feature, ...]]
    outputs: Counter[Feature]


def _lookup(catalogue: Catalogue) -> _Lookup:
    """Made once per snapshot: a walk over 20,000 cards takes 4 ms."""
    known = catalogue.derived.get("lookup")
    if known is None:
        inputs: dict[str, dict[Feature, None]] = {}
        goal_ports = [port for goal in catalogue.goals.values() for port in goal.inputs]
        for port in [*goal_ports, *(p for card in catalogue.cards.values() for p in card.inputs if p.many == 1)]:
            inputs.setdefault(port.name, {})[port.feature] = None
        outputs = Counter(port.feature for card in catalogue.cards.values() for port in card.outputs)
        known = catalogue.derived["lookup"] = _Lookup({name: tuple(found) for name, found in inputs.items()}, outputs)
    return cast(_Lookup, known)


def _came_late(terms: Terms) -> DeadlineExceeded:
    return DeadlineExceeded(f"the answer came after {terms.deadline_ms:g} ms.", hint="Allow more time.")


async def _taken_along(convoy: Convoy, passenger: Passenger) -> Answer:
    """The passenger's answer; whoever is cancelled while waiting leaves the convoy."""
    convoy.join(passenger)
    try:
        return await passenger.future
    except asyncio.CancelledError:
        convoy.abandon(passenger)
        raise


def parameters_of(answer: Answer) -> dict[str, str | int | float | bool]:
    """What an answer says of itself: plan, trace id, the lowest confidence where there is one, flags, and what is
    missing where something is."""
    parameters: dict[str, str | int | float | bool] = {"plan": answer.plan.id, "trace_id": answer.trace_id}
    given = [float(rows.confidence.min()) for rows in answer.outputs.values() if rows.confidence is not None]
    if given:
        parameters["confidence"] = min(given)
    parameters["flags"] = ",".join(sorted(answer.flags))
    if answer.missing:
        parameters["missing"] = orjson.dumps(dict(answer.missing)).decode()
    return parameters


def _goal_target(goal: Goal, request: InferRequest, sureness: float) -> _Target:
    return _Target(
        model=goal.name,
        version=goal.version,
        inputs=goal.inputs,
        wanted=goal.outputs,
        terms=Terms.parse(request.terms, goal.terms),
        objective=goal.objective,
        goal=goal.name,
        sureness=sureness,
    )


def _check_inputs(inputs: Mapping[str, Array], ports: tuple[Port, ...]) -> None:
    """Raises BadInput unless every input has a port, fits it, and all have the same number of rows."""
    by_name = {port.name: port for port in ports}
    n_rows = None
    for name, values in inputs.items():
        port = by_name.get(name)
        if port is None:
            raise BadInput(f"there is no input {name!r}.", hint=near(name, by_name))
        feature = port.feature
        if port.many > 1:
            feature = replace(feature, shape=(-1, *feature.shape))
        check_rows(name, values, feature, n_rows)
        n_rows = len(values)
    if not inputs:
        raise BadInput("there are no inputs.", hint=f"It takes {', '.join(map(str, by_name))}.")


def _kilo(inputs: Mapping[str, Array], ports: tuple[Port, ...]) -> float:
    """Thousands of elements in all rows, over the inputs whose size is free."""
    return sum(inputs[p.name].size for p in ports if -1 in p.feature.shape and p.name in inputs) / 1e3


def _chosen(answer: Answer, names: tuple[str, ...]) -> Mapping[str, Rows]:
    """The outputs asked for by name, all of them when none is; `<name>.confidence` is a tensor of its own.

    Missing ones are left out. Raises StepFailed when that leaves nothing, BadRequest for a name that there is not.
    """
    outputs = answer.outputs
    if not names:
        return outputs
    chosen = {}
    for name in names:
        base = name.removesuffix(_CONFIDENCE)
        rows = outputs.get(name) or outputs.get(base)
        if rows is None and (name in answer.missing or base in answer.missing):
            continue
        if rows is None:
            raise BadRequest(f"there is no output {name!r}.", hint=near(name, outputs))
        if name in outputs:
            chosen[name] = rows
        elif rows.confidence is None:
            raise BadRequest(f"output {base!r} comes without a confidence.", hint="Leave it out of `outputs`.")
        else:
            chosen[name] = Rows(rows.confidence)
    if not chosen:
        reasons = "; ".join([f"{name}: {reason}" for name, reason in answer.missing.items()])
        raise StepFailed(f"nothing that was asked for could be had. {reasons}", hint="Ask for other outputs.")
    return chosen
