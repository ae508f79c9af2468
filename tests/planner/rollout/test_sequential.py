from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BadRequest
from planner.rollout.sequential import (
    Comparison,
    Level,
    Sides,
    Tally,
    Wealth,
    group_bets,
    level_bets,
    mean_wealth,
    pair_bets,
)

RATES = st.floats(0.0, 1.0)
MARGINS = st.floats(0.0, 0.4)


def binomial(n: int, k: int, rate: float) -> float:
    return math.comb(n, k) * rate**k * (1.0 - rate) ** (n - k)


def n_harms(rates: list[float]) -> list[float]:
    """How probable 0, 1, ... harms are where each outcome has a rate of its own."""
    found = np.ones(1)
    for rate in rates:
        found = np.convolve(found, [1.0 - rate, rate])
    return [float(share) for share in found]


@settings(max_examples=60, deadline=None)
@given(
    margin=MARGINS,
    champion=RATES,
    gap=RATES,
    guess=st.floats(0.0001, 0.59),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 4)),
    worse=st.booleans(),
)
def test_no_bet_on_groups_wins_on_average_where_there_is_nothing_to_disprove(
    margin: float, champion: float, gap: float, guess: float, sizes: tuple[int, int], worse: bool
) -> None:
    edge = champion + margin
    challenger = edge * gap if worse else edge + (1.0 - edge) * gap
    if not 0.0 <= challenger <= 1.0 or (worse and challenger > edge) or (not worse and edge > 1.0):
        return
    n, m = sizes
    for bet in range(5):
        won = math.fsum(
            binomial(n, k, champion)
            * binomial(m, j, challenger)
            * math.exp(group_bets(Tally(n, k), Tally(m, j), guess, margin, worse=worse)[bet])
            for k, j in itertools.product(range(n + 1), range(m + 1))
        )
        assert won <= 1.0 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    margin=MARGINS,
    rates=st.lists(RATES, min_size=4, max_size=4),
    tried=st.lists(RATES, min_size=3, max_size=3),
    guess=st.floats(0.001, 0.59),
    worse=st.booleans(),
)
def test_nor_do_they_where_rates_vary_and_only_their_means_keep_the_margin(
    margin: float, rates: list[float], tried: list[float], guess: float, worse: bool
) -> None:
    gap = sum(tried) / 3 - sum(rates) / 4 - margin
    if gap > 0.0 if worse else gap < 0.0:
        return
    champion, challenger = n_harms(rates), n_harms(tried)
    for bet in range(5):
        won = math.fsum(
            p * q * math.exp(group_bets(Tally(4, k), Tally(3, j), guess, margin, worse=worse)[bet])
            for (k, p), (j, q) in itertools.product(enumerate(champion), enumerate(challenger))
        )
        assert won <= 1.0 + 1e-6


@given(margin=MARGINS, only_challenger=RATES, rest=RATES, worse=st.booleans())
def test_no_bet_on_a_pair_wins_on_average_where_there_is_nothing_to_disprove(
    margin: float, only_challenger: float, rest: float, worse: bool
) -> None:
    only_champion = (1.0 - only_challenger) * rest
    gap = only_challenger - only_champion - margin
    if gap > 0.0 if worse else gap < 0.0:
        return
    for bet in range(5):
        won = (
            only_challenger * math.exp(pair_bets(1, 1, 0, margin, worse=worse)[bet])
            + only_champion * math.exp(pair_bets(1, 0, 1, margin, worse=worse)[bet])
            + (1.0 - only_challenger - only_champion) * math.exp(pair_bets(1, 0, 0, margin, worse=worse)[bet])
        )
        assert won <= 1.0 + 1e-9


@given(limit=st.floats(0.001, 0.99), share=RATES, worse=st.booleans())
def test_no_bet_on_a_level_wins_on_average_where_there_is_nothing_to_disprove(
    limit: float, share: float, worse: bool
) -> None:
    rate = limit * share if worse else limit + (1.0 - limit) * share
    for bet in range(5):
        won = math.fsum(
            binomial(3, k, rate) * math.exp(level_bets(Tally(3, k), limit, worse=worse)[bet]) for k in range(4)
        )
        assert won <= 1.0 + 1e-9


