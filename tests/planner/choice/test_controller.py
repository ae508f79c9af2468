from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from planner.choice import worlds
from planner.choice.controller import (
    ARRAYS,
    FORMAT,
    STOP,
    Candidate,
    Controller,
    State,
    Tree,
    Way,
    load,
    save,
    untrained,
)
from planner.choice.controller_training import Example, _Group, examples_of, train
from planner.choice.evaluation import Logged, compare
from planner.choice.greedy import Prior
from planner.choice.policy import FEATURES, Arm, Choice, Context, Result, drawn
from planner.errors import ArtifactRefused, BadRequest, NoPlan
from planner.goals import Objective
from tests.planner.choice.logs import ARMS, drawn_log, true_value

SMALL, LARGE, HUGE = (Candidate(n, a, ms, 0.0) for n, a, ms in (("s", 0.8, 2.0), ("l", 0.95, 20.0), ("h", 0.97, 90.0)))


def prior(names: Sequence[str] = (), seed: int = 0) -> Controller:
    return Controller(untrained(names, ["clinic", "school"], np.random.default_rng(seed)))


def random_ways(rng: random.Random) -> list[Way]:
    """Plans of one to three steps, some of which begin alike or are alike."""
    steps = [Candidate(f"e{i}", rng.random(), rng.uniform(0.1, 50.0), rng.random()) for i in range(4)]
    found = []
    for i in range(rng.randrange(1, 7)):
        chosen = tuple(rng.choices(steps, k=rng.randrange(1, 4)))
        found.append(Way(f"p{i}", chosen, rng.random(), sum(s.p50_ms for s in chosen), 0.1))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_probabilities_of_plans_are_those_of_their_steps_and_sum_to_one(seed: int) -> None:
    rng = random.Random(seed)
    ways = random_ways(rng)
    weights = untrained(["e0", "e1"], ["a"], np.random.default_rng(seed))
    weights = replace(weights, out=np.random.default_rng(seed).standard_normal(24).astype(np.float32))
    controller = Controller(weights, ways=lambda arm: ways[int(arm.plan)], mixing=0.0)
    arms = [Arm(str(i), way.accuracy, 0, way.p50_ms, way.cost) for i, way in enumerate(ways)]
    context = Context("goal", "a", (1.0, 0.0, -0.5, 1.0, math.log1p(30.0), 0.3))
    choice = controller.choose(context, arms, rng, 0.0)
    assert sum(choice.propensities) == pytest.approx(1.0)
    first = controller.next_step(State.of(context), ways)
    assert sum(first.values()) == pytest.approx(1.0, abs=1e-5)
    for name, chance in first.items():
        through = sum(p for p, way in zip(choice.propensities, ways, strict=True) if way.steps[0].name == name)
        assert through == pytest.approx(chance, abs=1e-4)


def test_without_training_it_follows_the_prediction_and_the_objective() -> None:
    arms = [Arm("good", 0.99, 200, 300.0, 0.0), Arm("fast", 0.8, 200, 2.0, 0.0)]
    controller = prior()
    good = controller.choose(Context("goal"), arms, random.Random(0), 0.0).propensities
    hasty = controller.choose(Context("goal", objective=Objective(1.0, 10.0, 1.0)), arms, random.Random(0), 0.0)
    assert good[0] < 0.3 < 0.7 < hasty.propensities[1]
    careful = controller.choose(Context("goal", objective=Objective(10.0, 1.0, 1.0)), arms, random.Random(0), 0.0)
    assert careful.propensities[0] > 0.9


def test_rules_hold_and_every_open_plan_has_a_chance() -> None:
    arms = [replace(ARMS[0], excluded=True), ARMS[1], ARMS[2]]
    choice = prior().choose(Context("goal"), arms, random.Random(0), 0.0)
    assert choice.propensities[0] == 0.0
    assert min(choice.propensities[1:]) >= 0.0099
    pinned = [ARMS[0], replace(ARMS[1], pinned=True), ARMS[2]]
    assert prior().choose(Context("goal"), pinned, random.Random(0), 0.0).propensities == (0.0, 1.0, 0.0)
    with pytest.raises(NoPlan, match="excluded"):
        prior().choose(Context("goal"), arms[:1], random.Random(0), 0.0)
    with pytest.raises(ValueError, match="no way"):
        prior().next_step(State(), [])


