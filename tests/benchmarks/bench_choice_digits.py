"""Which policy chooses among real models best? Run with `python -m tests.benchmarks.bench_choice_digits`.

Streams of held-out digits whose corruption changes, with models that were trained on one corruption each or on all of
them (`digits.py`). Feedback comes at once; or, in the worlds called late, 200 requests later on average and for 5 %
never. Regret is in wrong answers, with seconds and costs, against the plan that is the best for its user over the whole
run. The best fixed plan is the one that would have been the best for all users together.

Then the controller and others by offline evaluation, from journals of such streams, and what they would truly have
brought. Nothing was tuned on these digits being held out, nor on these seeds.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence

from planner.choice.controller import Controller
from planner.choice.controller_training import examples_of, train
from planner.choice.evaluation import Logged, compare
from planner.choice.exp3 import Exp3
from planner.choice.greedy import EpsilonGreedy, Fixed, Prior
from planner.choice.policy import Context, Policy, Result
from planner.choice.thompson import Thompson
from planner.choice.worlds import Run, World, run
from tests.benchmarks.bench_choice import POLICIES, SETTLED, SHARE_ON_BEST, compared, spread, table, verdict
from tests.benchmarks.digits import CORRUPTIONS, HELD_OUT, WORLDS, Stream, mix_of_users, models, stream

FIXED = "best fixed"


def best_fixed(world: World, n: int) -> str:
    """The plan that brings most over all users and moments."""
    steps = range(0, n, max(1, n // 50))

    def brings(i: int) -> float:
        truths = [world.truth(i, segment, step, n) for segment in range(world.n_segments) for step in steps]
        return sum(Result.answered(t.p50_ms, t.cost).reward(world.objective, t.accuracy) for t in truths)

    return world.arms[max(range(len(world.arms)), key=brings)].plan


def streams(seeds: Sequence[int], n: int, markdown: bool) -> None:
    """Regret and share on the best plan, and the terms."""
    names = [*POLICIES, FIXED]
    runs: dict[tuple[str, str], list[Run]] = {}
    users: dict[str, int] = {}
    for make in WORLDS:
        for late in (False, True):
            for seed in seeds:
                world = make(seed, n, late)
                users[world.name] = world.n_segments
                made: dict[str, Policy] = {name: policy() for name, policy in POLICIES.items()}
                made[FIXED] = Fixed(best_fixed(world, n))
                for name, policy in made.items():
                    runs.setdefault((world.name, name), []).append(run(world, policy, n, seed, SETTLED))

    def regrets(world: str, policy: str) -> list[float]:
        return [one.regret[-1] for one in runs[world, policy]]

    print(f"Regret after {n:,} requests, in wrong answers, against the best fixed plan of each user in hindsight\n")
    table(["world", *names], [[title, *[spread(regrets(title, p)) for p in names]] for title in users], markdown)
    print(f"Share of requests on the best plan of user and moment after {SETTLED:,} requests, in %: mean (least)\n")
    shares = {key: [100.0 * one.share_on_best for one in found] for key, found in runs.items()}
    rows = []
    for title in users:
        cells = [f"{statistics.mean(shares[title, p]):.0f} ({min(shares[title, p]):.0f})" for p in names]
        rows.append([title, *cells])
    table(["world", *names], rows, markdown)
    print("The terms of the simulated worlds, of thompson; the share is the mean over the seeds\n")
    rows = []
    for title, n_users in users.items():
        rows += [compared(title, p, regrets(title, "thompson"), regrets(title, p)) for p in ("greedy", "prior")]
        if n_users > 1:
            share = statistics.mean(shares[title, "thompson"])
            rows.append([title, "90 % on the user's best", f"{share:.0f} %", verdict(share >= 100 * SHARE_ON_BEST)])
    table(["world", "term", "measured", ""], rows, markdown)
    missed = sum(row[-1] == "MISSED" for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} kept.\n")


def _request(source: Stream, n_users: int, step: int, n: int, rng: random.Random) -> tuple[Context, int, int]:
    """The context of a request, and the numbers of its corruption and row."""
    user = rng.randrange(n_users)
    kind, row = source.request(user, step, n)
    return Context("goal", f"user={user}" if n_users > 1 else "", source.features(kind, row)), kind, row


def journal(source: Stream, n_users: int, policy: Policy, seed: int, n: int) -> list[Logged]:
    """What a policy's choices left behind."""
    rng, arms, found = random.Random(seed), source.known.arms, []
    for step in range(n):
        context, kind, row = _request(source, n_users, step, n, rng)
        choice = policy.choose(context, arms, rng, step / 100.0)
        ms, right = rng.choice(source.known.times_ms[choice.arm]), float(source.known.right[kind, choice.arm, row])
        cost, p = arms[choice.arm].cost, choice.propensity
        result = Result.answered(ms, cost, right=right, propensity=p, at_s=step / 100.0)
        policy.learn(context, arms[choice.arm], result)
        found.append(Logged(context, arms, choice, result))
    return found