def ever(
    verdict: str, champion: float, challenger: float, margin: float, n_runs: int, mirrored: bool, seed: int
) -> int:
    """Of so many runs, looked at after each of 60 batches, those in which the verdict was given at the level 0.1."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(n_runs):
        comparison = Comparison(margin, 0.1)
        for _ in range(60):
            if mirrored:
                one, other = rng.random((2, 50)) < [[champion], [challenger]]
                comparison = comparison.update_pairs(50, int((other & ~one).sum()), int((one & ~other).sum()))
            else:
                n, m = int(rng.integers(20, 80)), int(rng.integers(1, 20))
                tallies = Tally(n, int(rng.binomial(n, champion))), Tally(m, int(rng.binomial(m, challenger)))
                comparison = comparison.update(*tallies)
            if comparison.verdict(0.1) == verdict:
                found += 1
                break
    return found


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("verdict", ["worse", "not worse"])
def test_looking_after_every_batch_gives_no_more_false_alarms_than_promised(verdict: str, mirrored: bool) -> None:
    # 60 runs at the level 0.1: 19 or more have a probability below 1e-5, and the seed is fixed.
    assert ever(verdict, 0.10, 0.12, 0.02, 60, mirrored, seed=3) < 19


@pytest.mark.parametrize("mirrored", [True, False])
def test_what_is_worse_or_not_is_found(mirrored: bool) -> None:
    assert ever("worse", 0.05, 0.30, 0.02, 10, mirrored, seed=4) == 10
    assert ever("not worse", 0.05, 0.05, 0.15, 10, mirrored, seed=5) == 10


def test_a_better_challenger_is_never_called_worse() -> None:
    assert ever("worse", 0.10, 0.03, 0.0, 20, mirrored=False, seed=6) == 0


def test_pairs_may_come_in_batches_of_any_size() -> None:
    whole = Comparison(0.01, 0.1).update_pairs(100, 9, 4, 3)
    parts = Comparison(0.01, 0.1).update_pairs(60, 9, 0, 1).update_pairs(0, 0, 0).update_pairs(40, 0, 4, 2)
    assert parts.sides.worse.shadow == pytest.approx(whole.sides.worse.shadow)
    assert parts.sides.not_worse.shadow == pytest.approx(whole.sides.not_worse.shadow)
    assert (parts.champion, parts.challenger) == (whole.champion, whole.challenger) == (Tally(100, 7), Tally(100, 12))


def test_outcomes_of_one_group_wait_for_the_other() -> None:
    comparison = Comparison(0.01, 0.1).update(Tally(50, 5), Tally())
    assert comparison.sides == Comparison(0.01, 0.1).sides
    assert comparison.update(Tally(), Tally(3, 1)) == Comparison(0.01, 0.1).update(Tally(50, 5), Tally(3, 1))


def test_evidence_of_two_gateways_is_that_of_both() -> None:
    one = Comparison(0.002, 0.001).update(Tally(500, 1), Tally(20, 1))
    other = Comparison(0.002, 0.001).update_pairs(100, 3, 0).update(Tally(90, 0), Tally())
    both = one.merged(other)
    assert both.champion == Tally(600, 1)
    assert both.challenger == Tally(120, 4)
    assert both.waiting == (Tally(90, 0), Tally())
    assert both.sides.worse.shadow == other.sides.worse.shadow
    assert both.sides.worse.served == one.sides.worse.served
    assert one.merged(Comparison(0.002, 0.001).update(Tally(), Tally(4, 4))).challenger == Tally(20, 1)
    level = Level(0.5).update(Tally(10, 2)).merged(Level(0.5).update(Tally(10, 3)))
    assert level.tally == Tally(20, 5)
    assert level.sides.worse.shadow == pytest.approx(Level(0.5).update(Tally(20, 5)).sides.worse.shadow)


def test_what_goes_wrong_late_is_found_as_soon_as_after_a_restart() -> None:
    def n_until_worse(comparison: Comparison) -> int:
        n = 0
        while comparison.verdict(0.01, n_starts=5) != "worse":
            n += 10
            comparison = comparison.update(Tally(1000, 1), Tally(10, 1))
        return n

    good = Comparison(0.002, 0.001).update(Tally(100_000, 100), Tally(10_000, 10))
    fresh = n_until_worse(Comparison(0.002, 0.001))
    assert n_until_worse(good.restarted()) <= 2 * fresh
    assert n_until_worse(good) > 3 * fresh
    shadowed = Comparison(0.002, 0.001).update_pairs(10_000, 10, 10)
    assert n_until_worse(shadowed) <= 2 * fresh


def test_a_challenger_that_fails_always_is_found_after_a_handful() -> None:
    comparison = Comparison(0.002, 0.001).update(Tally(400, 0), Tally(5, 5))
    assert comparison.verdict(0.001) == "worse"
    assert Comparison(0.002, 0.001).update_pairs(12, 12, 0).verdict(0.01) == "worse"


def test_a_test_that_only_shows_not_worse_bets_nothing_on_the_other_side() -> None:
    comparison = Comparison(0.01, 0.1, only_not_worse=True).update(Tally(1000, 0), Tally(1000, 900))
    assert comparison.verdict(0.05) == "open"
    same = replace(comparison, only_not_worse=False).update(Tally(1000, 0), Tally(1000, 900))
    assert same.verdict(0.05) == "worse"


def test_agreement_is_held_against_a_level() -> None:
    assert Level(0.1).update(Tally(100, 40)).verdict(0.01) == "worse"
    assert Level(0.1).update(Tally(500, 5)).verdict(0.01) == "not worse"
    assert Level(0.1).update(Tally(100, 10)).verdict(0.01) == "open"
    assert Level(0.1).update(Tally()) == Level(0.1)


def test_mean_wealth_bears_very_large_and_very_small_ones() -> None:
    assert mean_wealth((1000.0, -1000.0)) == pytest.approx(1000.0 - math.log(2.0))


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadRequest, match="4 among 3"):
        Tally(3, 4)
    with pytest.raises(BadRequest, match="cannot all be harms"):
        Comparison(0.01, 0.1).update_pairs(10, 6, 5)


def test_pairs_that_the_challenger_served_count_as_served() -> None:
    mirrored = Comparison(0.01, 0.1).update_pairs(100, 9, 4)
    checked = Comparison(0.01, 0.1).update_pairs(100, 9, 4, served=True)
    assert checked.sides.worse.served == mirrored.sides.worse.shadow
    assert (checked.champion, checked.challenger) == (mirrored.champion, mirrored.challenger)
    assert checked.sides.log_e_worse(5) > mirrored.sides.log_e_worse(5)
    rates = Comparison(0.01, 0.1).update_mirrored(Tally(100, 4), Tally(100, 9), served=True)
    assert rates.sides.worse.shadow == Comparison(0.01, 0.1).sides.worse.shadow != rates.sides.worse.served


def test_the_money_is_shared_between_all_that_may_show_harm() -> None:
    won = (math.log(60.0),) * 5
    thirds = [
        (Sides(worse=Wealth(shadow=won)), (60.0 + 1.0 + 1.0 / 5) / 3),
        (Sides(worse=Wealth(served=won)), (60.0 + 60.0 + 1.0 / 5) / 3),
        (Sides(lately=Wealth(served=won)), (1.0 + 1.0 + 60.0 / 5) / 3),
    ]
    for sides, wealth in thirds:
        assert sides.log_e_worse(5) == pytest.approx(math.log(wealth))


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [(1, 1), (1_000_000, 1), (1, 1_000_000)])
@pytest.mark.parametrize("margin", [0.0, 1e-6, 0.002, 0.5])
def test_bets_are_numbers_at_all_ends(worse: bool, rate: float, sizes: tuple[int, int], margin: float) -> None:
    for champion, challenger in itertools.product((0, sizes[0]), (0, sizes[1])):
        tallies = Tally(sizes[0], champion), Tally(sizes[1], challenger)
        assert all(math.isfinite(bet) for bet in group_bets(*tallies, rate, margin, worse=worse))
