from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

from planner.policies.learned import N_ACTIONS, N_FEATURES, trained
from planner.policies.training import Game, random_scenario, write


def play(seed: int, n_episodes: int = 2) -> list[tuple[float, ...]]:
    game, rng, seen = Game(seed), random.Random(0), []
    for _ in range(n_episodes):
        now, over = game.reset(), False
        while not over:
            now, reward, over = game.step(rng.randrange(N_ACTIONS))
            assert now.shape == (N_FEATURES,)
            assert np.all(np.abs(now) <= 3.0)
            assert reward <= 0.0
            seen.append((*now.tolist(), reward))
    return seen


def test_games_end_and_come_again_with_their_seed() -> None:
    assert play(1) == play(1)
    assert play(1) != play(2)


def test_extensions_are_drawn_from_everywhere() -> None:
    rng = random.Random(0)
    drawn = [random_scenario(rng) for _ in range(100)]
    assert {scenario.n_slots for scenario in drawn} == {1, 2, 4}
    assert {scenario.pattern.__name__ for scenario in drawn} == {"poisson", "modulated", "diurnal"}
    assert all(scenario.capacity_per_s() > 0.0 for scenario in drawn)


def test_the_written_weights_are_the_actors(tmp_path: Path) -> None:
    weights = {
        "encoder.actor_encoder.net.mlp.0.weight": torch.full((3, N_FEATURES), 0.123456),
        "encoder.actor_encoder.net.mlp.0.bias": torch.zeros(3),
        "encoder.critic_encoder.net.mlp.0.weight": torch.ones((3, N_FEATURES)),
        "encoder.critic_encoder.net.mlp.0.bias": torch.ones(3),
        "pi.net.mlp.0.weight": torch.ones((N_ACTIONS, 3)),
        "pi.net.mlp.0.bias": torch.ones(N_ACTIONS),
        "vf.net.mlp.0.weight": torch.ones((1, 3)),
        "vf.net.mlp.0.bias": torch.ones(1),
    }
    write(weights, 5, 7, tmp_path / "weights.json")
    kept = json.loads((tmp_path / "weights.json").read_text())
    assert (kept["n_steps"], kept["seed"], len(kept["layers"])) == (5, 7, 2)
    assert kept["layers"][0]["weight"] == [[0.1235] * N_FEATURES] * 3
    assert kept["layers"][1]["bias"] == [1.0] * N_ACTIONS


def test_the_shipped_weights_were_made_by_training() -> None:
    kept = json.loads((Path(__file__).parents[3] / "planner/policies/learned.json").read_text())
    assert kept["n_steps"] > 100_000
    assert len(kept["layers"]) == len(trained()) == 3