def test_what_it_keeps_belongs_to_the_same_arms_segment_features_and_objective() -> None:
    log = drawn_log(600, 1)
    weights = train(examples_of(log), n_epochs=10)
    controller = Controller(weights)
    slow = [replace(arm, p50_ms=900.0 if arm.plan == "third" else arm.p50_ms) for arm in ARMS]
    contexts = [
        Context("goal", segment, features, objective)
        for segment in ("clinic", "school")
        for features in ((), (1.0, 0.0, 1.0, 1.0, 3.0, 0.5))
        for objective in (Objective(), Objective(1.0, 5.0, 1.0))
    ]
    seen = set()
    for _ in range(2):
        for arms in (ARMS, slow):
            for context in contexts:
                choice = controller.choose(context, arms, random.Random(0), 0.0)
                assert choice == Controller(weights).choose(context, arms, random.Random(0), 0.0)
                seen.add(choice.propensities)
    assert len(seen) == 16


def test_the_gradient_is_that_of_the_value() -> None:
    rng = random.Random(4)
    steps = [
        Way("a", (SMALL,), 0.8, 2.0, 0.0),
        Way("b", (SMALL, LARGE), 0.93, 22.0, 0.0),
        Way("c", (HUGE,), 0.9, 90.0, 0.0),
    ]
    examples = [
        Example(
            State((0.1, 0.2, rng.gauss(0, 1), 1.0, 2.0, 0.5), rng.choice(["x", "y", "?"]), slack_ms=rng.uniform(1, 99)),
            tuple(steps),
            rng.randrange(3),
            (0.5, 0.3, 0.2),
            -rng.random(),
        )
        for _ in range(40)
    ]
    numbers = np.random.default_rng(0)
    weights = untrained(["s", "l"], ["x", "y"], numbers)
    weights = replace(weights, out=numbers.standard_normal(24).astype(np.float32))
    weights = replace(weights, **{name: getattr(weights, name).astype(np.float64) for name in ARRAYS})
    group = _Group(examples, weights, np.random.default_rng(1))
    at = group._train
    gradient = group.gradient(weights, at, 0.0)
    for name in ARRAYS:
        direction = numbers.standard_normal(getattr(weights, name).shape)
        if name in ("step_table", "segment_table"):
            direction[-1] = 0.0
        ahead, behind = (
            group.value(replace(weights, **{name: getattr(weights, name) + h * direction}), held_out=False)
            for h in (1e-4, -1e-4)
        )
        numeric = (ahead - behind) / 2e-4 / len(at)
        assert float(np.sum(gradient[name] * direction)) == pytest.approx(numeric, rel=1e-3, abs=1e-6), name


def test_trained_on_a_log_it_beats_the_planners_first_and_serves_each_segment() -> None:
    log = drawn_log(5000, 1)
    weights = train(examples_of(log[:2500]), seed=0)
    controller = Controller(weights)
    assert true_value(controller) > true_value(Prior()) + 0.15
    for segment, best in (("clinic", 1), ("school", 2)):
        choice = controller.choose(Context("goal", segment), ARMS, random.Random(0), 0.0)
        assert choice.propensities[best] > 0.9
    table = compare([Prior(), controller], log, random.Random(0))
    assert table.rows[0].policy == "controller"
    assert table.rows[0].gain.low > 0.0
    assert table.rows[0].doubly_robust.low <= true_value(controller) <= table.rows[0].doubly_robust.high


@pytest.mark.parametrize("make", [worlds.stationary, worlds.many, worlds.segmented])
def test_in_simulated_worlds_it_comes_near_the_best_plan_of_each_segment(make: Callable[[int], worlds.World]) -> None:
    seed = 11
    world = make(seed)
    rng, k = random.Random(seed), len(world.arms)
    evenly = tuple([0.6 * (i == 0) + 0.4 / k for i in range(k)])
    contexts = [Context("goal", f"s{i}") for i in range(world.n_segments)]
    log, worth = [], []
    for s in range(world.n_segments):
        truths = [world.truth(a, s, 0, 1) for a in range(k)]
        worth.append([-(1 - t.accuracy * (1 - t.failures) + t.p50_ms / 1e3) for t in truths])
    for _ in range(4000):
        s, arm = rng.randrange(world.n_segments), drawn(evenly, rng)
        t = world.truth(arm, s, 0, 1)
        right = float(rng.random() < t.accuracy * (1 - t.failures))
        log.append(Logged(contexts[s], world.arms, Choice(arm, evenly), Result.answered(t.p50_ms, 0.0, right=right)))
    controller = Controller(train(examples_of(log), seed=seed))
    n = world.n_segments
    chances = [controller.choose(c, world.arms, rng, 0.0).propensities for c in contexts]
    got = sum(p * v for ps, vs in zip(chances, worth, strict=True) for p, v in zip(ps, vs, strict=True)) / n
    best, first = sum(max(vs) for vs in worth) / n, sum(vs[0] for vs in worth) / n
    assert got > best - 0.15 * (best - first)