def truly(source: Stream, n_users: int, policy: Policy, n: int) -> float:
    """What a policy as it stands brings per request: over other requests, by what all models say of them."""
    rng, arms, total = random.Random(0), source.known.arms, 0.0
    for step in range(n):
        context, kind, row = _request(source, n_users, step, n, rng)
        chances = policy.choose(context, arms, rng, n / 100.0).propensities
        for i, p in enumerate(chances):
            known = Result.answered(arms[i].p50_ms, arms[i].cost, right=float(source.known.right[kind, i, row]))
            total += p * known.reward(context.objective, 0.0)
    return total / n


def _learners() -> list[Policy]:
    return [Thompson(), EpsilonGreedy(), Exp3(), Prior()]


def taught(policy: Policy, log: Sequence[Logged], seed: int) -> Policy:
    """The policy after it heard the log, as `compare` has it."""
    rng = random.Random(seed)
    for logged in log:
        policy.choose(logged.context, logged.arms, rng, logged.result.at_s)
        policy.learn(logged.context, logged.arms[logged.choice.arm], logged.result)
    return policy


JOURNALS: tuple[tuple[str, int, Callable[[], Policy]], ...] = (
    ("four users, by greedy, half of it tried by chance", 4, lambda: EpsilonGreedy(epsilon=0.5)),
    ("four users, by thompson", 4, Thompson),
    ("unknown users, by greedy, half of it tried by chance", 1, lambda: EpsilonGreedy(epsilon=0.5)),
)


def offline(seeds: Sequence[int], n: int, markdown: bool) -> None:
    """Policies compared on journals: offline estimates beside what is true."""
    for title, n_users, make in JOURNALS:
        rows: dict[str, list[list[float]]] = {}
        earned = []
        for seed in seeds:
            mix = mix_of_users(seed) if n_users > 1 else (lambda s, t: (1.0,) * len(CORRUPTIONS))
            source, others = stream(mix, seed, n), stream(mix, seed + 500, n)
            log = journal(source, n_users, make(), seed, n)
            controller = Controller(train(examples_of(log[: n // 2]), seed=seed))
            compared_ = compare([controller, *_learners()], log, random.Random(seed))
            earned.append(compared_.logged.value)
            # Those that were compared have learned from the replay since.
            made = {policy.name: taught(policy, log[: n // 2], seed) for policy in _learners()}
            made[controller.name] = controller
            for found in compared_.rows:
                true, robust = truly(others, n_users, made[found.policy], 2000), found.doubly_robust
                held = float(robust.low <= true <= robust.high)
                rows.setdefault(found.policy, []).append([true, robust.value, found.ips.value, found.effective_n, held])
        print(f"From a journal of {n:,} outcomes of {title}, which earned {statistics.mean(earned):.3f} a request\n")
        table(
            ["policy", "truly", "doubly robust", "scores", "effective", "interval held"],
            [
                [name, *[_told([one[i] for one in of]) for i in range(3)], f"{_mean(of, 3):.0f}", f"{_mean(of, 4):.0%}"]
                for name, of in sorted(rows.items(), key=lambda item: -_mean(item[1], 0))
            ],
            markdown,
        )


def _mean(rows: Sequence[Sequence[float]], i: int) -> float:
    return statistics.mean(row[i] for row in rows)


def _told(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=10_000, help="of each run")
    parser.add_argument("--only", choices=("streams", "offline"))
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    known = models(HELD_OUT)
    print("What the models truly are: share right on held-out digits, ms of a call, cost of a row\n")
    rows = [
        [arm.plan, f"{arm.accuracy:.2f}", *[f"{a:.2f}" for a in of], f"{arm.p50_ms:.2f}", f"{arm.cost:.3f}"]
        for arm, of in zip(known.arms, known.accuracy, strict=True)
    ]
    table(["model", "its card", *CORRUPTIONS, "ms", "cost"], rows, given.markdown)
    if given.only != "offline":
        streams(seeds, given.requests, given.markdown)
    if given.only != "streams":
        offline(seeds, given.requests, given.markdown)


if __name__ == "__main__":
    main()
