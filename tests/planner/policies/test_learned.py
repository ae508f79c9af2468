from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.policies.call_times import CallTimes
from planner.policies.learned import N_ACTIONS, N_FEATURES, Layers, Learned, features, scores, trained, wish
from planner.policies.policy import BatchOutcome, QueueState

STATE = QueueState(20, 20, 3.0, 4000.0, 40.0, 1, 2, 64)


def always(action: int) -> Layers:
    """A network that prefers one action everywhere, by 0.5."""
    return ((np.zeros((N_ACTIONS, N_FEATURES)), 0.5 * np.eye(N_ACTIONS)[action]),)


def test_the_shipped_network_fits_and_does_not_say_the_same_everywhere() -> None:
    layers = trained()
    assert layers[0][0].shape[1] == N_FEATURES
    assert layers[-1][0].shape[0] == N_ACTIONS
    rng = np.random.default_rng(0)
    chosen = {int(np.argmax(scores(layers, tuple(rng.uniform(-1.0, 1.0, N_FEATURES))))) for _ in range(200)}
    assert len(chosen) > 1


def test_the_network_is_what_its_weights_say() -> None:
    first = (np.full((2, N_FEATURES), 0.1), np.array([0.0, 1.0]))
    last = (np.array([[1.0, 2.0]]), np.array([0.5]))
    seen = (0.2,) * N_FEATURES
    hidden = np.tanh(0.02 * N_FEATURES + np.array([0.0, 1.0]))
    assert scores((first, last), seen) == pytest.approx([hidden[0] + 2.0 * hidden[1] + 0.5])


def test_features_are_the_same_at_every_time_scale() -> None:
    slower = QueueState(20, 20, 300.0, 40.0, 4000.0, 1, 2, 64)
    assert features(STATE, CallTimes(4.0, 0.2)) == pytest.approx(features(slower, CallTimes(400.0, 20.0)), abs=1e-3)


def test_unknown_shares_of_the_machine_are_taken_for_half() -> None:
    assert len(features(STATE, CallTimes(4.0, 0.2))) == N_FEATURES
    assert features(STATE, CallTimes(4.0, 0.2))[-2:] == (0.5, 0.5)


def test_actions_mean_what_they_say() -> None:
    times = CallTimes(4.0, 0.2)  # 4 * 4 / (2 - 4 * 0.2) = 13 rows keep up
    assert wish(0, STATE, times) == (64, 0.0)
    assert wish(1, QueueState(60, 60, 3.0, 4000.0, 11.0, 1, 2, 64), times) == (30, 0.0)  # 10 ms and the spread
    assert wish(2, QueueState(60, 60, 3.0, 4000.0, 17.0, 1, 2, 64), times) == (30, 0.0)  # 10 of 20 ms
    assert wish(3, STATE, times) == (64, 0.0)
    assert wish(4, STATE, times)[1] == pytest.approx(6 / 4.0)


def test_it_does_what_the_network_prefers() -> None:
    policy = Learned(layers=always(2), fixed_ms=4.0, per_row_ms=0.2)
    state = QueueState(60, 60, 3.0, 4000.0, 17.0, 1, 2, 64)
    assert policy.decide(state).n_rows == 64  # before the first call it cannot know
    policy.observe(BatchOutcome(20, 8.0, 0, state))
    sizes = [policy.decide(state).n_rows for _ in range(100)]
    assert sizes.count(max(set(sizes), key=sizes.count)) >= 90
    assert max(set(sizes), key=sizes.count) < 40


def test_what_brings_late_rows_is_given_up_online() -> None:
    policy = Learned(layers=always(2), fixed_ms=4.0, per_row_ms=0.2, seed=4)
    state = QueueState(60, 60, 3.0, 4000.0, 17.0, 1, 2, 64)
    small = []
    for _ in range(600):
        n_rows = policy.decide(state).n_rows
        is_small = n_rows < 60
        small.append(is_small)
        policy.observe(BatchOutcome(n_rows, 4.0 + 0.2 * n_rows, n_rows if is_small else 0, state))
    assert small[:4] == [False, True, True, True]  # before the first call it cannot know
    assert sum(small[-200:]) < 40


def test_it_runs_on_numpy_alone() -> None:
    script = (
        "import sys; from planner.policies.registry import make_policy; make_policy('learned');"
        "print([m for m in ('ray', 'torch', 'gymnasium', 'scipy', 'sklearn') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"