def test_it_learns_from_the_input_which_plan_is_right() -> None:
    rng = random.Random(2)
    thirds = (1 / 3, 1 / 3, 1 / 3)

    def context(mean: float) -> Context:
        return Context("goal", "", (0.7, 0.0, mean, 1.0, 0.0, 0.5))

    log = []
    for _ in range(3000):
        mean, arm = rng.uniform(-2.0, 2.0), rng.randrange(3)
        good = 0.95 if (arm == 1) == (abs(mean) < 1.0) and arm != 0 else 0.7
        log.append(
            Logged(
                context(mean), ARMS, Choice(arm, thirds), Result.answered(10.0, 0.0, right=float(rng.random() < good))
            )
        )
    controller = Controller(train(examples_of(log), seed=0))
    for mean, best in ((0.0, 1), (0.4, 1), (1.7, 2), (-1.7, 2)):
        assert controller.choose(context(mean), ARMS, rng, 0.0).propensities[best] > 0.7, mean


def test_on_the_way_it_learns_at_which_confidence_to_stop() -> None:
    """The answer so far is right with probability confidence ** 2; going on costs 100 ms and is right in 90 %."""
    rng = random.Random(3)
    on = Way("on", (LARGE,), 0.9, 100.0, 0.0)
    stop = Way("stop", (), 0.85, 0.0, 0.0)
    examples = []
    for _ in range(3000):
        sure, chosen = rng.uniform(0.5, 1.0), rng.randrange(2)
        right = float(rng.random() < (0.9 if chosen else sure**2))
        reward = Result.answered(100.0 if chosen else 0.001, 0.0, right=right).reward(Objective(), 0.0)
        examples.append(Example(State(confidence=sure), (stop, on), chosen, (0.5, 0.5), reward))
    controller = Controller(train(examples, seed=0))
    chances = [controller.next_step(State(confidence=sure), [stop, on]) for sure in (0.6, 0.8, 0.97, 1.0)]
    assert chances[0]["l"] > 0.8
    assert chances[3][STOP] > 0.8
    assert chances[0]["l"] > chances[1]["l"] > chances[2]["l"]


def test_it_learns_to_hurry_when_the_time_left_is_short() -> None:
    rng = random.Random(5)
    fast, slow = Way("fast", (SMALL,), 0.8, 2.0, 0.0), Way("slow", (LARGE,), 0.95, 20.0, 0.0)
    examples = []
    for _ in range(2500):
        slack_ms, chosen = math.exp(rng.uniform(math.log(4.0), math.log(200.0))), rng.randrange(2)
        late = chosen == 1 and slack_ms < 25.0
        reward = -1.0 if late else -float(rng.random() >= (0.8, 0.95)[chosen])
        examples.append(Example(State(slack_ms=slack_ms), (fast, slow), chosen, (0.5, 0.5), reward))
    controller = Controller(train(examples, seed=0))
    assert controller.next_step(State(slack_ms=8.0), [fast, slow])["s"] > 0.8
    assert controller.next_step(State(slack_ms=150.0), [fast, slow])["l"] > 0.8


def test_ways_that_begin_alike_share_their_first_step_and_part_where_one_ends() -> None:
    ways = [
        Way("a", (SMALL,), 0.8, 2.0, 0.0),
        Way("b", (SMALL, LARGE), 0.93, 22.0, 0.0),
        Way("c", (LARGE,), 0.95, 20.0, 0.0),
    ]
    tree = Tree(ways, Objective())
    assert [(tree.node[e], step.name) for e, step in enumerate(tree.edges)] == [(0, "s"), (0, "l"), (1, "l"), (1, STOP)]
    assert tree.through.tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0]]
    assert tree.before_ms.tolist() == [0.0, 0.0, 2.0, 2.0]
    fit = tree.fit(12.0)
    assert fit[0] > 0.0 > fit[1]
    assert not tree.fit(None).any()


def test_what_was_never_seen_in_training_decides_nothing_later() -> None:
    seen = (math.log1p(2), 0.0, 0.0, 0.0, math.log1p(50.0), 0.0)
    log = [replace(one, context=replace(one.context, features=seen)) for one in drawn_log(300, 1)]
    controller = Controller(train(examples_of(log), n_epochs=10))

    def chances(**changed: float) -> tuple[float, ...]:
        features = tuple([changed.get(name, number) for name, number in zip(FEATURES, seen, strict=True)])
        return controller.choose(Context("goal", "clinic", features), ARMS, random.Random(0), 0.0).propensities

    assert chances(load=1.0, mean=2.0) == chances()
    assert chances(log_rows=3.0) != chances()


def test_the_same_seed_gives_the_same_weights() -> None:
    examples = examples_of(drawn_log(300, 1))
    first, again, other = (train(examples, seed=s, n_epochs=3) for s in (0, 0, 1))
    assert all(np.array_equal(getattr(first, n), getattr(again, n)) for n in ARRAYS)
    assert not np.array_equal(first.state, other.state)


def test_training_needs_outcomes_with_propensities() -> None:
    with pytest.raises(BadRequest, match="at least 20"):
        train(examples_of(drawn_log(5, 0)))
    examples = examples_of(drawn_log(30, 0))
    with pytest.raises(BadRequest, match="with propensities only"):
        train([*examples, replace(examples[0], propensities=())])
    with pytest.raises(BadRequest, match="no propensities"):
        examples_of([replace(drawn_log(1, 0)[0], choice=Choice(0, ()))])


def test_saved_weights_are_the_same_when_loaded(tmp_path: Path) -> None:
    weights = train(examples_of(drawn_log(300, 1)), n_epochs=2)
    path = tmp_path / "controller.safetensors"
    save(weights, path)
    again = load(path)
    assert all(np.array_equal(getattr(weights, n), getattr(again, n)) for n in ARRAYS)
    assert (dict(again.steps), dict(again.segments)) == (dict(weights.steps), dict(weights.segments))
    assert (again.goal, again.until_s) == ("", 0.0)
    for context in (Context("goal", "clinic"), Context("goal", "unknown")):
        ours, theirs = (Controller(w).choose(context, ARMS, random.Random(0), 0.0) for w in (weights, again))
        assert ours == theirs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": np.zeros((3, 3), np.float32)}, "state is float32 of shape"),
        ({"out": np.zeros(24, np.float64)}, "out is float64"),
        ({"out": np.full(24, np.nan, np.float32)}, "not finite"),
        ({"step_table": np.zeros((9, 8), np.float32)}, "step_table"),
        ({"more": np.zeros(1, np.float32)}, "no weights of a controller"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, np.ndarray], says: str) -> None:
    weights = untrained(["a"], ["b"], np.random.default_rng(0))
    arrays = {name: getattr(weights, name) for name in ARRAYS}
    path = tmp_path / "controller.safetensors"
    save_file({**arrays, **change}, path, {"format": FORMAT, "names": '{"steps": ["a"], "segments": ["b"]}'})
    with pytest.raises(ArtifactRefused, match=says):
        load(path)


@pytest.mark.parametrize(
    "meta",
    [
        {"format": "other"},
        {"format": FORMAT},
        {"format": FORMAT, "names": "{"},
        {"format": FORMAT, "names": "[]"},
        {"format": FORMAT, "names": '{"steps": ["a", "a"], "segments": ["b"]}'},
        {"format": FORMAT, "names": '{"steps": ["a"], "segments": ["b"]}', "source": "[]"},
        {"format": FORMAT, "names": '{"steps": ["a"], "segments": ["b"]}', "source": '{"until_s": "soon"}'},
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, meta: dict[str, str]) -> None:
    weights = untrained(["a"], ["b"], np.random.default_rng(0))
    path = tmp_path / "controller.safetensors"
    save_file({name: getattr(weights, name) for name in ARRAYS}, path, meta)
    with pytest.raises(ArtifactRefused, match="controller"):
        load(path)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "controller.safetensors"
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        load(path)
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        load(tmp_path / "missing")
